"""Correlates two task-by-task matrices over several seeds, and within strata of pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fscl.errors import FsclError
from fscl.similarity.correlation import as_square, check_finite, is_flat, mid_ranks, mirrored
from fscl.similarity.estimate import seed_interval

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PooledCorrelation", "pooled_mantel"]

Array = NDArray[Any]
Matrix: TypeAlias = "Tensor | Array | list"
PAIRS = ("all", "lower")
_BLOCK_VALUES = 2**22  # permutations are drawn at a time for at most this many values of permuted matrices
_PIECE_VALUES = 2**17  # most values gathered at a time: 1 MB stays in the cache, 5 ms instead of 34 ms for 20 tasks


@dataclass(frozen=True)
class PooledCorrelation:
    """Mean over seeds of Spearman's rho between two task-by-task matrices.

    ``low`` and ``high`` are a 95 % t interval of the mean over seeds, NaN for a single seed. ``each`` has the rho of
    each seed, NaN if it is undefined, and ``n_seeds`` counts the seeds with a defined rho. If there are none, all
    values are NaN. ``note`` says why a rho is undefined.

    >>> print(PooledCorrelation(-0.83, 0.0002, -0.93, -0.73, 3, 20, (-0.8, -0.83, -0.86)))
    rho = -0.83 [-0.93, -0.73], p = 0.0002, n = 3 seeds of 20 tasks
    """

    statistic: float
    p_value: float
    low: float
    high: float
    n_seeds: int
    n_tasks: int
    each: tuple[float, ...]
    note: str = ""

    @property
    def defined(self) -> bool:
        return math.isfinite(self.statistic)

    def __str__(self) -> str:
        if not self.defined:
            return f"undefined ({self.note})"
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if math.isfinite(self.low) else ""
        seeds = f"{self.n_seeds} seed{'s' * (self.n_seeds != 1)}"
        return f"rho = {self.statistic:.2f}{interval}, p = {self.p_value:.2g}, n = {seeds} of {self.n_tasks} tasks"


def pooled_mantel(
    matrices: Sequence[tuple[Matrix, Matrix]],
    *,
    pairs: str = "all",
    strata: Matrix | None = None,
    same_tasks: bool = False,
    n_resamples: int = 9999,
    seed: int = 0,
    names: tuple[str, str] = ("x", "y"),
) -> PooledCorrelation:
    """Mean rank correlation of two task-by-task matrices over seeds, tested by permuting tasks within each seed.

    With ``strata``, ranks are compared only among pairs of the same stratum: the mean rank of each stratum is
    subtracted. An example: along a stream, both similarity and forgetting depend on the number of tasks between two
    tasks. With this number as strata, the test is whether similarity says more about forgetting than the distance does.
    The residuals of x are then permuted (Anderson & Legendre 1999).

    Args:
        matrices: (x, y) of each seed, (T, T) each.
        pairs: "all" uses every entry off the diagonal; "lower" uses the entries [t, i] with i < t, and x must be
            symmetric.
        strata: labels (T, T), the same for all seeds, and symmetric with ``pairs="lower"``. None is one stratum.
        same_tasks: whether the seeds learned the same tasks in the same order. All seeds are then permuted in the same
            way, because the effect of a task in a second seed is no independent evidence.
        n_resamples: number of random permutations.
        seed: seed of the permutations.
        names: names of the two matrices in notes and errors.

    Returns:
        The correlation with a two-sided p-value. A seed is undefined and left out if one of its matrices is constant,
        or constant within all strata. The result is undefined (NaN with a note, never 0) if all seeds are undefined or
        there are fewer than 4 tasks.

    Raises:
        FsclError: there are no matrices, they are not square, their numbers of tasks differ, or a used entry is not
            finite.

    References:
        Mantel. The detection of disease clustering and a generalized regression approach. 1967.
        Anderson, Legendre. An empirical comparison of permutation methods for tests of partial regression coefficients
        in a linear model. 1999.

    >>> rng = np.random.default_rng(0)
    >>> seeds = [(s, -s + 0.1 * rng.random((8, 8))) for s in (m + m.T for m in rng.random((3, 8, 8)))]
    >>> print(pooled_mantel(seeds, pairs="lower"))
    rho = -0.99 [-1.00, -0.98], p = 0.0002, n = 3 seeds of 8 tasks
    >>> lag = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    >>> print(pooled_mantel([(1.0 / (1 + lag), lag)], strata=lag))
    undefined (x and y are constant within strata)
    """
    if pairs not in PAIRS:
        raise FsclError(f"unknown pairs {pairs!r}; known: {', '.join(PAIRS)}")
    if not matrices:
        raise FsclError("no matrices; give a pair of them for each seed")
    squares = [(as_square(x, names[0]), as_square(y, names[1])) for x, y in matrices]
    if len(shapes := {m.shape for pair in squares for m in pair}) > 1:
        raise FsclError(f"the matrices are {', '.join(map(str, sorted(shapes)))}; they need the same number of tasks")
    tasks = len(squares[0][0])
    index = np.tril_indices(tasks, -1) if pairs == "lower" else np.nonzero(~np.eye(tasks, dtype=bool))
    if tasks < 4:
        return _undefined(f"{tasks} task{'s' * (tasks != 1)}; at least 4 are needed", tasks, len(squares))
    groups = _groups(strata, tasks, pairs == "lower")
    scores: list[tuple[Array, Array] | None] = []
    reasons = []
    for (x, y), originals in zip(squares, matrices, strict=True):
        x = mirrored(x, names[0]) if pairs == "lower" else x
        check_finite(x, index, names[0])
        check_finite(y, index, names[1])
        flat_overall = [n for n, g, m in zip(names, originals, (x, y), strict=True) if is_flat(g, m[index])]
        left, right = (_residual_ranks(m, index, groups) for m in (x, y))
        flat_within = [n for n, r in zip(names, (left, right), strict=True) if np.abs(r[index]).max() < 1e-9]
        if flat_overall or flat_within:
            flat, where_flat = (flat_overall, "") if flat_overall else (flat_within, " within strata")
            reasons.append(f"{' and '.join(flat)} {'are' if len(flat) > 1 else 'is'} constant{where_flat}")
        scores.append(None if flat_overall or flat_within else _scaled(left, right, index, pairs == "lower"))
    usable = [pair for pair in scores if pair is not None]
    if not usable:
        return _undefined("; ".join(dict.fromkeys(reasons)), tasks, len(squares))
    rhos = [math.nan if pair is None else float(pair[0][index] @ pair[1]) for pair in scores]
    mean = math.fsum(e for e in rhos if math.isfinite(e)) / len(usable)
    null = _null(usable, index, tasks, same_tasks, n_resamples, np.random.default_rng(seed))
    # rounding must not make the identity permutation count as less extreme
    above, below = int((null >= mean - 1e-12).sum()), int((null <= mean + 1e-12).sum())
    p_value = min(1.0, 2 * (1 + min(above, below)) / (n_resamples + 1))
    spread = seed_interval([e for e in rhos if math.isfinite(e)])
    low, high = max(-1.0, spread.low), min(1.0, spread.high)  # NaN stays
    low, high = (math.nan, math.nan) if len(usable) == 1 else (low, high)
    return PooledCorrelation(
        mean, p_value, low, high, len(usable), tasks, tuple(rhos), "; ".join(dict.fromkeys(reasons))
    )


def _undefined(why: str, tasks: int, seeds: int) -> PooledCorrelation:
    nan = math.nan
    return PooledCorrelation(nan, nan, nan, nan, 0, tasks, (nan,) * seeds, why)


def _groups(strata: Matrix | None, tasks: int, lower: bool) -> Array:
    """The number of each entry's stratum."""
    if strata is None:
        return np.zeros((tasks, tasks), dtype=int)
    labels = as_square(strata, "strata")
    if labels.shape != (tasks, tasks):
        raise FsclError(f"strata are {labels.shape} and the matrices {(tasks, tasks)}; they need the same tasks")
    labels = mirrored(labels, "strata") if lower else labels
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _residual_ranks(matrix: Array, index: tuple[Array, ...], groups: Array) -> Array:
    """Ranks of the used entries minus the mean rank of their stratum; 0 elsewhere."""
    values, stratum = matrix[index], groups[index]
    ranks = mid_ranks(values, np.ones((1, len(values))))[0]
    sums, counts = np.bincount(stratum, ranks), np.bincount(stratum)
    residuals = np.zeros(matrix.shape)
    residuals[index] = ranks - (sums / np.maximum(counts, 1))[stratum]
    return residuals


