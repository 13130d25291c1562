"""One contract for every recipe: each strategy learns, resumes and reports; each benchmark fits its data."""

import csv
import json
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
import torch

from benchmarks.similarity.grounding.superclasses import SUPERCLASSES
from fscl import load_network
from fscl.continual.learner import strategy_class
from fscl.data.images import ImageSet, join_images
from fscl.data.layouts import CORE50_OBJECTS
from fscl.data.places import data_root
from fscl.errors import FsclError
from fscl.report.page import write_report
from fscl.report.runs import load_runs
from fscl.report.summary import group_runs, summary_rows
from fscl.runs.recipe import BenchmarkRecipe, load_benchmark, load_strategy, names_of, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec
from fscl.runs.stream.building import check_runnable, load_stream

BENCHMARKS = names_of("benchmarks", federated=False)
STRATEGIES = names_of("strategies", federated=False)
# what the data sets are known to hold: (channels, height, width), unless the recipe resizes them, and classes
DATA = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fmnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tinyimagenet": ((3, 64, 64), 200),
    "miniimagenet": ((3, 84, 84), 100),
    "core50": ((3, 128, 128), 50),
}
SCENARIOS = ("task", "domain", "class")


def made_up(benchmark: BenchmarkRecipe) -> tuple[ImageSet, ImageSet]:
    """Two black images for each class, with the shape, number and names of classes of the benchmark's data."""
    named = benchmark.split.tasks
    wanted = sorted(c for group in named.values() for c in group) if isinstance(named, dict) else []
    sets = {}
    for name in benchmark.data.name.split("+"):
        (channels, *sides), count = DATA[name]
        sides = [benchmark.data.image_size] * 2 if benchmark.data.image_size else sides
        labels = torch.arange(count).repeat(2)
        classes = wanted or [f"{name} {c}" for c in range(count)]
        assert len(classes) == count
        images = ImageSet(torch.zeros(len(labels), channels, *sides, dtype=torch.uint8), labels, classes)
        sets[name] = (images, images)
    return join_images(sets) if len(sets) > 1 else next(iter(sets.values()))


def scenarios_of_class(strategy: str) -> list[str]:
    """The scenarios that a strategy's class declares; all scenarios if it declares none."""
    declared = getattr(strategy_class(load_strategy(strategy).class_path), "scenarios", SCENARIOS)
    return [scenario for scenario in SCENARIOS if scenario in declared]


@pytest.fixture(scope="module")
def ended() -> list[Path]:
    """The folders of the runs that the tests of this file have ended."""
    return []


def stop_in_the_first(*_: int) -> None:
    raise KeyboardInterrupt


def stop_in_the_second(experience: int, *_: int) -> None:
    if experience == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", BENCHMARKS + STRATEGIES)
def test_a_recipe_has_a_title_and_a_description_of_one_short_line(name: str) -> None:
    recipe = load_benchmark(name) if name in BENCHMARKS else load_strategy(name)
    assert recipe.name == name
    for text in (recipe.title, recipe.description):
        assert text.strip()
        assert "\n" not in text
    assert len(recipe.title) < 40
    assert len(recipe.description) < 100


