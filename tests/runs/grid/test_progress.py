"""The live table shows the progress of a grid, on a terminal and elsewhere."""

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fscl.runs.grid.progress import Finished, Grid, LiveTable, draw
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.spec import RunSpec

LEARNERS = ("naive", "atom_swapping", "from_scratch")


def make_spec(learner: str, seed: int) -> RunSpec:
    settings = ["training.epochs=4", "training.epochs_next=2"]
    return RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy(learner), settings), seed)


ALL_LEARNED = [[0.9] * count for count in range(1, 6)]
GRID = [make_spec(learner, seed) for seed in (0, 1) for learner in LEARNERS]


def write(spec: RunSpec, out: Path, accuracy: list[list[float]], seconds: list[float], **more: Any) -> None:
    """Writes a record of five tasks. There is a row of accuracies for each learned task."""
    rows = [row + [None] * (5 - len(row)) for row in accuracy]
    times = {"train": [0.75 * s for s in seconds], "evaluate": [0.25 * s for s in seconds]}
    record = {
        "format": 1,
        "status": "running",
        "benchmark": {"name": spec.benchmark.name},
        "strategy": {"name": spec.strategy.name},
        "recipe_hash": spec.hash,
        "seed": spec.seed,
        "tasks": [{"name": str(task), "classes": []} for task in range(5)],
        "accuracy": rows,
        "seconds": times,
    }
    file = spec.folder(out) / "run.json"
    before = file.stat().st_mtime_ns if file.exists() else time.time_ns()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record | more))
    os.utime(file, ns=(before + 1, before + 1))  # whatever the file system's clock makes of it


def report(spec: RunSpec, out: Path, progress: float) -> None:
    (spec.folder(out) / "progress").write_text(json.dumps([progress, 1]))


def shown(grid: Grid, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(draw(grid.rows()))
    return [line for line in console.export_text().splitlines() if line.strip()]


def test_the_table_of_a_half_finished_grid_has_known_shares_accuracies_and_times(tmp_path: Path) -> None:
    grid = Grid(GRID, tmp_path, False, 100.0)
    assert [(row.tasks, row.accuracy, row.left) for row in grid.rows()] == [(0, None, None)] * 4
    naive, atoms, scratch = GRID[:3]
    # fine-tuning: one run finished, tasks of 8, 4, 4, 4 and 4 seconds; the other one is in its second task
    write(naive, tmp_path, [[1.0], [0.5, 0.9]], [8, 4])
    assert grid.look(110.0) == []
    write(naive, tmp_path, [[1.0], *[[0.9]] * 3, [0.5, 0.6, 0.7, 0.8, 0.9]], [8, 4, 4, 4, 4], status="finished")
    write(GRID[3], tmp_path, [[0.9]], [8])
    report(GRID[3], tmp_path, 1.5)
    # atom swapping: the first task, which has twice the epochs, took 10 seconds
    write(atoms, tmp_path, [[0.95]], [10])
    assert grid.look(130.0) == [Finished("Fine-tuning", 0, pytest.approx(0.7), 24)]
    assert grid.look(130.0) == []
    by_title = {row.title: row for row in grid.rows()}
    row = by_title["Fine-tuning"]
    assert (row.runs, row.finished, row.tasks, row.learned) == (2, 1, 10, 6)
    assert row.accuracy == pytest.approx((0.7 + 0.9) / 2)
    assert (row.done, row.elapsed) == (0.65, 30)
    # two at once: half a task and three more of fine-tuning, 14 s, beside four tasks of 5 s, 20 s; then the first run
    # of independent networks, of which nothing is known but the others' times; and so on
    assert row.left == pytest.approx(14)
    usual = (8 + 8 + 10) / 3 + 4 * 4
    assert by_title["Atom swapping"].left == pytest.approx(20 + 10 + 4 * 5)
    assert by_title["Independent networks"].left == pytest.approx(14 + 2 * usual)
    assert by_title["All"].left == pytest.approx(14 + 2 * usual)
    assert (by_title["All"].tasks, by_title["All"].learned, by_title["All"].accuracy) == (30, 7, None)
    grid.failed(scratch.folder(tmp_path))
    text = shown(grid)
    assert all(len(line) <= 80 for line in text)
    found = {line.split("  ")[0].strip(): line.split()[-6:] for line in text}
    assert found["Fine-tuning"] == ["1/2", "0", "6/10", "80.00", "0:30", "0:14"]
    assert found["Independent networks"] == ["0/2", "1", "0/10", "–", "0:30", "0:45"]  # 20 s and the others' times
    assert found["All"] == ["1/6", "1", "7/30", "–", "0:30", "0:45"]


def test_runs_that_will_be_overwritten_do_not_count_as_progress(tmp_path: Path) -> None:
    (spec,) = specs = GRID[:1]
    write(spec, tmp_path, ALL_LEARNED, [1] * 5, status="finished")
    assert Grid(specs, tmp_path, False, 0.0).rows()[0].finished == 1
    grid = Grid(specs, tmp_path, True, 0.0)
    grid.look(1.0)
    assert (grid.rows()[0].finished, grid.rows()[0].learned) == (0, 0)
    write(spec, tmp_path, [[0.8]], [2])
    grid.look(2.0)
    assert (grid.rows()[0].learned, grid.rows()[0].left) == (1, 4.0)
    # nor does what an interrupted process was about to do
    report(spec, tmp_path, 1.5)
    assert Grid(specs, tmp_path, False, 0.0).rows()[0].done == 0.2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"recipe_hash": 1}', '{"status": "finished"}'])
