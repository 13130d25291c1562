"""Does one run (benchmark x strategy x seed) in its folder. A stopped run resumes after its last finished task."""

import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from filelock import FileLock, Timeout

from fscl.errors import FsclError
from fscl.files import written_together
from fscl.runs.building import build_trainer, load_stream
from fscl.runs.environment import machine, versions
from fscl.runs.logs import opened_logs, remove_logs
from fscl.runs.record import (
    FORMAT,
    LONGEST_ERROR,
    Benchmark,
    Memory,
    OtherFormatError,
    Resumed,
    RunRecord,
    Seconds,
    Similarity,
    Strategy,
    Task,
)
from fscl.runs.results import load_run
from fscl.runs.resume import ANEW, line, read_checkpoint, write_checkpoint
from fscl.runs.spec import Progress, RunSpec

if TYPE_CHECKING:
    from fscl.continual.training.trainer import Trainer

__all__ = ["WEIGHTS", "BusyError", "is_finished", "run_one"]

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"
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
    if before and before.recipe_hash != spec.hash and len(before.accuracy):
        raise FsclError(
            f"{folder} holds a run of another recipe (hash {before.recipe_hash}, now {spec.hash}); "
            "use --overwrite to replace it, or another --out"
        )
    if before and before.finished:
        checkpoint.unlink(missing_ok=True)  # a process that was killed after its last task may have left it
        return folder
    import torch

    torch.set_num_threads(spec.threads)
    record, state = _new_record(spec), None
    if checkpoint.exists() and not overwrite:
        record, state = read_checkpoint(checkpoint, spec)
    # A failure is written to run.json only if this replaces no earlier record. A run that is resumed or overwritten
    # keeps its old record until training has begun.
    recordable = state is None and not (overwrite and (folder / "run.json").exists())
    try:
        trainer = _begin(spec, folder, record, state, progress)
        recordable, state = True, None
        name = "/".join(spec.folder(Path()).parts)
        config = record.model_dump(mode="json", include=LOGGED, by_alias=True)
        with opened_logs(spec.log, folder, trainer.step, name, config) as trainer.reporter.log:
            kept()
            _train(record, trainer, folder, kept, spec.weights)
    except Exception as error:
        if recordable:
            with contextlib.suppress(FsclError):  # the failure may be a full disk, and then this cannot be written
                failed = {"status": "failed", "error": line(error)[:LONGEST_ERROR]}
                record.model_copy(update=failed).write(folder / "run.json")
        raise
    checkpoint.unlink(missing_ok=True)
    return folder


def _begin(
    spec: RunSpec, folder: Path, record: RunRecord, state: dict[str, Any] | None, progress: Progress | None
) -> "Trainer":
    """Builds the trainer and loads its state, if there is one. The record is updated, in memory and on disk."""
    stream = load_stream(spec)
    tasks = [Task(name=n, classes=list(classes)) for n, classes in zip(stream.names, stream.tasks, strict=True)]
    if state is not None and record.tasks != tasks:
        raise FsclError(
            f"{folder / CHECKPOINT}: its tasks differ from the tasks that the images now give; have the images changed?"
        )
    record.tasks = tasks
    trainer: Trainer = build_trainer(spec, stream, progress)
    here = machine(spec.device, spec.threads, trainer.precision)
    if state is None:
        record.machine = here
        record.untrained = np.array(trainer.untrained())
    else:
        try:
            trainer.load_state_dict(state)
        except Exception as error:  # another version of a learner, or of torch, may raise anything
            raise FsclError(
                f"{folder / CHECKPOINT}: undamaged, but it does not fit this version of its learner ({line(error)}); "
                "go on with the versions in the run.json beside it"
            ) from error
        record.resumed = [*record.resumed, Resumed(after=trainer.done, versions=versions(), machine=here)]
    record.write(folder / "run.json")
    if state is None:  # files of an overwritten run; they are deleted only now, after the new record is on disk
        for name in (CHECKPOINT, "bank.safetensors", WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        remove_logs(folder)
    return trainer


def _train(record: RunRecord, trainer: "Trainer", folder: Path, kept: Callable[[], None], weights: bool) -> None:
    """Trains all experiences that are left. The record on disk is never ahead of the checkpoint."""
    while trainer.done < len(trainer.stream.tasks):
        measured = trainer.train_next()
        not_yet_learned = [np.nan] * (len(record.tasks) - trainer.done)
        record.accuracy = np.array([*record.accuracy, measured.accuracy + not_yet_learned])
        record.transfer = np.array([*record.transfer, measured.transfer])
        record.start = np.append(record.start, measured.start)
        record.seconds = Seconds(
            train=np.append(record.seconds.train, measured.train_seconds),
            evaluate=np.append(record.seconds.evaluate, measured.evaluate_seconds),
        )
        last = trainer.done == len(trainer.stream.tasks)
        if last:
            _finish(record, trainer)
        with written_together():
            if trainer.bank is not None:
                trainer.bank.save(folder / "bank.safetensors")
            if last and weights:
                from fscl.runs.weights import save_networks

                save_networks(folder / WEIGHTS, trainer)
            if not last:
                write_checkpoint(folder / CHECKPOINT, record, trainer.state_dict())
            record.write(folder / "run.json")
        kept()


def _new_record(spec: RunSpec) -> RunRecord:
    """The record of a run before its first task. The keys that are set here are in every ``run.json``."""
    record = RunRecord(
        format=FORMAT,
        status="running",
        benchmark=Benchmark.model_validate(spec.benchmark.model_dump(by_alias=True)),
        strategy=Strategy.model_validate(spec.strategy.model_dump(by_alias=True)),
        recipe_hash=spec.hash,
        validation=spec.validation,
        seed=spec.seed,
        versions=versions(),
        machine={},
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        resumed=[],
        tasks=[],
        accuracy=np.empty((0, 0)),
        transfer=np.empty((0, 0)),
        untrained=np.empty(0),
        start=np.empty(0),
        seconds=Seconds(train=np.empty(0), evaluate=np.empty(0)),
        memory=Memory(per_task={}, shared={}),
        similarity=None,
        provenance=None,
    )
    if spec.first is not None:
        record.first = spec.first
    return record


def _finish(record: RunRecord, trainer: "Trainer") -> None:
    layers, matrices, provenance = trainer.similarity()
    per_task, shared = trainer.memory()
    explained = trainer.explained()
    record.status = "finished"
    record.memory = Memory(per_task=per_task, shared=shared)
    record.similarity = Similarity(
        metric="cosine",
        aggregate="product",
        layers=layers,
        matrix=matrices.cpu().double().numpy(),
        explained=None if explained is None else np.array(explained),
    )
    record.provenance = cast(Any, provenance)


def _read(folder: Path, spec: RunSpec) -> RunRecord | None:
    """The record in the folder, of this recipe or another; None if there is no record."""
    file = folder / "run.json"
    if not file.exists():
        return None
    record = load_run(file)
    if record.seed != spec.seed:
        raise FsclError(f"{file}: its seed is {record.seed}, not {spec.seed}; move it to the folder of its run")
    return record
