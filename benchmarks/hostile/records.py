"""Records of runs, checkpoints and reports of workers that are damaged or have any values."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.hostile.mutations import as_json, flip_bit, mutate_bytes, mutate_values
from benchmarks.hostile.trial import Trial
from fscl.report.provenance import SETTINGS, memory_columns, provenance
from fscl.report.runs import Runs, load_runs
from fscl.report.summary import group_runs, summary_rows
from fscl.report.table import COLUMNS
from fscl.report.terminal import rich_table
from fscl.runs.grid.progress import Grid
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.records.record import RunRecord
from fscl.runs.results import write_runs
from fscl.runs.resume import read_checkpoint
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

__all__ = ["CHANGES", "TEXTS", "told", "trials", "unfinished"]

CHANGES: tuple[tuple[str, Any], ...] = (
    ("format", 10**4000), ("format", True), ("format", None), ("format", "1"), ("status", []), ("benchmark", None),
    ("benchmark", {}), ("benchmark", {"name": 3}), ("benchmark", {"name": "a\nb"}),
    ("benchmark", {"name": "x" * 10**6}),
    ("benchmark", {"name": "x", "training": []}), ("benchmark", {"name": "x", "model": 3}), ("strategy", "x"),
    ("benchmark", {"name": "x", "training": {"epochs": [[]]}}), ("strategy", {"name": "\ud800"}), ("seed", "0"),
    ("strategy", {"name": "x", "args": 3}), ("strategy", {"name": "x", "bound": "sideways"}), ("seed", 10**400),
    ("seed", 0.5), ("seed", None), ("recipe_hash", 7), ("recipe_hash", {}), ("versions", []), ("machine", "fast"),
    ("machine", {"threads": {}}), ("tasks", None), ("tasks", [3]), ("tasks", [{"name": "x"}]), ("tasks", {"a": 1}),
    ("accuracy", None), ("accuracy", "0.9"), ("accuracy", [["0.9"]]), ("accuracy", [[10**400]]), ("accuracy", [[9]]),
    ("accuracy", {"0": 1}), ("accuracy", [0.9]), ("transfer", [[True]]), ("transfer", [[1], [1, 2]]), ("start", [[]]),
    ("untrained", 3), ("untrained", [0.5]), ("seconds", 3), ("seconds", {"train": ["x"]}), ("seconds", {"train": [-1]}),
    ("seconds", {"train": [1.0]}), ("seconds", {"train": [1.0], "evaluate": [1.0, 2.0]}),
    ("seconds", {"train": [1e308, 1e308]}), ("memory", []), ("memory", {"per_task": {"a": "b"}}), ("first", 0),
    ("memory", {"per_task": {"a": -1}}), ("memory", {"shared": 3}), ("similarity", []), ("similarity", {"layers": 3}),
    ("similarity", {"metric": "cosine", "layers": ["a"], "matrix": [[["x"]]]}), ("similarity", 7), ("validation", "x"),
    ("similarity", {"metric": "cosine", "layers": ["a"], "matrix": [[[1e300]]]}), ("validation", 1e9), ("error", {}),
    ("started", 3), ("provenance", ["atoms"]), ("first", "x"), ("more", float("nan")), ("more", "\udcff"),
)  # fmt: skip
TEXTS = (
    b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b"9" * 100_000, b"NaN",
    b'{"format": 1}', b'{"format": 1e999}', b'{"format": 1, "status": "finished"}', b"\0" * 1000, b'{"format": 1,}',
)  # fmt: skip


def trials(folder: Path, rng: Random, count: int) -> Iterator[Trial]:
    record = _finished()
    whole = json.dumps(record).encode()
    for key, value in CHANGES:
        text = as_json({**record, key: value})
        yield Trial(f"a record's {key}", lambda text=text: told(folder, text))
    for text in TEXTS:
        yield Trial("a record of odd text", lambda text=text: told(folder, text))
    for _ in range(count):
        text = as_json(mutate_values(record, rng))
        yield Trial("a record of any values", lambda text=text: told(folder, text))
    for _ in range(count):
        damaged = mutate_bytes(whole, rng)
        yield Trial("random damage of a record", lambda damaged=damaged: told(folder, damaged))
    for _ in range(count // 4):
        damaged = mutate_bytes(whole, rng)
        beside = partial(others_shown, folder, damaged, as_json({**record, "seed": 99}))
        yield Trial("a damaged record among others", beside, may_refuse=False)
    for _ in range(count // 4):
        report = as_json(mutate_values([1.5, 123], rng))
        yield Trial("what a worker reports", lambda report=report: watched(folder, report), may_refuse=False)
    checkpoint, spec = unfinished(folder)
    content = checkpoint.read_bytes()
    for number in range(count):
        damaged = flip_bit(content, rng) if number % 2 else mutate_bytes(content, rng)
        yield Trial("damage of a checkpoint", lambda damaged=damaged: _taken_up(folder, damaged, spec))


def told(folder: Path, text: bytes, shown: Callable[[Runs], list[object]] | None = None) -> bool:
    """Whether the tables of a report can be made from a record, and it reads back as its JSON; without figures.

    Args:
        folder: for files.
        text: the record.
        shown: makes what a report has on the record's kind, and returns the cells of its tables; by default that on a
            stream.
    """
    place = folder / f"told{os.getpid()}"
    place.mkdir(exist_ok=True)
    (place / "run.json").write_bytes(text)
    (place / "runs.json").unlink(missing_ok=True)  # written for the record before
    runs = load_runs([place])
    data = json.loads(text)
    cells = (shown or _shown)(runs)
    write_runs(runs, place / "runs.json")
    (run,) = load_runs([place / "runs.json"])
    columns = len(run.tasks) if isinstance(run, RunRecord) else 0  # of a run that measured nothing yet
    expected = np.array(data["accuracy"] or np.empty((0, columns)), dtype=np.float64)
    same = np.array_equal(run.accuracy, expected, equal_nan=True) and run.seed == data["seed"]
    return same and all(isinstance(cell, str) for cell in cells)


def _shown(runs: Runs) -> list[object]:
    groups = group_runs(runs)
    rows = summary_rows(groups)
    cells: list[object] = [column.cell(row) for row in rows for column in COLUMNS.values()]
    cells += [column.cell(group) for group in groups for column in (*SETTINGS, *memory_columns(groups))]
    rich_table(rows)
    provenance(runs[0].stream, runs, groups)
    return cells


def others_shown(folder: Path, damaged: bytes, whole: bytes) -> bool:
    """Whether a good record beside a damaged one is loaded, and each record that is left out gives one line."""
    place = folder / f"others{os.getpid()}"
    for name, text in (("a", damaged), ("b", whole)):
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / "run.json").write_bytes(text)
    errors: list[str] = []
    runs = load_runs([place], lambda error: errors.append(str(error)))
    return any(run.path.parent.name == "b" for run in runs) and all("\n" not in line for line in errors)


def watched(folder: Path, report: bytes) -> bool:
    """Whether the live table shows shares from 0 to 1, whatever the report of a worker says."""
    spec = RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy("naive")), 0)
    out = folder / f"watched{os.getpid()}"
    spec.folder(out).mkdir(parents=True, exist_ok=True)
    grid = Grid([spec], out, False, 0.0)
    begun = {"recipe_hash": spec.hash, "status": "running", "accuracy": [[1.0, *[None] * 4]]}
    begun["seconds"] = {"train": [1.0], "evaluate": [1.0]}
    (spec.folder(out) / "run.json").write_bytes(as_json({**_finished(), **begun}))
    (spec.folder(out) / "progress").write_bytes(report)
    grid.look(1.0)
    return all(0 <= row.done <= 1 for row in grid.rows())


def unfinished(folder: Path) -> tuple[Path, RunSpec]:
    """The checkpoint and the spec of a run that was stopped after its first task."""
    settings = ["training.epochs=1", "model.args.widths=[4]"]
    spec = RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy("ewc"), settings), 0)

    def stop(experience: int, *_: int) -> None:
        if experience == 1:
            raise KeyboardInterrupt

    shutil.rmtree(spec.folder(folder), ignore_errors=True)
    with contextlib.suppress(KeyboardInterrupt):
        run_one(spec, folder, progress=stop)
    return spec.folder(folder) / "checkpoint.pt", spec


def _taken_up(folder: Path, damaged: bytes, spec: RunSpec) -> bool:
    path = folder / f"checkpoint{os.getpid()}.pt"
    path.write_bytes(damaged)
    read_checkpoint(path, spec)
    return False  # a damaged checkpoint must be refused


def _finished() -> dict[str, Any]:
    """A finished record from a committed report."""
    kept = Path(__file__).parents[2] / "reports/split_digits/runs.json"
    runs = json.loads(kept.read_text(encoding="utf-8"))["runs"]
    return next(run for run in runs if run["strategy"]["name"] == "atom_swapping")
