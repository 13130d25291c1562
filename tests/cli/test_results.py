"""What ``fscl run`` and ``fscl report`` print and report, of runs that are finished already: nothing is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fscl import load_runs
from fscl.cli.output import Output
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.spec import RunSpec

Fscl = Callable[..., Any]  # the fixture, see conftest.py
pytestmark = pytest.mark.usefixtures("undrawn")

ACCURACY = [[1.0, None, None, None, None]] + [[0.5] * t + [1.0] + [None] * (4 - t) for t in range(1, 5)]


def finished(strategy: str, seed: int = 0, out: str = "runs", **changes: Any) -> Path:
    """A finished run of split_digits, which ``fscl run`` does not do again."""
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(strategy), [])
    spec = RunSpec(*pair, seed)
    file = spec.folder(Path(out)) / "run.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    names = ["0, 1", "2, 3", "4, 5", "6, 7", "8, 9"]
    data = {
        "format": 1,
        "status": "finished",
        "benchmark": spec.benchmark.model_dump(by_alias=True),
        "strategy": spec.strategy.model_dump(by_alias=True),
        "recipe_hash": spec.hash,
        "seed": seed,
        "started": f"2026-01-01T00:00:0{seed}+00:00",
        "tasks": [{"name": name, "classes": name.split(", ")} for name in names],
        "accuracy": ACCURACY,
        "seconds": {"train": [1.0] * 5, "evaluate": [1.0] * 5},
        "memory": {"per_task": {"head": 8}, "shared": {"other": 100}},
        **changes,
    }
    file.write_text(json.dumps(data))
    return file


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reported(folder: str = "runs/split_digits/report") -> list[tuple[str, int]]:
    return [(run.strategy.name, run.seed) for run in load_runs(folder)]


def test_a_second_smaller_command_keeps_the_runs_of_the_first_in_the_report(fscl: Fscl) -> None:
    for strategy in ("naive", "ewc"):
        for seed in range(2):
            finished(strategy, seed)
    assert fscl("run", "-s", "naive", "-s", "ewc", "--seeds", 2).code == 0
    everything = reported()
    assert everything == [("ewc", 0), ("ewc", 1), ("naive", 0), ("naive", 1)]
    for to, folder in ((), "runs/split_digits/report"), (("--report", "elsewhere"), "elsewhere"):
        ended = fscl("run", "-s", "naive", "--seeds", 1, *to)
        assert (ended.code, ended.err) == (0, "")
        assert reported(folder) == everything
        assert "Fine-tuning" in ended.out
        assert "EWC" not in ended.out, "the table shows the runs of the command"
        assert "The table shows the 1 run of this command; the report has all 4 runs.\n" in ended.out
        assert ended.out.endswith(f"Report: {folder}/index.html\n")
    by_report = fscl("report", "runs/split_digits", "-o", "by_report")
    assert by_report.code == 0
    assert Path("by_report/README.md").read_text() == Path("elsewhere/README.md").read_text()
    assert "of this command" not in fscl("run", "-s", "naive", "-s", "ewc", "--seeds", 2).out


def test_a_report_lists_runs_of_other_commands_that_failed_go_on_or_have_another_recipe(fscl: Fscl) -> None:
    finished("naive")
    finished("ewc", status="running", accuracy=ACCURACY[:2])
    finished("lwf", status="failed", accuracy=ACCURACY[:1], error="out of luck")
    finished("naive", 1, recipe_hash="ffffffffffff")
    damaged = finished("si")
    damaged.write_text("{")
    ended = fscl("run", "-s", "naive", "--seeds", 1)
    assert ended.code == 0
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(f"left out: {damaged.resolve()}: cannot be read as JSON")
    page = Path("runs/split_digits/report/README.md").read_text()
    assert "EWC, seed 0: running, 2 of 5 tasks" in page
    assert "failed, 1 of 5 tasks (out of luck)" in page
    assert "| Fine-tuning (fffffff) | 1 |" in page
    assert "the 1 run of this command; the report has all 4 runs" in ended.out


def test_show_has_the_accuracy_after_learning_of_each_task_that_an_unfinished_run_learned(fscl: Fscl) -> None:
    folder = finished("ewc", status="running", accuracy=ACCURACY[:2]).parent
    shown = [line.split() for line in fscl("show", folder).out.splitlines()[-5:]]
    after_learning = [f"{100 * ACCURACY[task][task]:.2f}" for task in range(2)]
    assert [line[-2] for line in shown] == [*after_learning, "–", "–", "–"]
    at_once = fscl("show", finished("joint").parent).out.splitlines()[-5:]
    assert [line.split()[-2:] for line in at_once] == [["–", "50.00"]] * 4 + [["–", "100.00"]]


def test_fscl_report_says_how_many_runs_its_table_leaves_out(fscl: Fscl) -> None:
    finished("naive")
    assert "Not in the table" not in fscl("report", "runs").out
    finished("ewc", status="running", accuracy=ACCURACY[:2])
    assert "Not in the table: 1 run that failed or did not finish" in fscl("report", "runs").out
    finished("lwf", status="failed", accuracy=ACCURACY[:1], error="out of luck")
    assert "Not in the table: 2 runs that failed or did not finish" in fscl("report", "runs").out


def test_a_copy_of_a_run_beside_it_does_not_keep_a_command_from_its_report(fscl: Fscl) -> None:
    file = finished("naive")
    copy = Path("runs/split_digits/old/seed_0/run.json")
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps({**json.loads(file.read_text()), "started": "2025-01-01T00:00:00+00:00"}))
    ended = fscl("run", "-s", "naive", "--seeds", 1)
    assert ended.code == 0
    assert ended.err == f"left out: {copy.resolve()}: a copy of {file.resolve()}\n"
    assert reported() == [("naive", 0)]


def test_json_on_stdout_has_the_runs_of_the_command_and_the_paths_of_the_report(fscl: Fscl) -> None:
    finished("naive")
    finished("ewc")
    ended = fscl("run", "-s", "naive", "--seeds", 1, "--json")
    assert (ended.code, ended.err) == (0, "")
    printed = json.loads(ended.out)
    (row,) = printed["runs"]
    assert (row["strategy"], row["accuracy"], row["forgetting"], row["error"]) == ("naive", 0.6, 0.5, None)
    assert row["forward_transfer"] is None, "JSON has no NaN"
    assert row["bytes_in_all"] == 5 * 8 + 100
    assert Path(row["record"]).samefile("runs/split_digits/naive/seed_0/run.json")
    for file in (printed["report"]["html"], *printed["report"]["tables"]):
        assert Path(file).is_file()
    of_all = json.loads(fscl("report", "runs", "--json").out)
    assert [run["strategy"] for run in of_all["runs"]] == ["ewc", "naive"]
    assert of_all["report"]["html"] == "report/index.html"


def test_json_names_a_run_that_failed(fscl: Fscl, monkeypatch: pytest.MonkeyPatch) -> None:
    finished("naive")
    failed = finished("ewc", status="failed", accuracy=[], error="out of luck")

    def sweep(specs: list[RunSpec], out: Path, *_: Any, **__: Any) -> list[Any]:
        from fscl.runs.grid.sweep import Outcome

        print("a learner prints")
        return [Outcome(s, s.folder(out), "out of luck" if s.strategy.name == "ewc" else "", True) for s in specs]

    monkeypatch.setattr("fscl.runs.grid.sweep.sweep", sweep)
    ended = fscl("run", "-s", "naive", "-s", "ewc", "--seeds", 1, "--json")
    assert ended.code == 1
    assert ended.err == "a learner prints\nerror: runs/split_digits/ewc/seed_0: out of luck\n"
    rows = {run["strategy"]: run for run in json.loads(ended.out)["runs"]}
    assert (rows["ewc"]["status"], rows["ewc"]["accuracy"], rows["ewc"]["error"]) == ("failed", None, "out of luck")
    assert Path(rows["ewc"]["record"]) == failed.resolve()
    assert rows["naive"]["accuracy"] == 0.6


@pytest.mark.parametrize("command", [["run", "-s", "naive", "--seeds", "1"], ["report", "runs"]])
def test_quiet_prints_only_errors(fscl: Fscl, command: list[str]) -> None:
    finished("naive")
    assert fscl(*command, "-q") == (0, "", "")
    assert fscl(*command, "--quiet", "--json").out.startswith("{")
    Path("file").write_text("x")
    where = "--report" if command[0] == "run" else "--out"
    ended = fscl(*command, "-q", where, "file/report")
    assert (ended.code, ended.out) == (2, "")
    assert "file/report" in ended.err


def test_what_other_processes_print_goes_to_stderr_while_only_results_go_to_stdout(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Output().only_results():
        print("a learner")
        os.system("echo a process")
    print("a result", flush=True)
    out, err = capfd.readouterr()
    assert out == "a result\n"
    assert sorted(err.splitlines()) == ["a learner", "a process"]
