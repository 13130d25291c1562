"""The numbers of one run by which its learner is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fscl.accuracy import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from fscl.errors import FsclError
from fscl.runs.records.record import RunRecord

__all__ = ["Measures", "final_accuracy", "measures"]


@dataclass(frozen=True)
class Measures:
    """The measures of one run, as :mod:`fscl.accuracy` defines them. A number is None if it is undefined.

    Attributes:
        accuracy: mean accuracy over the tasks after the last one. All accuracies, and their differences, are fractions.
        bytes_per_task: what is stored for one more task.
        bytes_in_all: everything that is stored after the last task.
        train_seconds: training time of all tasks.
    """

    accuracy: float | None = None
    incremental_accuracy: float | None = None
    learning_accuracy: float | None = None
    backward_transfer: float | None = None
    forgetting: float | None = None
    forward_transfer: float | None = None
    bytes_per_task: float | None = None
    bytes_in_all: float | None = None
    train_seconds: float | None = None


def measures(run: RunRecord) -> Measures:
    """All measures of a run. None of them is defined before the run is finished.

    Raises:
        FsclError: the run is finished, but lacks accuracies. The message names its file.
    """
    if not run.finished:
        return Measures()

    def of_matrix(number: Callable[[np.ndarray], float], defined: bool) -> float | None:
        return _named(run, lambda: number(run.accuracy)) if defined else None

    step_by_step, in_turn, stored = run.square and not run.at_once, _in_turn(run), bool(run.memory.per_task)
    transfers = in_turn and run.start.size > 0 and run.untrained.size > 0  # features were measured before each task
    return Measures(
        accuracy=final_accuracy(run),
        incremental_accuracy=of_matrix(average_incremental_accuracy, step_by_step),
        learning_accuracy=of_matrix(learning_accuracy, step_by_step),
        backward_transfer=of_matrix(backward_transfer, in_turn),
        forgetting=of_matrix(forgetting, in_turn),
        forward_transfer=_named(run, lambda: forward_transfer(run.start, run.untrained)) if transfers else None,
        bytes_per_task=run.memory.bytes_per_task if stored else None,
        bytes_in_all=run.stored if stored else None,
        train_seconds=float(run.seconds.train.sum()) if run.seconds.train.size else None,
    )


def final_accuracy(run: RunRecord) -> float:
    """The mean accuracy over all tasks after the last one of a finished run.

    Raises:
        FsclError: the run lacks accuracies. The message names its file.
    """
    return _named(run, lambda: average_accuracy(run.accuracy) if run.square else float(run.accuracy[-1].mean()))


def _in_turn(run: RunRecord) -> bool:
    """Whether one network learned one task after another. Forgetting and transfer are defined only then."""
    return run.square and run.strategy.bound != "upper" and len(run.tasks) > 1


def _named(run: RunRecord, number: Callable[[], float]) -> float:
    try:
        return number()
    except FsclError as error:
        raise FsclError(f"{run.path}: {error}") from error
