"""The network that a finished run on a stream learned for a task."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from fscl.continual.stream import Stream, Task, TaskImages, assemble
from fscl.continual.task_network import TaskNetwork, random_states_kept
from fscl.continual.training.trainer import Trainer
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.runs.environment import find_device
from fscl.runs.records.record import RunRecord
from fscl.runs.results import find_task
from fscl.runs.resume import line
from fscl.runs.spec import WEIGHTS, RunSpec, spec_of_record
from fscl.runs.stream.building import build_trainer, check_trusted
from fscl.runs.stream.weights import read_weights

__all__ = ["load_task"]


def load_task(folder: Path, task: int | str | None, device: str | torch.device, trust: bool) -> TaskNetwork:
    """The network of a task, see :func:`fscl.load_network`."""
    record, number, classes = find_task(folder, task)
    spec = _spec(record, find_device(str(device)), trust)
    check_trusted(spec)
    saved = read_weights(folder / WEIGHTS)
    try:
        with random_states_kept():
            trainer: Trainer = build_trainer(spec, _placeholder(record, saved["image_shape"]), None)
            trainer.load_served_state(saved["learner"])
        return TaskNetwork(trainer, number, classes, ImageTransform.of_constants(saved["scale"], saved["shift"]))
    except Exception as error:  # a learner of another version, or of a user, may raise anything
        made = record.versions.get("fscl", "unknown")
        raise FsclError(f"{folder}: made by fscl {made}, it cannot be built by this one: {line(error)}") from error


def _spec(record: RunRecord, device: str, trust: bool) -> RunSpec:
    """The specification of a recorded run.

    Raises:
        FsclError: with the record's recipes, this version of fscl would do another run.
    """
    recorded = spec_of_record(record, trust)
    benchmark = recorded.benchmark
    # what has no use in evaluation, and does not fit a black image of each class
    training = benchmark.training.model_copy(update={"drop_last": False, "compile": False})
    return replace(recorded, benchmark=benchmark.model_copy(update={"training": training}), device=device)


def _placeholder(record: RunRecord, image_shape: tuple[int, int, int]) -> Stream:
    """A stream with the tasks of the run, and a black image of each class, because images decide nothing any more."""
    tasks = []
    for part in record.tasks:
        count = len(part.classes)
        images = TaskImages(torch.zeros(count, *image_shape, dtype=torch.uint8), torch.arange(count))
        tasks.append(Task(part.name, list(map(str, part.classes)), images, images))
    scenario = record.benchmark.split.get("scenario", "task")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return assemble(tasks, tasks[0].train.images, scenario, 0, 0, False, 0.0)
