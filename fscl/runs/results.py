"""Run folders -> typed results. Reads what the runner wrote; imports neither torch nor Avalanche."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.plain import read_json
from fscl.runs.record import FORMAT, YEARS, OtherFormatError, Record, Seconds, Similarity, Sizes, numbers, read_record

__all__ = [
    "FORMAT",
    "Memory",
    "OtherFormatError",
    "RunResult",
    "SimilarityResult",
    "TaskInfo",
    "load_run",
    "load_runs",
    "write_runs",
]

KEPT = "runs.json"  # the runs of a report, in its folder
AT_ONCE = "fscl.continual.Joint"  # the class for which there are no later tasks

LeaveOut = Callable[[FsclError], object]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class TaskInfo:
    """One task of a stream: its name and the classes in it."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """What a run stored, in bytes by kind: for one more task (a mean over tasks), and once for all tasks."""

    per_task: Mapping[str, float] = field(default_factory=dict)
    shared: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_per_task(self) -> float:
        return float(sum(self.per_task.values()))


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class SimilarityResult:
    """Task-to-task similarity of every layer: ``matrix`` is (L, T, T), 1 on the diagonals."""

    metric: str
    aggregate: str
    layers: tuple[str, ...]
    matrix: Array


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class RunResult:
    """One benchmark x strategy x seed, as found in its ``run.json``.

    ``accuracy[t, i]`` is the accuracy on task ``i`` after experience ``t``, a fraction. It has a row for each finished
    experience, fewer than T while a run is unfinished. ``transfer[j, i]`` is the nearest-class-mean accuracy on task
    ``i`` of the features after task ``j``.
    """

    path: Path
    status: Literal["running", "finished", "failed"]
    benchmark: Mapping[str, Any]
    strategy: Mapping[str, Any]
    recipe_hash: str
    seed: int
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    tasks: tuple[TaskInfo, ...]
    accuracy: Array
    transfer: Array | None
    untrained: Array | None
    start: Array | None
    train_seconds: Array
    evaluate_seconds: Array
    memory: Memory
    similarity: SimilarityResult | None
    provenance: str | None
    record: Mapping[str, Any]
    validation: float = 0.0
    first: int | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def stream(self) -> str:
        """What runs must share to be compared: the benchmark, how many of its tasks, and the images tested on."""
        part = [f"first {self.first} tasks"] if self.first is not None else []
        held_out = [f"{100 * self.validation:.3g} % of the training images held out"] if self.validation else []
        return ", ".join([str(self.benchmark["name"]), *part, *held_out])

    @property
    def bound(self) -> str | None:
        """``upper`` or ``lower`` for what bounds learners, see ``fscl.runs.schema.StrategyRecipe``."""
        return self.strategy.get("bound")

    @property
    def at_once(self) -> bool:
        """Whether all tasks were learned together, so that there is no accuracy after each of them."""
        return self.strategy.get("class") == AT_ONCE

    @property
    def stored(self) -> float:
        """Bytes of everything that is kept in the end: for each of the tasks, and once for all."""
        return self.memory.bytes_per_task * len(self.tasks) + float(sum(self.memory.shared.values()))

    @property
    def square(self) -> bool:
        """Whether there is a row of accuracies for every task, so that forgetting and its kin are defined."""
        return self.accuracy.shape == (len(self.tasks), len(self.tasks))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def seconds(self) -> float:
        """Training and evaluation together."""
        return float(self.train_seconds.sum() + self.evaluate_seconds.sum())


def _refuse(error: FsclError) -> None:
    raise error


def load_runs(paths: Iterable[str | Path], leave_out: LeaveOut = _refuse) -> list[RunResult]:
    """Every run under the given folders (or ``run.json`` files), unfinished ones included.

    A folder that a report was written to holds its runs in ``runs.json``; it, or that file, may be given as well.
    Sorted by stream, strategy, recipe hash and seed. A run reached by two paths is read once, as far as it has come; of
    a report's runs, those that its folder holds anew are left out. A path that does not exist, or nothing found at
    all, raises :class:`FsclError`. So does a record that cannot be read, unless ``leave_out`` takes its error.
    """
    given = [Path(path) for path in paths]
    found: dict[Path, None] = {}
    for path in given:
        if not path.exists():
            raise FsclError(f"{path}: no such file or folder; give a folder that `fscl run --out` wrote")
        # not those of reports further down: they may be of runs that have since been made again
        kept = [path / KEPT] if (path / KEPT).is_file() else []
        # unlike rglob, os.walk goes on where a folder vanishes, as those of files that are being written do
        below = [Path(folder, "run.json") for folder, _, names in os.walk(path) if "run.json" in names]
        for file in [path] if path.is_file() else [*kept, *sorted(below)]:
            found[file.resolve()] = None
    runs: dict[object, RunResult] = {}
    for file in found:
        for run in _load(file, leave_out):
            known = runs.get(_identity(run))
            if known is None or _how_far(run) > _how_far(known):
                runs[_identity(run)] = run
    if not runs:
        where = ", ".join(map(str, given)) or "no folder given"
        none = "no run.json can be read" if found else "no run.json found"
        raise FsclError(f"{none} ({where}); give a folder that `fscl run --out` wrote")
    made_again = {(place, _place(run)) for run in runs.values() if run.path.name != KEPT for place in run.path.parents}
    now = [run for run in runs.values() if run.path.name != KEPT or (run.path.parent, _place(run)) not in made_again]
    return sorted(now, key=lambda r: (r.stream, r.strategy["name"], r.recipe_hash, r.seed, str(r.path)))


def write_runs(runs: Iterable[RunResult], file: Path) -> None:
    """Write the records of runs into one file, which :func:`load_runs` reads, so that a report can be made again."""
    text = ",\n".join(json.dumps(run.record, separators=(",", ":")) for run in runs)
    text = f'{{"format": {FORMAT}, "runs": [\n{text}\n]}}\n'
    write_text_atomically(file, text)


def _identity(run: RunResult) -> object:
    """Of one and the same run, in its folder or in a report's file: when it was started."""
    started = run.record.get("started")
    return (*_place(run), started) if started else run.path


