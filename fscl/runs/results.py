"""Files of runs -> their records. Imports neither torch nor Avalanche."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.plain import read_json
from fscl.runs.record import FORMAT, RunRecord, read_record

__all__ = ["KEPT", "load_run", "load_runs", "runs_text", "write_runs"]

KEPT = "runs.json"  # the runs of a report, in its folder

LeaveOut = Callable[[FsclError], object]


def _refuse(error: FsclError) -> None:
    raise error


def load_runs(paths: Iterable[str | Path], leave_out: LeaveOut = _refuse) -> list[RunRecord]:
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
    runs: dict[object, RunRecord] = {}
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
    return sorted(now, key=lambda r: (r.stream, r.strategy.name, r.recipe_hash, r.seed, str(r.path)))


def write_runs(runs: Iterable[RunRecord], file: Path) -> None:
    """Write the records of runs into one file, which :func:`load_runs` reads, so that a report can be made again."""
    write_text_atomically(file, runs_text(runs))


def runs_text(runs: Iterable[RunRecord]) -> str:
    """What :func:`write_runs` writes."""
    text = ",\n".join(json.dumps(run.to_json(), separators=(",", ":")) for run in runs)
    return f'{{"format": {FORMAT}, "runs": [\n{text}\n]}}\n'


def _identity(run: RunRecord) -> object:
    """Of one and the same run, in its folder or in a report's file: when it was started."""
    return (*_place(run), run.started) if run.started else run.path


def _place(run: RunRecord) -> tuple[object, ...]:
    """What two runs that must not both be counted have in common."""
    return run.stream, run.strategy.name, run.recipe_hash, run.seed


def _how_far(run: RunRecord) -> tuple[bool, int]:
    return run.finished, len(run.accuracy)


def _load(file: Path, leave_out: LeaveOut) -> list[RunRecord]:
    try:
        return _load_kept(file, leave_out) if file.name == KEPT else [load_run(file)]
    except FsclError as error:
        leave_out(error)
        return []


def _load_kept(file: Path, leave_out: LeaveOut) -> list[RunRecord]:
    data = read_json(file)
    records = data.get("runs") if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise FsclError(f"{file}: it lacks its list of runs")
    runs = []
    for number, record in enumerate(records):
        try:
            runs.append(read_record(f"{file}, run {number}", record, file))
        except FsclError as error:
            leave_out(error)
    return runs


def load_run(file: str | Path) -> RunRecord:
    """Read one ``run.json``. :class:`FsclError` names the file and what is wrong with it."""
    file = Path(file)
    return read_record(file, read_json(file), file)
