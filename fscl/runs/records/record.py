"""The definition of ``run.json``, the record of a run. Records are written and read by it; damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.runs.records.parts import (
    Benchmark,
    Label,
    Memory,
    Part,
    Resumed,
    Scalar,
    Seconds,
    ShareRows,
    Shares,
    Similarity,
    Strategy,
    Task,
    Words,
    check_shape,
)
from fscl.text import html_table, points

__all__ = ["FORMAT", "OtherFormatError", "Record", "RunRecord"]

FORMAT: Final = 1
ARRAYS = ("accuracy", "transfer", "untrained", "start", "similarity")  # large, and checked by `array_of`
AT_ONCE = "fscl.continual.Joint"  # the class that learns all tasks together
LONGEST_ERROR = 2000  # characters


class OtherFormatError(FsclError):
    """A record in a format that this version of fscl does not read."""


class Record(Part):
    """What the records of all runs have: recipe x strategy x seed, and how it was done.

    Attributes:
        validation: share of the training images on which the run was tested in place of the test images.
        error: why the run failed.
    """

    model_config = ConfigDict(frozen=False)

    format: Literal[1]
    status: Literal["running", "finished", "failed"]
    benchmark: Benchmark
    strategy: Strategy
    recipe_hash: Label
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int
    versions: dict[Label, Words] = {}
    machine: dict[Label, Scalar] = {}
    started: Label | None = None
    resumed: list[Resumed] = []
    error: Annotated[str, Field(max_length=LONGEST_ERROR)] | None = None

    _path: Path = PrivateAttr(Path())

    @property
    def path(self) -> Path:
        """The file that the record was read from."""
        return self._path

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def stream(self) -> str:
        """The benchmark and the images tested on. Runs are compared only if both are equal."""
        held_out = [f"{100 * self.validation:.3g} % of the training images held out"] if self.validation else []
        return ", ".join([self.benchmark.name, *self._part_of_benchmark, *held_out])

    @property
    def _part_of_benchmark(self) -> list[str]:
        return []

    # how far the run is, for its progress: the steps are the tasks of a stream, or the rounds of a federation

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return len(self.step_seconds)

    @property
    def steps_in_all(self) -> int:
        """Steps of the whole run."""
        raise NotImplementedError

    @property
    def step_seconds(self) -> list[float]:
        """Wall time of each step."""
        raise NotImplementedError

    @property
    def last_accuracies(self) -> list[float]:
        """The accuracies measured last, of each task or client; NaN if it was not measured."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The record as plain values: all fields that were read or set, in their order."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def write(self, file: Path) -> None:
        """Writes ``run.json``.

        Raises:
            FsclError: the file cannot be written. A file that was there before is unchanged.
        """
        write_text_atomically(file, json.dumps(self.to_json(), indent=1))


class RunRecord(Record):
    """One benchmark x strategy x seed.

    Attributes:
        accuracy: [t, i] is the accuracy on task i after learning task t, a fraction; NaN if i was not yet learned.
            There is a row for each learned task, so fewer than T while the run is unfinished.
        transfer: [j, i] is the nearest-class-mean accuracy on task i of the features after task j. It has no rows if
            it was not measured.
        untrained: nearest-class-mean accuracy on each task, of the features before any training.
        start: nearest-class-mean accuracy on each task, of the features just before training on this task.
        first: how many of the stream's tasks the run learns; None for all.
    """

    first: Annotated[int, Field(ge=1)] | None = None
    tasks: list[Task]
    accuracy: ShareRows = np.empty((0, 0))
    transfer: ShareRows = np.empty((0, 0))
    untrained: Shares = np.empty(0)
    start: Shares = np.empty(0)
    seconds: Seconds = Seconds()
    memory: Memory = Memory()
    similarity: Similarity | None = None
    provenance: Literal["atoms", "filters"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> RunRecord:
        """Checks that the shapes of arrays match the number of tasks."""
        count = len(self.tasks)
        check_shape("accuracy", self.accuracy, (None, count))
        check_shape("transfer", self.transfer, (None, count))
        check_shape("untrained", self.untrained, (count,))
        if self.finished and (not len(self.accuracy) or np.isnan(self.accuracy[-1]).any()):
            raise ValueError("the run is finished but has no accuracies")
        for name, values in (("train", self.seconds.train), ("evaluate", self.seconds.evaluate)):
            if np.isnan(values).any():
                raise ValueError(f"seconds.{name} has a null; each task that was learned has its seconds")
        if len(self.seconds.train) != len(self.seconds.evaluate):
            raise ValueError(
                f"seconds.train has {len(self.seconds.train)} tasks and seconds.evaluate has "
                f"{len(self.seconds.evaluate)}; each task that was learned has both"
            )
        if self.similarity is not None:
            shape = self.similarity.matrix.shape
            if shape[0] != len(self.similarity.layers) or shape[1] != shape[2] or shape[1] > count:
                raise ValueError(f"similarity.matrix has shape {shape}; it must be (L, T, T)")
        return self

    def __repr__(self) -> str:
        count = len(self.tasks) if self.at_once and len(self.accuracy) else len(self.accuracy)
        learned = f"{count} of {len(self.tasks)} tasks"
        accuracy = f", accuracy {points(float(self.accuracy[-1].mean()))} %" if self.finished else ""
        return f"RunRecord({self.stream}, {self.strategy.name}, seed {self.seed}: {self.status}, {learned}{accuracy})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A table of accuracies in %, for a notebook: after each task (rows) on each task (columns)."""
        learned = ("all tasks",) if self.at_once else self.task_names
        rows = ([name, *map(points, row)] for name, row in zip(learned, self.accuracy.tolist(), strict=False))
        return html_table(repr(self), ["after", *self.task_names], rows)

    @property
    def _part_of_benchmark(self) -> list[str]:
        return [f"first {self.first} tasks"] if self.first is not None else []

    @property
    def steps(self) -> int:
        return len(self.accuracy)

    @property
    def steps_in_all(self) -> int:
        return len(self.tasks)

    @property
    def step_seconds(self) -> list[float]:
        times = self.seconds.train.tolist(), self.seconds.evaluate.tolist()
        return [train + evaluate for train, evaluate in zip(*times, strict=True)]

    @property
    def last_accuracies(self) -> list[float]:
        return self.accuracy[-1].tolist() if len(self.accuracy) else []

    @property
    def at_once(self) -> bool:
        """Whether all tasks were learned together. There is then no accuracy after each task."""
        return self.strategy.class_path == AT_ONCE

    @property
    def stored(self) -> float:
        """Bytes of everything that is kept after the last task: for each task, and shared by all tasks."""
        return self.memory.bytes_per_task * len(self.tasks) + self.memory.bytes_shared

    @property
    def square(self) -> bool:
        """Whether there is a row of accuracies for every task. Forgetting and transfer are defined only then."""
        return self.accuracy.shape == (len(self.tasks), len(self.tasks))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)