def _place(run: RunResult) -> tuple[object, ...]:
    """What two runs that must not both be counted have in common."""
    return run.stream, run.strategy["name"], run.recipe_hash, run.seed


def _how_far(run: RunResult) -> tuple[bool, int]:
    return run.finished, len(run.accuracy)


def _load(file: Path, leave_out: LeaveOut) -> list[RunResult]:
    try:
        return _load_kept(file, leave_out) if file.name == KEPT else [load_run(file)]
    except FsclError as error:
        leave_out(error)
        return []


def _load_kept(file: Path, leave_out: LeaveOut) -> list[RunResult]:
    data = read_json(file)
    records = data.get("runs") if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise FsclError(f"{file}: it lacks its list of runs")
    runs = []
    for number, record in enumerate(records):
        try:
            runs.append(_result(file, record, f"{file}, run {number}"))
        except FsclError as error:
            leave_out(error)
    return runs


def load_run(file: str | Path) -> RunResult:
    """Read one ``run.json``. :class:`FsclError` names the file and what is wrong with it."""
    file = Path(file)
    return _result(file, read_json(file), str(file))


def _result(file: Path, data: Any, where: str) -> RunResult:
    record = read_record(where, data)
    try:
        return _parse(file, data, record)
    except ValueError as error:
        raise FsclError(f"{where}: {error}") from error


def _parse(file: Path, data: Mapping[str, Any], record: Record) -> RunResult:
    count = len(record.tasks)
    accuracy = numbers(record.accuracy, "accuracy", (None, count))
    if record.status == "finished" and (not len(accuracy) or np.isnan(accuracy[-1]).any()):
        raise ValueError("the run is finished but has no accuracies")
    seconds, memory = record.seconds or Seconds(), record.memory or Sizes()
    return RunResult(
        path=file,
        status=record.status,
        benchmark=data["benchmark"],
        strategy=data["strategy"],
        recipe_hash=record.recipe_hash,
        seed=record.seed,
        versions=record.versions or {},
        machine=record.machine or {},
        tasks=tuple(TaskInfo(task.name, tuple(map(str, task.classes))) for task in record.tasks),
        accuracy=accuracy,
        transfer=numbers(record.transfer, "transfer", (None, count)) if record.transfer else None,
        untrained=numbers(record.untrained, "untrained", (count,)) if record.untrained else None,
        start=numbers(record.start, "start", (None,)) if record.start else None,
        train_seconds=numbers(seconds.train, "seconds.train", (None,), high=YEARS),
        evaluate_seconds=numbers(seconds.evaluate, "seconds.evaluate", (None,), high=YEARS),
        memory=Memory(memory.per_task or {}, memory.shared or {}),
        similarity=_similarity(record.similarity, count) if record.similarity else None,
        provenance=record.provenance,
        record=data,
        validation=record.validation or 0.0,
        first=record.first,
    )


def _similarity(data: Similarity, tasks: int) -> SimilarityResult:
    matrix = numbers(data.matrix, "similarity.matrix", (len(data.layers), None, None), low=-1.01, high=1.01)
    if matrix.shape[1] != matrix.shape[2] or matrix.shape[1] > tasks:
        raise ValueError(f"similarity.matrix has shape {matrix.shape}; it must be (L, T, T)")
    return SimilarityResult(data.metric, data.aggregate or "product", tuple(data.layers), matrix)
