"""The measures of a continual learner, from its accuracy matrix. Pure functions on NumPy arrays.

Throughout, ``R[t, i]`` is the accuracy (a fraction, 0 to 1) on task ``i`` after training on task ``t``, shape
(T, T). Only the lower triangle is read, so entries ``i > t`` may be NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fscl.errors import FsclError

__all__ = [
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "drop_matrix",
    "forgetting",
    "forgetting_matrix",
    "forward_transfer",
    "learning_accuracy",
    "seen_accuracy",
]

Array = NDArray[np.float64]


def average_accuracy(accuracy: ArrayLike) -> float:
    """ACC: mean over tasks of the accuracy after the last task, ``mean_i R[T-1, i]`` (Lopez-Paz & Ranzato 2017).

    >>> round(average_accuracy([[0.9, np.nan], [0.7, 0.8]]), 3)
    0.75
    """
    return float(_checked(accuracy)[-1].mean())


def backward_transfer(accuracy: ArrayLike) -> float:
    """BWT: ``mean_{i<T-1} (R[T-1, i] - R[i, i])``; negative if later tasks harm earlier ones. Needs T >= 2.

    >>> round(backward_transfer([[0.9, np.nan], [0.7, 0.8]]), 3)
    -0.2
    """
    matrix = _checked(accuracy, at_least=2)
    return float((matrix[-1] - matrix.diagonal())[:-1].mean())


def forgetting(accuracy: ArrayLike) -> float:
    """Drop from the best accuracy on a task to the last: ``mean_{i<T-1} (max_{i<=t<T-1} R[t, i] - R[T-1, i])``.

    Chaudhry et al. 2018. It is below 0 if the last accuracies are better than all earlier ones. Needs T >= 2.

    >>> round(forgetting([[0.9, np.nan], [0.7, 0.8]]), 3)
    0.2
    """
    return float(forgetting_matrix(_checked(accuracy, at_least=2))[-1, :-1].mean())


def forgetting_matrix(accuracy: ArrayLike) -> Array:
    """How much of task ``i`` is lost after task ``t``: ``F[t, i] = max_{i<=s<t} R[s, i] - R[t, i]``, shape (T, T).

    It is NaN on and above the diagonal, where nothing can be forgotten yet.

    >>> forgetting_matrix([[0.5, np.nan], [0.25, 1.0]])
    array([[ nan,  nan],
           [0.25,  nan]])
    """
    matrix = _checked(accuracy)
    lost = np.full_like(matrix, np.nan)
    for task in range(len(matrix) - 1):
        best = np.maximum.accumulate(matrix[task:-1, task])
        lost[task + 1 :, task] = best - matrix[task + 1 :, task]
    return lost


def drop_matrix(accuracy: ArrayLike) -> Array:
    """How much accuracy on task ``i`` learning task ``t`` cost: ``L[t, i] = R[t-1, i] - R[t, i]``, (T, T), ``i < t``.

    Unlike forgetting, it does not add up along the stream. It is NaN on and above the diagonal.

    >>> drop_matrix([[0.5, np.nan], [0.25, 1.0]])
    array([[ nan,  nan],
           [0.25,  nan]])
    """
    matrix = _checked(accuracy)
    lost = np.full_like(matrix, np.nan)
    for task in range(1, len(matrix)):
        lost[task, :task] = matrix[task - 1, :task] - matrix[task, :task]
    return lost


def learning_accuracy(accuracy: ArrayLike) -> float:
    """Mean accuracy on each task right after it was learned, ``mean_i R[i, i]``: plasticity, without later losses.

    >>> round(learning_accuracy([[0.9, np.nan], [0.7, 0.8]]), 3)
    0.85
    """
    return float(_checked(accuracy).diagonal().mean())


def seen_accuracy(accuracy: ArrayLike) -> Array:
    """Mean accuracy over the tasks seen so far, ``A[t] = mean_{i<=t} R[t, i]``, shape (T,); its last entry is ACC.

    >>> seen_accuracy([[0.5, np.nan], [0.25, 0.75]])
    array([0.5, 0.5])
    """
    matrix = _checked(accuracy)
    return np.array([row[: t + 1].mean() for t, row in enumerate(matrix)])


def average_incremental_accuracy(accuracy: ArrayLike) -> float:
    """Mean over the stream of the mean accuracy on the tasks seen so far, ``mean_t A[t]`` (Rebuffi et al. 2017).

    >>> average_incremental_accuracy([[0.5, np.nan], [0.25, 1.0]])
    0.5625
    """
    return float(seen_accuracy(accuracy).mean())


def forward_transfer(start: ArrayLike, untrained: ArrayLike) -> float:
    """How much earlier tasks improve the features for task ``i``: ``mean_{i>=1} (start[i] - untrained[i])``.

    ``start[i]`` is the nearest-class-mean accuracy on task ``i``, with the learner's features just before it is trained
    on this task. ``untrained[i]`` is this accuracy for the network before any training. Both are fractions, (T,). No
    head is used, so it is defined for task-incremental learners, too. Needs T >= 2. Entry 0 is not read, as no task is
    before it.

    >>> round(forward_transfer([0.25, 0.5, 0.75], [0.25, 0.25, 0.5]), 3)
    0.25
    """
    before, floor = (np.asarray(values, dtype=np.float64) for values in (start, untrained))
    if before.ndim != 1 or before.shape != floor.shape:
        raise FsclError(
            f"start has shape {before.shape} and untrained {floor.shape}; forward transfer needs (T,) for both"
        )
    if len(before) < 2:
        raise FsclError(f"{len(before)} task is too few: forward transfer needs at least 2")
    _in_range("start", before[1:])
    _in_range("untrained", floor[1:])
    return float((before - floor)[1:].mean())


def _checked(accuracy: ArrayLike, at_least: int = 1) -> Array:
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise FsclError(f"the accuracy matrix has shape {matrix.shape}; it must be (T, T): one row per task learned")
    if len(matrix) < at_least:
        raise FsclError(f"the accuracy matrix has {len(matrix)} task(s); this number needs at least {at_least}")
    _in_range("the accuracy matrix", matrix[np.tril_indices(len(matrix))], "on or below its diagonal")
    return matrix


def _in_range(name: str, values: Array, where: str = "") -> None:
    if np.isnan(values).any():
        raise FsclError(f"{name} has {int(np.isnan(values).sum())} missing value(s) {where}".rstrip())
    if values.size and (values.min() < 0 or values.max() > 1):
        worst = values.max() if values.max() > 1 else values.min()
        raise FsclError(f"{name} holds {worst:g}; accuracies are fractions from 0 to 1, not per cent")