def test_half_written_and_foreign_files_do_not_change_the_progress(tmp_path: Path, text: str) -> None:
    (spec,) = specs = GRID[:1]
    grid = Grid(specs, tmp_path, False, 0.0)
    write(spec, tmp_path, [[0.9]], [1])
    report(spec, tmp_path, 1.5)
    grid.look(1.0)
    before = grid.rows()
    file = spec.folder(tmp_path) / "run.json"
    stamp = file.stat().st_mtime_ns
    file.write_text(text)
    (spec.folder(tmp_path) / "progress").write_text(text)
    grid.look(1.0)
    assert grid.rows() == before
    os.utime(file, ns=(stamp, stamp))  # the whole file, of the same time as the torn one
    write(spec, tmp_path, [[0.9], [0.5, 0.9]], [1, 1])
    grid.look(1.0)
    assert grid.rows()[0].learned == 2


def test_a_record_that_does_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in GRID:
        write(spec, tmp_path, ALL_LEARNED, [1] * 5, status="finished" if spec.seed else "running")
    read: list[str] = []
    read_text = Path.read_text

    def count(self: Path, *args: Any, **options: Any) -> str:
        read.append(self.name)
        return read_text(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", count)
    grid = Grid(GRID, tmp_path, False, 0.0)
    for second in range(5):
        grid.look(second)
    assert read.count("run.json") == len(GRID)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_live_table_on_a_terminal_and_one_line_a_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("fscl.runs.grid.progress.PAUSE", 0.01)
    text = io.StringIO()
    with LiveTable(GRID, tmp_path, False, Console(file=text, force_terminal=terminal, width=80)):
        for done in range(1, 6):
            for spec in GRID:
                status = "finished" if done == 5 else "running"
                write(spec, tmp_path, [[0.5] * n for n in range(1, done + 1)], [1.0] * done, status=status)
            time.sleep(0.03)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    if terminal:
        assert plain.count("Strategy") > 2
        (last,) = [line for line in plain.split("Strategy")[-1].splitlines() if "All" in line]
        assert last.split()[-5:-2] == ["6/6", "30/30", "–"]
    else:
        assert sorted(plain.splitlines()) == sorted(
            f"{title}, seed {seed}: 50.00 % in 0:05"
            for title in ("Atom swapping", "Fine-tuning", "Independent networks")
            for seed in (0, 1)
        )
