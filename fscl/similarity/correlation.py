"""Correlates task-by-task matrices, with tests and intervals that count tasks, not pairs of tasks.

The entries of a task-by-task matrix share tasks, so they are not independent, and a p-value that takes them as
independent is wrong. Here whole tasks are permuted for p-values and resampled for intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fscl.errors import FsclError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Correlation",
    "as_square",
    "check_finite",
    "holm",
    "is_flat",
    "mantel",
    "mid_ranks",
    "mirrored",
]

Array = NDArray[Any]
Pairs = tuple[Array, ...]

_SYMBOLS = {"spearman": "rho", "kendall": "tau", "pearson": "r"}
_PAIRS = ("all", "lower")
_ALTERNATIVES = ("two-sided", "greater", "less")
_BOOTSTRAPS = 1999
_DRAWN_VALUES = 2**19  # permutations are drawn at a time for at most this many values; intervals depend on it
_BLOCK_VALUES = 2**16  # most float64 values in one block of resampled pairs: 512 KiB, which fits in a core's cache


@dataclass(frozen=True)
class Correlation:
    """A correlation of two task-by-task matrices.

    `statistic`, `p_value` and the 95 % interval over tasks, `low` and `high`, are NaN if undefined. `note` says why, or
    gives a caveat.

    >>> print(Correlation(0.62, 0.003, 0.31, 0.8, 20, "spearman"))
    rho = 0.62 [0.31, 0.80], p = 0.003, n = 20 tasks
    """

    statistic: float
    p_value: float
    low: float
    high: float
    n_tasks: int
    method: str = "spearman"
    note: str = ""

    @property
    def defined(self) -> bool:
        return math.isfinite(self.statistic)

    def __str__(self) -> str:
        if not self.defined:
            return f"undefined ({self.note})"
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if math.isfinite(self.low) else ""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{_SYMBOLS.get(self.method, self.method)} = {self.statistic:.2f}{interval}, p = {self.p_value:.2g}, "
            f"n = {self.n_tasks} tasks{note}"
        )


def mantel(
    x: Tensor | Array | list,
    y: Tensor | Array | list,
    *,
    method: str = "spearman",
    pairs: str = "all",
    n_resamples: int = 9999,
    seed: int = 0,
    alternative: str = "two-sided",
    names: tuple[str, str] = ("x", "y"),
) -> Correlation:
    """Correlates two task-by-task matrices; the test permutes tasks, rows and columns of `x` together (Mantel 1967).

    Diagonals are never read. The 95 % interval is a jackknife over tasks for T <= 10. For more tasks it has the
    percentiles of a bootstrap of tasks, without the pairs of a task with itself that resampling makes.

    Args:
        x, y: (T, T). Either may be asymmetric with `pairs="all"`.
        method: "spearman" (rho), "kendall" (tau-b; time grows with T^4) or "pearson" (r).
        pairs: "all" uses every entry off the diagonal (transfer); "lower" the entries [t, i] with i < t (forgetting,
            whose upper triangle is ignored). `x` must then be symmetric, because permuting tasks exchanges its two
            triangles.
        n_resamples: number of random permutations. If T! is not larger, all permutations are used: an exact test.
        seed: seed of the permutations and the bootstrap.
        alternative: "two-sided", "greater" or "less".
        names: names of the two matrices in notes and errors.

    Returns:
        The correlation. It is undefined (NaN with a note, never 0) for fewer than 4 tasks, or if a matrix is constant
        up to rounding.

    Raises:
        FsclError: an option is unknown, the matrices are not square or differ in size, or a used entry is not finite.

    >>> similarity = np.random.default_rng(0).random((8, 8))
    >>> similarity = similarity + similarity.T
    >>> print(mantel(similarity, 1 - similarity**3, pairs="lower"))
    rho = -1.00 [-1.00, -1.00], p = 0.0002, n = 8 tasks
    >>> print(mantel(similarity, np.zeros((8, 8)), names=("similarity", "forgetting")))
    undefined (forgetting is constant)
    """
    _check_option("method", method, _SYMBOLS)
    _check_option("pairs", pairs, _PAIRS)
    _check_option("alternative", alternative, _ALTERNATIVES)
    if n_resamples < 1:
        raise FsclError(f"n_resamples is {n_resamples}; a whole number from 1 up would do, such as 9999")
    left, right = as_square(x, names[0]), as_square(y, names[1])
    if left.shape != right.shape:
        raise FsclError(f"{names[0]} is {left.shape} and {names[1]} is {right.shape}; they need the same tasks")
    tasks = len(left)
    index = np.tril_indices(tasks, -1) if pairs == "lower" else np.nonzero(~np.eye(tasks, dtype=bool))
    if pairs == "lower":
        left = mirrored(left, names[0])
    check_finite(left, index, names[0])
    check_finite(right, index, names[1])

    constant = [
        name
        for name, original, used in zip(names, (x, y), (left, right), strict=True)
        if is_flat(original, used[index])
    ]
    if tasks < 4 or constant:
        too_few = f"{tasks} task{'s' * (tasks != 1)}; at least 4 are needed"
        why = too_few if tasks < 4 else f"{' and '.join(constant)} {'are' if len(constant) > 1 else 'is'} constant"
        return Correlation(math.nan, math.nan, math.nan, math.nan, tasks, method, why)

    rng = np.random.default_rng(seed)
    statistic, p_value = _permutation_test(left, right, index, method, n_resamples, alternative, rng)
    low, high = _interval(left[index], right[index], index, tasks, method, rng)
    notes = []
    if tasks < 7:
        least = (2 if alternative == "two-sided" else 1) / min(math.factorial(tasks), n_resamples + 1)
        notes.append(f"fewer than 7 tasks: p cannot be below {least:.2g}")
    if not math.isfinite(low):
        notes.append("no interval: without one or a few tasks nothing varies")
    return Correlation(statistic, p_value, low, high, tasks, method, "; ".join(notes))


def holm(p_values: Iterable[float]) -> Array:
    """Adjusted p-values that hold the family-wise error rate under any dependence (Holm 1979).

    NaN, the p-value of an undefined test, stays NaN and is not counted. Raises `FsclError` for a value outside [0, 1].

    >>> holm([0.01, float("nan"), 0.04, 0.03])
    array([0.03,  nan, 0.06, 0.06])
    """
    adjusted = np.array(list(p_values), dtype=float)
    outside = adjusted[(adjusted < 0) | (adjusted > 1)]
    if outside.size:
        raise FsclError(f"p-value {outside[0]:g} is outside [0, 1]")
    counted = np.flatnonzero(~np.isnan(adjusted))
    order = counted[np.argsort(adjusted[counted], kind="stable")]
    steps = np.arange(len(order), 0, -1) * adjusted[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _check_option(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise FsclError(f"unknown {option} {value!r}; known: {', '.join(choices)}")


def as_square(values: Tensor | Array | list, name: str) -> Array:
    """A task-by-task matrix in float64. Raises `FsclError` if it is not square."""
    array = values.detach().cpu().double().numpy() if _is_tensor(values) else np.asarray(values, dtype=float)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise FsclError(f"{name} has shape {array.shape}; a task-by-task matrix is square: (tasks, tasks)")
    return array


def _is_tensor(values: Tensor | Array | list) -> TypeGuard[Tensor]:
    """Whether values are a tensor. PyTorch is not imported to find out."""
    return hasattr(values, "detach")


def mirrored(matrix: Array, name: str) -> Array:
    """The lower triangle, mirrored, so that entries that differ by rounding cannot rank a pair in two ways."""
    lower = np.tril(matrix, -1)
    lower = lower + lower.T
    apart = ~np.isclose(np.triu(matrix, 1), np.triu(lower, 1), rtol=1e-5, atol=1e-8, equal_nan=True)
    if apart.any():
        i, j = (int(k) for k in np.argwhere(apart)[0])
        raise FsclError(
            f"{name} is not symmetric ({name}[{i}, {j}] = {matrix[i, j]:g}, {name}[{j}, {i}] = {matrix[j, i]:g}), but "
            "pairs='lower' permutes its tasks; give a symmetric matrix, or use pairs='all' with two full matrices"
        )
    return lower


def check_finite(matrix: Array, index: Pairs, name: str) -> None:
    """Raises `FsclError` for a used entry that is not finite."""
    bad = np.flatnonzero(~np.isfinite(matrix[index]))
    if bad.size:
        i, j = int(index[0][bad[0]]), int(index[1][bad[0]])
        raise FsclError(f"{name}[{i}, {j}] is {matrix[i, j]}; every pair of tasks used needs a finite value")


def is_flat(original: Tensor | Array | list, used: Array) -> bool:
    """Whether used entries are constant, up to rounding of values of unit scale or of the dtype of ``original``."""
    if not used.size:
        return True
    if _is_tensor(original):
        import torch

        eps = torch.finfo(original.dtype if original.is_floating_point() else torch.float64).eps
    else:
        dtype = np.asarray(original).dtype
        eps = float(np.finfo(dtype if dtype.kind == "f" else float).eps)
    return bool(np.ptp(used) <= max(16 * eps * np.abs(used).max(), 1e-15))


def _permutation_test(
    x: Array, y: Array, index: Pairs, method: str, n_resamples: int, alternative: str, rng: np.random.Generator
) -> tuple[float, float]:
    """The statistic and its p-value. A permutation only rearranges the entries of x, so ranks are computed once."""
    from scipy.stats import permutation_test

    everywhere = np.nonzero(~np.eye(len(x), dtype=bool))
    scores = np.zeros(x.shape)
    if method == "kendall":
        scores[everywhere] = np.unique(x[everywhere], return_inverse=True)[1]
        scores = scores.astype(np.int16 if x.size < 2**15 else np.int32)  # small integers are four times as fast
        order = np.argsort(y[index], kind="stable")
        rows, columns, ranked = index[0][order], index[1][order], y[index][order]
        above = np.searchsorted(ranked, ranked, side="right")  # position of the first larger entry, after ties
        divisor = math.sqrt(_untied(x[index]) * _untied(ranked))
    else:
        rows, columns = index
        scores[everywhere], other = x[everywhere], y[index]
        if method == "spearman":
            scores[everywhere] = mid_ranks(x[everywhere], np.ones((1, len(everywhere[0]))))[0]
            other = mid_ranks(other, np.ones((1, len(other))))[0]
        scores, other = scores - scores[index].mean(), other - other.mean()
        other = other / np.linalg.norm(other) / np.linalg.norm(scores[index])

    def statistic(tasks: Array, axis: int = -1) -> Array:
        blocks = np.array_split(tasks.reshape(-1, len(x)).astype(np.intp), _blocks(tasks.size // len(x), len(rows)))
        return np.concatenate([of_block(block) for block in blocks]).reshape(tasks.shape[:-1])

    def of_block(tasks: Array) -> Array:
        permuted = scores.take(tasks[:, rows] * len(x) + tasks[:, columns])
        return _concordance(permuted, above) / divisor if method == "kendall" else permuted @ other

    result = permutation_test(
        (np.arange(len(x)),),
        statistic,
        permutation_type="pairings",
        vectorized=True,
        axis=-1,
        n_resamples=n_resamples,
        batch=max(1, _DRAWN_VALUES // len(rows)),
        alternative=alternative,
        random_state=rng,  # scipy 1.15 renamed it to rng, and still accepts this name
    )
    return min(1.0, max(-1.0, float(result.statistic))), float(result.pvalue)


def _blocks(resamples: int, pairs: int) -> int:
    return min(resamples, math.ceil(resamples * pairs / _BLOCK_VALUES))


def _concordance(entries: Array, above: Array) -> Array:
    """Number of concordant minus discordant pairs of entries (..., P).

    The entries are in the order of their partners in the other matrix; `above` is the position of the first entry with
    a larger partner.
    """
    entries = np.ascontiguousarray(np.moveaxis(entries, -1, 0))
    total = np.zeros(entries.shape[1:])
    for first, row in zip(above, entries, strict=True):
        total += np.sign(entries[first:] - row).sum(0, dtype=np.int32)
    return total


def _untied(values: Array) -> float:
    counts = np.unique(values, return_counts=True)[1].astype(float)
    return float(counts.sum() ** 2 - (counts**2).sum()) / 2


def _interval(
    x: Array, y: Array, index: Pairs, tasks: int, method: str, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % interval over tasks of the correlation of entries x and y; NaN if too few tasks make them vary."""
    from scipy.special import stdtrit

    if tasks <= 10:
        jackknifed = _resampled(x, y, index, np.ones((tasks, tasks)) - np.eye(tasks), method)
        statistic = float(_resampled(x, y, index, np.ones((1, tasks)), method)[0])
        error = math.sqrt((tasks - 1) / tasks * float(np.square(jackknifed - jackknifed.mean()).sum()))
        half = float(stdtrit(tasks - 1, 0.975)) * error
        low, high = statistic - half, statistic + half
    else:
        counts = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=_BOOTSTRAPS)
        draws = _resampled(x, y, index, counts, method)
        drawn = draws[np.isfinite(draws)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if 2 * len(drawn) > len(draws) else (math.nan, math.nan)
    return float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1))


