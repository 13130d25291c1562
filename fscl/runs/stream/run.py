"""One run on a stream of tasks: what is done before, during and after its training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.files import written_together
from fscl.runs.environment import machine, versions
from fscl.runs.logs import Logged, remove_logs
from fscl.runs.records.parts import Memory, Resumed, Seconds, Similarity, Task
from fscl.runs.records.record import RunRecord
from fscl.runs.resume import CHECKPOINT, load_into, write_checkpoint
from fscl.runs.spec import WEIGHTS, Progress, RunSpec
from fscl.runs.stream.building import build_trainer, load_stream
from fscl.runs.stream.weights import save_networks

__all__ = ["begin", "new_record", "train"]


def new_record(spec: RunSpec, facts: dict[str, Any]) -> RunRecord:
    """The record of a run before its first task. The keys that are set here are in every ``run.json``."""
    record = RunRecord(
        **facts,
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


def begin(
    spec: RunSpec, folder: Path, record: RunRecord, state: dict[str, Any] | None, progress: Progress | None
) -> Trainer:
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
        load_into(trainer, state, folder / CHECKPOINT, "learner")
        record.resumed = [*record.resumed, Resumed(after=trainer.done, versions=versions(), machine=here)]
    record.write(folder / "run.json")
    if state is None:  # files of an overwritten run; they are deleted only now, after the new record is on disk
        for name in (CHECKPOINT, "bank.safetensors", WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        remove_logs(folder)
    return trainer


def train(
    record: RunRecord,
    trainer: Trainer,
    folder: Path,
    kept: Callable[[], None],
    weights: bool,
    log: Logged | None,
) -> None:
    """Trains all experiences that are left. The record on disk is never ahead of the checkpoint."""
    trainer.reporter.log = log
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
                save_networks(folder / WEIGHTS, trainer)
            if not last:
                write_checkpoint(folder / CHECKPOINT, record, trainer.state_dict())
            record.write(folder / "run.json")
        kept()


def _finish(record: RunRecord, trainer: Trainer) -> None:
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
