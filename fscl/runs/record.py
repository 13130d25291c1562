"""What a run's ``run.json`` says, as types that refuse what a report could not show. Older records lack some of it."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fscl.errors import FsclError
from fscl.plain import brief, check_plain

__all__ = ["FORMAT", "YEARS", "OtherFormatError", "Record", "Seconds", "Similarity", "Sizes", "numbers", "read_record"]

FORMAT = 1
ARRAYS = ("accuracy", "transfer", "untrained", "start", "similarity")  # large, and looked at by `numbers`
YEARS = 1e10  # in seconds, which no run takes
EXABYTES = 1e19


class OtherFormatError(FsclError):
    """A record that another version of fscl reads."""


def _printable(name: str) -> str:
    if not name.isprintable():
        raise PydanticCustomError("name", "it contains a character that cannot be shown")
    return name


Label = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Words = Annotated[str, Field(max_length=2000)]
Bytes = Annotated[float, Field(ge=0, le=EXABYTES)]
Scalar = str | int | float | bool | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class _Model(_Part):
    name: Words | None = None
    args: dict[str, Any] | None = None


class _Benchmark(_Part):
    name: Label
    title: Words | None = None
    description: Words | None = None
    model: _Model | None = None
    training: dict[str, Scalar] | None = None


class _Strategy(_Part):
    name: Label
    title: Words | None = None
    bound: Literal["upper", "lower"] | None = None
    class_path: Words | None = Field(None, alias="class")
    args: dict[str, Any] | None = None


class _Task(_Part):
    name: Label
    classes: list[Label | int]


class Seconds(_Part):
    train: list[Any] | None = None
    evaluate: list[Any] | None = None


class Sizes(_Part):
    per_task: dict[Label, Bytes] | None = None
    shared: dict[Label, Bytes] | None = None


class Similarity(_Part):
    """Of the tasks, layer by layer."""

    metric: Label
    aggregate: Literal["product", "mean", "depth"] | None = None
    layers: list[Label]
    matrix: list[Any]


class Record(_Part):
    """One ``run.json``; arrays are lists still."""

    status: Literal["running", "finished", "failed"]
    benchmark: _Benchmark
    strategy: _Strategy
    recipe_hash: Label
    seed: int
    versions: dict[Label, Words] | None = None
    machine: dict[Label, Scalar] | None = None
    tasks: list[_Task]
    accuracy: list[Any] | None = None
    transfer: list[Any] | None = None
    untrained: list[Any] | None = None
    start: list[Any] | None = None
    seconds: Seconds | None = None
    memory: Sizes | None = None
    similarity: Similarity | None = None
    provenance: Literal["atoms", "filters"] | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] | None = None
    first: Annotated[int, Field(ge=1)] | None = None
    started: Label | None = None
    error: Words | None = None


def read_record(where: object, data: Any) -> Record:
    """The record that JSON data is.

    Raises:
        FsclError: it is none; the message begins with ``where`` and names the place.
    """
    version = data.get("format") if isinstance(data, dict) else type(data).__name__
    if type(version) is not int or version != FORMAT:
        raise OtherFormatError(f"{where}: format is {brief(version)}; this version of fscl reads format {FORMAT}")
    check_plain(where, data, ARRAYS)
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        place = place if place.isprintable() and len(place) < 200 else brief(place)
        if first["type"] == "missing":
            raise FsclError(f"{where}: key {place!r} is missing") from error
        said = first["msg"].replace("Input should be", "it must be")
        raise FsclError(f"{where}: {place} is {brief(first['input'])}; {said}") from error


def numbers(
    values: list[Any] | None, key: str, shape: tuple[int | None, ...], low: float = 0.0, high: float = 1.0
) -> NDArray[np.float64]:
    """Nested lists as an array, null as NaN.

    Args:
        values: the lists; None or none in them gives no rows.
        key: what the message calls them.
        shape: sizes that the array must have, None where any would do.
        low, high: between which its numbers are.

    Raises:
        ValueError: it is of another shape, or holds something else.
    """
    if not values:
        return np.empty([0 if size is None else size for size in shape], dtype=np.float64)
    flat = values
    for _ in shape[1:]:
        if not all(isinstance(row, list) for row in flat):
            raise ValueError(f"{key} is not a rectangular list of numbers")
        flat = list(itertools.chain.from_iterable(flat))
    if any(type(value) not in (float, int, type(None)) for value in flat):
        raise ValueError(f"{key} is not a rectangular list of numbers")
    if strange := next((v for v in flat if v is not None and not (low <= v <= high or v != v)), None):
        raise ValueError(f"{key} has {brief(strange)}; its numbers are from {low:g} to {high:g}")
    try:
        array = cast(NDArray[np.float64], np.array(values, dtype=np.float64))
    except ValueError as error:
        raise ValueError(f"{key} is not a rectangular list of numbers") from error
    if len(shape) != array.ndim or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{key} has shape {array.shape}; it must be ({wanted})")
    return array