def test_learners_declare_the_scenarios_of_their_papers() -> None:
    need_labels = {"AtomEnsemble", "AtomSwapping", "FromScratch", "PackNet", "PNN", "WSN"}
    for name in STRATEGIES:
        kind = load_strategy(name).class_path.rpartition(".")[2]
        expected = ["task"] if kind in need_labels else list(SCENARIOS)
        expected = {"ICaRL": ["class"], "AtomSelection": ["domain", "class"]}.get(kind, expected)
        assert scenarios_of_class(name) == expected, name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmarks_network_fits_its_data_with_every_strategy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark(name)
    images = made_up(benchmark)
    monkeypatch.setattr("fscl.data.datasets.load_images", lambda *_: images)
    settings = ["training.drop_last=false"]  # there are two images of a class
    specs = {s: RunSpec(*with_overrides(benchmark, load_strategy(s), settings), 0) for s in STRATEGIES}
    assert all(spec.benchmark.split == benchmark.split for spec in specs.values())
    stream = load_stream(specs["naive"])
    for strategy, spec in specs.items():
        fits = scenarios_of_class(strategy)
        if benchmark.split.scenario not in fits:
            with pytest.raises(FsclError, match=" or ".join(rf"split\.scenario={fit}" for fit in fits) + "$"):
                check_runnable(spec, stream)
        else:
            check_runnable(spec, stream)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_learned_and_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[Path]
) -> None:
    benchmark = load_benchmark(name)
    train, _ = made_up(benchmark)
    noise = torch.randint(0, 256, train.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = replace(train, images=noise)
    monkeypatch.setattr("fscl.data.datasets.load_images", lambda *_: (images, images))
    learner = "atom_swapping" if benchmark.split.scenario == "task" else "atom_selection"
    settings = ["training.epochs=2", "training.epochs_next=1", "training.batch_size=4"]
    spec = RunSpec(*with_overrides(benchmark, load_strategy(learner), settings), 0)
    count = min(2, len(load_stream(spec).tasks))
    spec = replace(spec, first=count)

    with pytest.raises(KeyboardInterrupt):
        run_one(spec, tmp_path / "interrupted", progress=stop_in_the_first if count == 1 else stop_in_the_second)
    folders = [run_one(spec, tmp_path / out) for out in ("interrupted", "whole")]
    resumed, whole = (json.loads((folder / "run.json").read_text()) for folder in folders)
    assert [again["after"] for again in resumed["resumed"]] == ([1] if count == 2 else [])
    assert not whole["resumed"]
    for key in ("tasks", "accuracy", "transfer", "untrained", "start", "memory", "similarity"):
        assert resumed[key] == whole[key], key
    assert len(whole["tasks"]) == len(whole["accuracy"]) == count
    ended.append(folders[0])


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_can_be_built_in_every_scenario_that_fits(
    name: str, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load_benchmark(name)
    images = made_up(benchmark)
    monkeypatch.setattr("fscl.data.datasets.load_images", lambda *_: images)
    learner, setting = load_strategy("naive"), [f"split.scenario={scenario}"]
    if benchmark.split.tasks is None and scenario == "class":
        with pytest.raises(FsclError, match="have the same classes; use 'domain' or 'task'"):
            with_overrides(benchmark, learner, setting)
        return
    stream = load_stream(RunSpec(*with_overrides(benchmark, learner, setting), 0, validation=0.5))
    assert stream.scenario == scenario
    assert len(set(stream.names)) == len(stream.tasks) == len(stream.train_stream) == len(stream.test_stream)
    if benchmark.split.tasks is not None:  # every class is learned, and once
        assert sorted(c for task in stream.tasks for c in task) == sorted(images[0].classes)
    labels = {label for e in stream.train_stream for label in e.task_labels}
    assert labels == (set(range(len(stream.tasks))) if scenario == "task" else {0})
    targets = {c for e in stream.train_stream for c in e.classes_in_this_experience}
    assert len(targets) == (len(images[0].classes) if scenario == "class" else stream.classes_per_task)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("split_digits", [2] * 5),
        ("split_digits_class", [2] * 5),
        ("split_mnist", [2] * 5),
        ("split_fmnist", [2] * 5),
        ("rotated_fmnist", [10] * 10),
        ("permuted_fmnist", [10] * 10),
        ("split_cifar10", [2] * 5),
        ("split_cifar100", [5] * 20),
        ("split_cifar100_10", [10] * 10),
        ("split_cifar100_superclass", [5] * 20),
        ("split_cifar110", [10] * 11),
        ("split_tinyimagenet", [10] * 20),
        ("split_miniimagenet", [5] * 20),
        ("core50", [5] * 10),
    ],
)
def test_a_benchmark_has_the_number_of_tasks_and_classes_in_its_name(
    name: str, tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load_benchmark(name)
    images = made_up(benchmark)
    monkeypatch.setattr("fscl.data.datasets.load_images", lambda *_: images)
    stream = load_stream(RunSpec(*with_overrides(benchmark, load_strategy("naive")), 0))
    assert [len(task) for task in stream.tasks] == tasks
    if name == "split_cifar110":
        assert {c.split()[0] for c in stream.tasks[0]} == {"cifar10"}
    if name == "rotated_fmnist":
        assert stream.names[:2] == ["rotated 0°", "rotated 36°"]


def test_tasks_of_the_superclass_benchmark_are_the_superclasses_of_cifar100() -> None:
    tasks = load_benchmark("split_cifar100_superclass").split.tasks
    assert isinstance(tasks, dict)
    assert {name: tuple(group) for name, group in tasks.items()} == SUPERCLASSES
    folder = data_root() / "cifar100" / "train"
    if folder.is_dir():
        assert {path.name for path in folder.iterdir()} == {c for group in tasks.values() for c in group}


def test_tasks_of_core50_are_its_categories_of_objects() -> None:
    tasks = load_benchmark("core50").split.tasks
    assert isinstance(tasks, dict)
    assert [c for group in tasks.values() for c in group] == CORE50_OBJECTS
    for name, group in tasks.items():
        assert {c[:-1] for c in group} == {name.replace(" ", "_")}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_overrides_only_strategies_that_exist(name: str) -> None:
    """A misspelt ``[strategies.from_scrath]`` gives no error, because users' own strategies may have any name."""
    benchmark = load_benchmark(name)
    assert set(benchmark.strategies) <= set(STRATEGIES)
    for strategy, override in benchmark.strategies.items():
        recipe = load_strategy(strategy)
        strategy_class(recipe.class_path, {**recipe.args, **override.args})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_learns_resumes_and_serves(name: str, tmp_path: Path, ended: list[Path]) -> None:
    settings = ["split.tasks=[['0', '1'], ['2', '3']]", "split.shuffle=false", "model.args.widths=[8, 8]"]
    settings += ["training.epochs=6", f"split.scenario={'task' if 'task' in scenarios_of_class(name) else 'class'}"]
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(name), settings)
    spec = RunSpec(*pair, 0, log=("csv",))

    if name != "joint":  # whose second experience is over before it begins
        with pytest.raises(KeyboardInterrupt):
            run_one(spec, tmp_path, progress=stop_in_the_second)
    learned = set()
    folder = run_one(spec, tmp_path, progress=lambda experience, *_: learned.add(experience))
    record = json.loads((folder / "run.json").read_text())
    if name != "joint":
        assert learned == {1}  # the first is not learned again
        assert [resumed["after"] for resumed in record["resumed"]] == [1]
    for task, experience in enumerate(load_stream(spec).test_stream):
        network = load_network(folder, task if pair[0].split.scenario == "task" else None)
        images, labels = (torch.stack([torch.as_tensor(s[i]) for s in experience.dataset]) for i in (0, 1))
        assert float((network(images).argmax(1) == labels).double().mean()) == record["accuracy"][1][task]
        assert network.probabilities(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, len(network.classes))
    with open(folder / "log.csv", newline="") as file:
        points = [(row["name"], row["step"]) for row in csv.DictReader(file)]
    assert len(set(points)) == len(points)
    assert sum(point.startswith("Loss_Epoch") for point, _ in points) == (6 if name == "joint" else 12)
    accuracy = record["accuracy"]
    assert accuracy[0][0] > 0.8  # 0 from 1, and 2 from 3: chance is 0.5 and, of new classes, 0.25 at last
    assert accuracy[1][1] > 0.8
    (row,) = summary_rows(group_runs(load_runs([tmp_path])))
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx(sum(accuracy[1]) / 2)
    ended.append(folder)


@pytest.mark.usefixtures("undrawn")
def test_a_report_shows_the_runs_of_every_strategy_and_benchmark(ended: list[Path], tmp_path: Path) -> None:
    if not ended:
        pytest.skip("shows the runs of the tests above, of which none was chosen")
    runs = load_runs(ended)
    page = write_report(runs, tmp_path).html.read_text()
    titles = {run.benchmark.title for run in runs} | {run.strategy.title for run in runs}
    assert [title for title in titles if escape(title) not in page] == []
    assert "2, 3" in page
