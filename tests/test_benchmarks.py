"""The benchmark scripts: what they compute from timings, that they run, and that the committed page is theirs."""

import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Imports a script of ``benchmarks/`` as the command does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in [n for n, m in sys.modules.items() if str(ROOT / "benchmarks") in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


def test_contenders_take_turns_and_ratios_are_those_of_rounds(script):
    timing, order = script("timing"), []
    seconds = iter([1.0, 2.0, 4.0, 1.0, 1.0, 3.0])  # a, b | b, a | a, b

    def call(name):
        order.append(name)
        return next(seconds)

    taken = timing.alternately({n: lambda n=n: call(n) for n in "ab"}, rounds=3, warmup=0)
    assert "".join(order) == "abbaab"
    assert taken == {"a": [1.0, 1.0, 1.0], "b": [2.0, 4.0, 3.0]}
    ratio = timing.ratio(taken["b"], taken["a"])
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (3.0, 2.5, 3.5, 3)


def test_what_a_call_does_not_time_itself_is_timed(script):
    timing = script("timing")
    taken = timing.alternately({"nothing": lambda: None}, rounds=4, warmup=1)["nothing"]
    assert len(taken) == 4
    assert all(0 < s < 1 for s in taken)
    assert len(timing.alternately({"x": lambda: 1.0}, rounds=9, warmup=0, budget=-1.0)["x"]) == 3


def test_training_is_measured_of_three_contenders(script, monkeypatch):
    speed = script("speed_training")
    monkeypatch.setattr(speed, "CASES", (("split_digits", {"training.precision": "bfloat16"}, "atom_swapping"),))
    found = speed.measure(quick=True)
    (row,) = found["rows"]
    assert set(row["images_per_second"]) == {"bare", "fscl", "avalanche"}
    assert all(v["low"] <= v["median"] <= v["high"] for v in row["images_per_second"].values())
    assert row["precision"] == "bfloat16"
    assert found["skipped"] == []
    monkeypatch.setattr(speed, "CASES", (("split_cifar100", {}, "naive"),))
    monkeypatch.setattr(speed, "find_data", lambda *_: None)
    assert speed.measure(quick=True)["skipped"] == ["split_cifar100: its images are not here"]


def test_the_committed_page_is_written_from_the_committed_numbers(script, tmp_path):
    committed = ROOT / "reports" / "speed"
    numbers = json.loads((committed / "results.json").read_text(encoding="utf-8"))
    text = script("speed_report").write_report(numbers, tmp_path)
    assert text == (committed / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert (tmp_path / "similarity.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "learners", "seeds"),
    [("split_digits", 21, 5), ("split_fmnist", 21, 3), ("split_cifar100", 10, 3), ("rotated_fmnist", 5, 3)],
)
def test_committed_runs_are_of_the_recipes_as_they_are(name: str, learners: int, seeds: int) -> None:
    """So that the command beside each table gives these numbers again."""
    from fscl.suite.recipe import load_benchmark, load_strategy, with_overrides
    from fscl.suite.results import load_runs
    from fscl.suite.run import RunSpec

    found = defaultdict(set)
    for run in load_runs([ROOT / "reports" / name]):
        pair = with_overrides(load_benchmark(run.benchmark["name"]), load_strategy(run.strategy["name"]))
        assert RunSpec(*pair, run.seed).hash == run.recipe_hash, run.strategy["name"]
        found[run.strategy["name"]].add(run.seed)
    assert len(found) >= learners
    assert {frozenset(runs) for runs in found.values()} == {frozenset(range(seeds))}


@pytest.mark.parametrize("name", ["split_cifar100", "rotated_fmnist", "split_digits_class"])
def test_recipes_have_the_settings_that_tuning_found(name: str) -> None:
    from fscl.suite.recipe import load_benchmark, load_strategy, with_overrides

    tuned = json.loads((ROOT / "reports" / name / "tune.json").read_text(encoding="utf-8"))
    for strategy, found in tuned["strategies"].items():
        benchmark, learner = with_overrides(load_benchmark(name), load_strategy(strategy))
        training = benchmark.training.model_dump()
        now = {"args": learner.args, "training": training | {"lr_next": training["lr_next"] or training["lr"]}}
        for key, value in found["best"].items():
            part, _, setting = key.partition(".")
            assert now[part][setting] == value, (strategy, key)


def test_the_reports_say_what_their_committed_runs_say():
    from fscl.suite.report import escape_markdown
    from fscl.suite.results import load_runs
    from fscl.suite.summary import summary_rows

    kept = sorted((ROOT / "reports").glob("*/runs.json"))
    assert len(kept) >= 2
    for file in kept:
        report = (file.parent / "README.md").read_text(encoding="utf-8").splitlines()
        for row in summary_rows(load_runs([file])):
            assert "| " + " | ".join(map(escape_markdown, row.cells())) + " |" in report
