"""Does one run (benchmark x strategy x seed) in its folder. A stopped run resumes after its last finished task."""

import contextlib
import datetime
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fscl.errors import FsclError
from fscl.runs.environment import versions
from fscl.runs.logs import opened_logs
from fscl.runs.records.parts import Benchmark, Strategy
from fscl.runs.records.record import FORMAT, LONGEST_ERROR, OtherFormatError, Record
from fscl.runs.results import load_run
from fscl.runs.resume import ANEW, CHECKPOINT, line, read_checkpoint
from fscl.runs.schema import FederationRecipe
from fscl.runs.spec import Progress, RunSpec

__all__ = ["BusyError", "is_finished", "run_one"]

# fields of the record that W&B shows as the run's configuration
LOGGED = {"benchmark", "strategy", "recipe_hash", "validation", "seed", "versions", "machine"}


class BusyError(FsclError):
    """Another process is doing the run."""


def run_one(
    spec: RunSpec,
    out: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
    kept: Callable[[], None] | None = None,
    wait: bool = True,
) -> Path:
    """Trains a learner on a stream and measures it. A stopped run is resumed; a finished run is left as it is.

    The folder holds ``run.json`` (recipes and their hash, seed, versions, machine, matrices, timings), for learners
    with a bank ``bank.safetensors``, while the run is unfinished ``checkpoint.pt``, and when it is finished
    ``weights.safetensors``, from which :func:`fscl.load_network` makes the network of each task. Beside them are the
    logs that the spec asks for, see :mod:`fscl.runs.logs`.

    Args:
        spec: the run.
        out: output folder; the run goes to ``spec.folder(out)``.
        overwrite: restart a run that is finished, or that was made with another recipe.
        progress: called with (experience, epoch, epochs).
        kept: called when everything so far is on disk: before the first experience and after each experience.
        wait: whether to wait while another process does the run. If that process dies, the run is resumed here.

    Returns:
        The run's folder.

    Raises:
        BusyError: another process is doing the run, and ``wait`` is False.
        FsclError: the folder cannot be written or holds a run of another recipe, or the run cannot be built.
    """
    folder = spec.folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise BusyError(f"another process is doing the run {folder}") from error
    except OSError as error:
        raise FsclError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        return _run(spec, folder, overwrite, progress, kept or (lambda: None))
    finally:
        lock.release()


def is_finished(spec: RunSpec, out: Path) -> bool:
    """Whether the run's record exists, can be read, is finished and has the hash of this recipe."""
    try:
        before = _read(spec.folder(out), spec)
    except FsclError:
        return False
    return before is not None and before.finished and before.recipe_hash == spec.hash


def _run(spec: RunSpec, folder: Path, overwrite: bool, progress: Progress | None, kept: Callable[[], None]) -> Path:
    checkpoint = folder / CHECKPOINT
    try:
        before = None if overwrite else _read(folder, spec)
    except OtherFormatError:
        raise
    except FsclError as error:
        if not checkpoint.exists():  # a checkpoint holds the record, too
            raise FsclError(f"{error}; {ANEW}") from error
        before = None
    # A run that has learned nothing may be replaced: nothing is lost.
    if before and before.recipe_hash != spec.hash and before.steps:
        raise FsclError(
            f"{folder} holds a run of another recipe (hash {before.recipe_hash}, now {spec.hash}); "
            "use --overwrite to replace it, or another --out"
        )
    if before and before.finished:
        checkpoint.unlink(missing_ok=True)  # a process that was killed after its last step may have left it
        return folder
    import torch

    torch.set_num_threads(spec.threads)
    kind = _kind(spec)
    record, state = kind.new_record(spec, _facts(spec)), None
    if checkpoint.exists() and not overwrite:
        record, state = read_checkpoint(checkpoint, spec)
    # A failure is written to run.json only if this replaces no earlier record. A run that is resumed or overwritten
    # keeps its old record until training has begun.
    recordable = state is None and not (overwrite and (folder / "run.json").exists())
    try:
        work = kind.begin(spec, folder, record, state, progress)
        recordable, state = True, None
        name = "/".join(spec.folder(Path()).parts)
        config = record.model_dump(mode="json", include=LOGGED, by_alias=True)
        with opened_logs(spec.log, folder, work.step, name, config) as log:
            kept()
            kind.train(record, work, folder, kept, spec.weights, log)
    except Exception as error:
        if recordable:
            with contextlib.suppress(FsclError):  # the failure may be a full disk, and then this cannot be written
                failed = {"status": "failed", "error": line(error)[:LONGEST_ERROR]}
                record.model_copy(update=failed).write(folder / "run.json")
        raise
    checkpoint.unlink(missing_ok=True)
    return folder


def _kind(spec: RunSpec) -> Any:
    """The module that does this kind of run. Only the libraries that it needs are imported."""
    kind = "federation" if isinstance(spec.benchmark, FederationRecipe) else "stream"
    return importlib.import_module(f"fscl.runs.{kind}.run")


def _facts(spec: RunSpec) -> dict[str, Any]:
    """What every record holds from the beginning. The keys that are set here are in every ``run.json``."""
    return {
        "format": FORMAT,
        "status": "running",
        "benchmark": Benchmark.model_validate(spec.benchmark.model_dump(by_alias=True)),
        "strategy": Strategy.model_validate(spec.strategy.model_dump(by_alias=True)),
        "recipe_hash": spec.hash,
        "validation": spec.validation,
        "seed": spec.seed,
        "versions": versions(),
        "machine": {},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resumed": [],
    }


def _read(folder: Path, spec: RunSpec) -> Record | None:
    """The record in the folder, of this recipe or another; None if there is no record."""
    file = folder / "run.json"
    if not file.exists():
        return None
    record = load_run(file)
    if record.seed != spec.seed:
        raise FsclError(f"{file}: its seed is {record.seed}, not {spec.seed}; move it to the folder of its run")
    return record