def _scaled(left: Array, right: Array, index: tuple[Array, ...], lower: bool) -> tuple[Array, Array]:
    """Scores whose sum of products over used entries is the correlation: a matrix to permute, and a vector."""
    left_values, right_values = left[index], right[index]
    left = left + left.T if lower else left
    return left / np.linalg.norm(left_values), right_values / np.linalg.norm(right_values)


def _null(
    scores: list[tuple[Array, Array]],
    index: tuple[Array, ...],
    tasks: int,
    same_tasks: bool,
    n_resamples: int,
    rng: np.random.Generator,
) -> Array:
    """Mean over seeds of the statistic for each permutation of tasks: (n_resamples,)."""
    means = []
    block = max(1, _BLOCK_VALUES // len(index[0]))
    for begin in range(0, n_resamples, block):
        count = min(block, n_resamples - begin)
        pieces = min(count, math.ceil(count * len(index[0]) / _PIECE_VALUES))
        total, order = np.zeros(count), None
        for left, right in scores:
            if order is None or not same_tasks:
                order = rng.permuted(np.tile(np.arange(tasks), (count, 1)), axis=1)
            parts = np.array_split(order, pieces)
            total += np.concatenate([left.take(o[:, index[0]] * tasks + o[:, index[1]]) @ right for o in parts])
        means.append(total / len(scores))
    return np.concatenate(means)
