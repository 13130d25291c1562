"""Reads the records of runs from their folders and from reports. Imports neither torch nor Avalanche."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.plain import check_plain, read_json
from fscl.runs.records.federated import ARRAYS as FEDERATED_ARRAYS
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.records.record import ARRAYS, FORMAT, OtherFormatError, Record, RunRecord
from fscl.text import brief

__all__ = [
    "KEPT",
    "LeaveOut",
    "federations_of",
    "find_task",
    "load_run",
    "load_stream_run",
    "read_record",
    "read_runs",
    "refuse",
    "run_in",
    "run_key",
    "runs_text",
    "streams_of",
    "write_runs",
]

KEPT = "runs.json"  # file in a report's folder that holds the records of its runs

LeaveOut = Callable[[FsclError], object]


def refuse(error: FsclError) -> None:
    """Raises the error of a record that cannot be read."""
    raise error


def read_runs(paths: Iterable[Path], leave_out: LeaveOut) -> list[Record]:
    """The records behind :func:`fscl.load_runs`, which describes arguments, order and errors."""
    given_paths = list(paths)
    files: dict[Path, None] = {}
    for path in given_paths:
        if not path.exists():
            raise FsclError(f"{path}: no such file or folder; give a folder that `fscl run --out` wrote")
        # Reports in subfolders are not read: their runs may have been made again since.
        report = [path / KEPT] if (path / KEPT).is_file() else []
        # os.walk goes on if a temporary folder vanishes meanwhile; rglob would raise.
        below = [Path(folder, "run.json") for folder, _, names in os.walk(path) if "run.json" in names]
        for file in [path] if path.is_file() else [*report, *sorted(below)]:
            files[file.resolve()] = None
    runs: dict[object, Record] = {}
    for file in files:
        for run in _load(file, leave_out):
            known = runs.get(_identity(run))
            if known is None or _how_far(run) > _how_far(known):
                runs[_identity(run)] = run
    if not runs:
        where = ", ".join(map(str, given_paths)) or "no folder given"
        reason = "no run.json can be read" if files else "no run.json found"
        raise FsclError(f"{reason} ({where}); give a folder that `fscl run --out` wrote")
    in_folders = [run for run in runs.values() if run.path.name != KEPT]
    made_again = {(folder, run_key(run)) for run in in_folders for folder in run.path.parents}
    kept = [run for run in runs.values() if run.path.name == KEPT]
    latest = in_folders + [run for run in kept if (run.path.parent, run_key(run)) not in made_again]
    return sorted(latest, key=lambda r: (r.stream, r.strategy.name, r.recipe_hash, r.seed, str(r.path)))


def write_runs(runs: Iterable[Record], file: Path) -> None:
    """Writes the records of runs into one file, from which :func:`fscl.load_runs` reads them again."""
    write_text_atomically(file, runs_text(runs))


def runs_text(runs: Iterable[Record]) -> str:
    """The text that :func:`write_runs` writes."""
    text = ",\n".join(json.dumps(run.to_json(), separators=(",", ":")) for run in runs)
    return f'{{"format": {FORMAT}, "runs": [\n{text}\n]}}\n'


def _identity(run: Record) -> object:
    """Equal for two records of one run, in its folder and in a report. The start time tells repeated runs apart."""
    return (*run_key(run), run.started or run.path)


def run_key(run: Record) -> tuple[object, ...]:
    """Equal for two runs of which a report may count only one."""
    return run.stream, run.strategy.name, run.recipe_hash, run.seed


def _how_far(run: Record) -> tuple[bool, int]:
    return run.finished, run.steps


def _load(file: Path, leave_out: LeaveOut) -> list[Record]:
    try:
        return _load_kept(file, leave_out) if file.name == KEPT else [load_run(file)]
    except FsclError as error:
        leave_out(error)
        return []


def _load_kept(file: Path, leave_out: LeaveOut) -> list[Record]:
    data = read_json(file)
    records = data.get("runs") if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise FsclError(f"{file}: key 'runs' is missing or not a list")
    runs = []
    for number, record in enumerate(records):
        try:
            runs.append(read_record(f"{file}, run {number}", record, file))
        except FsclError as error:
            leave_out(error)
    return runs


def read_record(where: object, data: Any, file: Path = Path()) -> Record:
    """The record in JSON data.

    Args:
        where: the beginning of error messages, such as the file's name.
        data: the parsed JSON.
        file: the file that it was read from.

    Raises:
        OtherFormatError: the record has another format.
        FsclError: the data is not a valid record. The message names the wrong key.
    """
    version = data.get("format") if isinstance(data, dict) else type(data).__name__
    if type(version) is not int or version != FORMAT:
        raise OtherFormatError(f"{where}: format is {brief(version)}; this version of fscl reads format {FORMAT}")
    benchmark = data.get("benchmark")
    federated = isinstance(benchmark, dict) and bool(benchmark.get("federation"))
    check_plain(where, data, FEDERATED_ARRAYS if federated else ARRAYS)
    try:
        record = (FederatedRecord if federated else RunRecord).model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        place = place if place.isprintable() and len(place) < 200 else brief(place)
        if first["type"] == "missing":
            raise FsclError(f"{where}: key {place!r} is missing") from error
        if first["type"] == "value_error":
            fault = f"{place} {first['ctx']['error']}".strip()  # there is no place if several keys are to blame
            raise FsclError(f"{where}: {fault}") from error
        fault = first["msg"].replace("Input should be", "it must be")
        raise FsclError(f"{where}: {place} is {brief(first['input'])}; {fault}") from error
    record._path = file
    return record


def load_run(file: str | Path) -> Record:
    """Reads one ``run.json``.

    Raises:
        FsclError: the file cannot be read or is not a valid record. The message names the file and the fault.
    """
    file = Path(file)
    return read_record(file, read_json(file), file)


def load_stream_run(file: Path) -> RunRecord:
    """Reads the ``run.json`` of a run on a stream of tasks.

    Raises:
        FsclError: as :func:`load_run`; or it is a run of a federation.
    """
    record = load_run(file)
    if not isinstance(record, RunRecord):
        raise FsclError(f"{file}: a run of a federation, which has clients and no tasks; a run on a stream would do")
    return record


def streams_of(records: Iterable[Record]) -> list[RunRecord]:
    """The runs on streams of tasks."""
    return [record for record in records if isinstance(record, RunRecord)]


def federations_of(records: Iterable[Record]) -> list[FederatedRecord]:
    """The runs of federations."""
    return [record for record in records if isinstance(record, FederatedRecord)]


def run_in(folder: Path) -> Record:
    """The record of the run in a folder.

    Raises:
        FsclError: the folder has no run, or its record cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise FsclError(f"{folder}: no run in it; give a folder such as runs/split_digits/ewc/seed_0")
    return load_run(folder / "run.json")


