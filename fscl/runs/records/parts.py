"""The parts of which the records of runs are made, and how they are read and written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from fscl.plain import LONGEST, array_of, lists_of

__all__ = [
    "Array", "Benchmark", "Label", "Memory", "Network", "Part", "Resumed", "Scalar", "Seconds", "ShareRows", "Shares",
    "Similarity", "Strategy", "Task", "Words", "array_field", "check_shape",
]  # fmt: skip

YEARS = 1e10  # seconds; no run takes so long
EXABYTES = 1e19

Array = NDArray[np.float64]


def _printable(name: str) -> str:
    if not name.isprintable():
        raise PydanticCustomError("name", "it contains a character that cannot be shown")
    return name


def array_field(dimensions: int, low: float = 0.0, high: float = 1.0) -> Any:
    """Annotations by which pydantic reads an array from JSON and writes it."""
    read = partial(array_of, dimensions=dimensions, low=low, high=high)
    return PlainValidator(lambda values: read(values)), PlainSerializer(lists_of)


Label = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
LongLabel = Annotated[str, Field(min_length=1, max_length=LONGEST), AfterValidator(_printable)]
Words = Annotated[str, Field(max_length=2000)]
Bytes = Annotated[int | float, Field(ge=0, le=EXABYTES)]
Scalar = str | int | float | bool | None
Shares = Annotated[Array, *array_field(1)]
ShareRows = Annotated[Array, *array_field(2)]
Times = Annotated[Array, *array_field(1, high=YEARS)]
Cosines = Annotated[Array, *array_field(3, low=-1.01, high=1.01)]  # rounding may pass 1


class Part(BaseModel):
    """A part of a record. Unknown keys are kept and written again."""

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


class Network(Part):
    name: Words = ""
    args: dict[str, Any] = {}


class Benchmark(Part):
    """The benchmark's recipe with all overrides, as the run used it. Only what reports read has a type."""

    name: Label
    title: Words = ""
    description: Words = ""
    data: dict[str, Any] = {}
    split: dict[str, Any] = {}
    federation: dict[str, Any] = {}
    augment: dict[str, Any] = {}
    model: Network = Network()
    training: dict[str, Scalar] = {}
    strategies: dict[str, Any] = {}


class Strategy(Part):
    """The strategy's recipe with all overrides, as the run used it. Only what reports read has a type."""

    name: Label
    title: Words = ""
    description: Words = ""
    paper: Words = ""
    bound: Literal["upper", "lower"] | None = None
    """Whether the strategy is an upper or a lower bound, see ``fscl.runs.schema.StrategyRecipe``."""
    class_path: Words = Field("", alias="class")
    args: dict[str, Any] = {}
    training: dict[str, Any] = {}
    tune: dict[str, Any] = {}


class Resumed(Part):
    """A process that resumed the run."""

    after: int
    """Number of tasks that had been learned before."""
    versions: dict[Label, Words]
    machine: dict[Label, Scalar]


class Task(Part):
    name: LongLabel
    """By default the names of the task's classes. There may be hundreds."""
    classes: list[Label | int]


class Seconds(Part):
    """Wall time of each task that was learned."""

    train: Times = np.empty(0)
    evaluate: Times = np.empty(0)

    @property
    def total(self) -> float:
        return float(self.train.sum() + self.evaluate.sum())


class Memory(Part):
    """Stored bytes by kind: for one more task (a mean over tasks), and shared by all tasks."""

    per_task: Mapping[Label, Bytes] = {}
    shared: Mapping[Label, Bytes] = {}

    @property
    def bytes_per_task(self) -> float:
        return float(sum(self.per_task.values()))

    @property
    def bytes_shared(self) -> float:
        return float(sum(self.shared.values()))


class Similarity(Part):
    """Task-to-task similarity of every layer: ``matrix`` is (L, T, T), 1 on the diagonals.

    ``explained`` is the share of the filters' energy that was compared, (L, T); None if all of it was.
    """

    metric: Label
    aggregate: Literal["product", "mean", "depth"] = "product"
    layers: list[Label]
    matrix: Cosines
    explained: ShareRows | None = None

    def __repr__(self) -> str:
        layers, tasks, _ = self.matrix.shape
        return f"Similarity({self.metric} {self.aggregate} over {layers} layers of {tasks} tasks)"

    __str__ = __repr__


def check_shape(key: str, array: Array, shape: tuple[int | None, ...]) -> None:
    if len(array) and any(size not in (None, actual) for size, actual in zip(shape, array.shape, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{key} has shape {array.shape}; it must be ({expected})")
