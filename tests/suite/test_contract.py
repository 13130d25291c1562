"""One contract over every recipe: each strategy learns, resumes and reports; each benchmark fits its data."""

import json
from pathlib import Path

import pytest
import torch

from fscl.continual.datasets import ImageSet
from fscl.continual.learners import strategy_class
from fscl.continual.stream import split_classes
from fscl.suite.recipe import find_recipes, load_benchmark, load_strategy, with_overrides
from fscl.suite.report import summary_rows, write_report
from fscl.suite.results import load_runs
from fscl.suite.run import RunSpec, check_runnable, run_one

BENCHMARKS = list(find_recipes("benchmarks"))
STRATEGIES = list(find_recipes("strategies"))
# what the data sets are known to hold: (channels, height, width), classes
DATA = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fmnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}


@pytest.mark.parametrize("name", BENCHMARKS + STRATEGIES)
def test_it_says_what_it_is_in_one_line(name: str) -> None:
    recipe = load_benchmark(name) if name in BENCHMARKS else load_strategy(name)
    assert recipe.name == name
    for text in (recipe.title, recipe.description):
        assert text.strip()
        assert "\n" not in text
    assert len(recipe.title) < 40
    assert len(recipe.description) < 100


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmarks_network_fits_its_data_with_every_strategy(name: str) -> None:
    benchmark = load_benchmark(name)
    shape, count = DATA[benchmark.data.name]
    labels = torch.arange(count).repeat(2)
    images = ImageSet(torch.zeros(len(labels), *shape, dtype=torch.uint8), labels, [str(c) for c in range(count)])
    stream = split_classes(images, images, benchmark.split.tasks)
    if isinstance(benchmark.split.tasks, int):
        assert {len(task) for task in stream.tasks} == {count // benchmark.split.tasks}
    for strategy in STRATEGIES:
        recipes = with_overrides(benchmark, load_strategy(strategy), ["training.drop_last=false"])  # of two images
        check_runnable(RunSpec(*recipes, 0), stream)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_words_only_for_strategies_that_there_are(name: str) -> None:
    """A misspelt ``[strategies.from_scrath]`` would pass silently: users' own strategies have names of their own."""
    benchmark = load_benchmark(name)
    assert set(benchmark.strategies) <= set(STRATEGIES)
    for strategy, override in benchmark.strategies.items():
        recipe = load_strategy(strategy)
        strategy_class(recipe.class_path, {**recipe.args, **override.args})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_learns_resumes_and_reports(name: str, tmp_path: Path) -> None:
    settings = ["split.tasks=[['0', '1'], ['2', '3']]", "split.shuffle=false", "model.args.widths=[8, 8]"]
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(name), [*settings, "training.epochs=4"])
    spec = RunSpec(*pair, 0)

    def stop(experience: int, *_: int) -> None:
        if experience == 1:
            raise KeyboardInterrupt

    if name != "joint":  # whose second experience is over before it begins
        with pytest.raises(KeyboardInterrupt):
            run_one(spec, tmp_path, progress=stop)
    folder = run_one(spec, tmp_path)
    accuracy = json.loads((folder / "run.json").read_text())["accuracy"]
    assert accuracy[0][0] > 0.8  # 0 from 1, and 2 from 3: chance is 0.5
    assert accuracy[1][1] > 0.8
    runs = load_runs([tmp_path])
    (row,) = summary_rows(runs)
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(sum(accuracy[1]) / 2)
    page = write_report(runs, tmp_path / "report").html.read_text()
    assert load_strategy(name).title in page
    assert "2, 3" in page