def find_task(folder: Path, task: int | str | None) -> tuple[RunRecord, int | None, list[str]]:
    """The record of a finished run, the number of one of its tasks, and the names of the outputs for this task.

    Args:
        folder: the run's folder.
        task: the task's number, from 0, or its name. A text that is the number of a task is not taken for a name. None
            if the run has one task or one network for all of them.

    Returns:
        The record; the number, or None if one network answers for all classes; and the names.

    Raises:
        FsclError: there is no finished run, or the task is unknown or missing.
    """
    run_in(folder)
    record = load_stream_run(folder / "run.json")
    if not record.finished:
        learned = f"{len(record.accuracy)} of {len(record.tasks)} tasks"
        raise FsclError(f"{folder}: the run is {record.status}, after {learned}; a finished run would do")
    names = [list(map(str, part.classes)) for part in record.tasks]
    listing = "; ".join(f"{number}: {name}" for number, name in enumerate(record.task_names))
    scenario = record.benchmark.split.get("scenario", "task")
    if scenario == "class":
        if task is not None:
            raise FsclError(f"{folder}: one network answers for the classes of all tasks; leave out the task")
        return record, None, [name for classes in names for name in classes]
    # in domains no learner is told the task; outputs of different names still need it
    has_one_answer = scenario == "domain" and all(classes == names[0] for classes in names)
    if task is None and len(names) > 1 and not has_one_answer:
        raise FsclError(f"{folder}: the run has {len(names)} tasks; give one of them: {listing}")
    is_number = isinstance(task, str) and task.isdecimal() and int(task) < len(names)  # rather than a name of digits
    if isinstance(task, str) and not is_number and task in record.task_names:
        task = record.task_names.index(task)
    if task is None:
        return record, 0, names[0]
    try:
        number = range(len(names))[int(task) if isinstance(task, str) else operator.index(task)]
    except (ValueError, TypeError, IndexError) as error:
        raise FsclError(f"{folder}: no task {brief(task)}; tasks: {listing}") from error
    return record, number, names[number]