def _resampled(x: Array, y: Array, index: Pairs, counts: Array, method: str) -> Array:
    """The statistic if task i is drawn counts[b, i] times: (B,); NaN if a resample is constant.

    The pair (i, j) is then drawn counts_i * counts_j times. So a resample is a weighting of the original pairs, without
    pairs of a task with itself, and all resamples are computed by matrix products.
    """
    blocks = np.array_split(counts, _blocks(len(counts), len(x)))
    return np.concatenate([_weighted(x, y, (c[:, index[0]] * c[:, index[1]]).astype(float), method) for c in blocks])


def _weighted(x: Array, y: Array, weights: Array, method: str) -> Array:
    if method == "kendall":
        sx, sy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
        both, only_x, only_y = (((weights @ m) * weights).sum(1) for m in (sx * sy, np.abs(sx), np.abs(sy)))
    else:
        # centred first, because a large common offset would cost precision
        x, y = (mid_ranks(v, weights) if method == "spearman" else v - v.mean() for v in (x, y))
        weights = weights / np.maximum(weights.sum(1, keepdims=True), 1)
        x, y = (v - (weights * v).sum(1, keepdims=True) for v in (x, y))
        both, only_x, only_y = ((weights * product).sum(1) for product in (x * y, x * x, y * y))
    # the variance of a constant is rounding, about eps^2 of the squared values
    defined = (only_x > 1e-24 * only_x.max()) & (only_y > 1e-24 * only_y.max())
    return np.where(defined, both, np.nan) / np.sqrt(np.where(defined, only_x * only_y, 1))


def mid_ranks(values: Array, weights: Array) -> Array:
    """Mid-ranks, up to a constant, of values (P,) that are each counted weights (B, P) times: (B, P)."""
    order = np.argsort(values, kind="stable")
    distinct, group = np.unique(values, return_inverse=True)
    starts = np.searchsorted(values[order], distinct)
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(totals, axis=1) - totals / 2)[:, group]
