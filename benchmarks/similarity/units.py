"""What the study measures: units of work that are done once, and results that are written to JSON and read from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, PlainValidator

__all__ = ["Array", "Context", "Number", "Result", "Spread", "Unit", "spread"]


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _number_in_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _array(value: Any) -> NDArray[Any]:
    return np.array(value, dtype=float)  # null becomes NaN


def _array_in_json(values: NDArray[Any]) -> Any:
    rounded = np.round(values, 6).astype(object)
    rounded[~np.isfinite(values)] = None
    return rounded.tolist()


Number = Annotated[float, BeforeValidator(_number), PlainSerializer(_number_in_json)]
"""A float whose NaN is null in JSON."""

Array = Annotated[NDArray[Any], PlainValidator(_array), PlainSerializer(_array_in_json)]
"""An array of floats: nested lists in JSON, to six digits, with null for NaN."""


class Result(BaseModel):
    """What a unit measured; :meth:`to_json` is what ``results.json`` holds, and ``model_validate`` reads it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Plain data; fields that are None are left out, and NaN is null."""
        return self.model_dump(mode="json", exclude_none=True)


class Spread(Result):
    """The mean, the least and the largest of ``n`` values; NaN where none of them is finite."""

    mean: Number
    low: Number
    high: Number
    n: int


def spread(values: list[float]) -> Spread:
    """
    >>> spread([1.0, 4.0, float("nan")])
    Spread(mean=2.5, low=1.0, high=4.0, n=3)
    """
    finite = [value for value in values if math.isfinite(value)]
    mean, low, high = (float(f(finite)) if finite else math.nan for f in (np.mean, min, max))
    return Spread(mean=mean, low=low, high=high, n=len(values))


@dataclass(frozen=True)
class Context:
    """Where units find data and keep what took long."""

    data: str | None  # the data folder, see fscl.data.datasets.load_images
    work: Path  # trained networks, so that an interrupted run goes on
    quick: bool  # minutes instead of hours: smaller populations, fewer repetitions


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done once, and its result, which is kept by the unit's name."""

    name: str  # unique; it begins with the name of the section
    measure: Callable[[Context], Result]  # a module's function or a partial of one, so that it can be pickled
    result: type[Result]
    version: int = 1  # raised when what is measured changes: results of another version are measured anew
    needs: tuple[str, ...] = ()  # packages that the project itself does without

    @property
    def lacks(self) -> list[str]:
        """The packages that it needs and that are not installed.

        >>> Unit("a", lambda context: Result(), Result, needs=("json", "no_such_package")).lacks
        ['no_such_package']
        """
        return [name for name in self.needs if find_spec(name) is None]
