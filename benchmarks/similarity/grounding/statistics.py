"""Scores of a similarity against what is known of the networks, with intervals over networks rather than over pairs."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.similarity.grounding.results import Score
from fscl.similarity import seed_interval

__all__ = [
    "distances",
    "jackknife",
    "mean_scores",
    "nearest",
    "partners",
    "rank_correlation",
    "scores",
    "separation",
]

Array = NDArray[Any]
LEAST_FREE = 5  # degrees of freedom of an interval
UNKNOWN = math.nan, math.nan, math.nan
Statistic = Callable[[Array, Array], float]  # of all values, and the places of the networks that count


def separation(similarity: Array, groups: Sequence[object]) -> float:
    """Average precision (AUPRC) of "the same group" among all pairs, scored by similarity; chance is the base rate.

    NaN where all pairs are alike, or a similarity is not finite.

    >>> separation(np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]), ["a", "a", "b"])
    1.0
    """
    from sklearn.metrics import average_precision_score

    rows, columns = np.triu_indices(len(groups), 1)
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    same, values = labels[rows] == labels[columns], similarity[rows, columns]
    if same.all() or not same.any() or not np.isfinite(values).all():
        return math.nan
    return float(average_precision_score(same, values))


def nearest(similarity: Array, groups: Sequence[object]) -> Array:
    """Of each network, whether its most similar network is of its own group, as 0 or 1; NaN where that is unknown.

    >>> nearest(np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]), ["a", "a", "b"]).tolist()
    [1.0, 1.0, 0.0]
    """
    others = similarity + np.diag(np.full(len(similarity), -np.inf))
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    return np.where(np.isnan(others).any(1), np.nan, labels[others.argmax(1)] == labels)


def rank_correlation(values: Array, other: Array) -> float:
    """Spearman's rho of two vectors, or of the entries of two square matrices off their diagonals; NaN if undefined."""
    from scipy.stats import rankdata

    if values.ndim == 2:
        off = ~np.eye(len(values), dtype=bool)
        values, other = values[off], other[off]
    if len(values) < 3 or not (np.isfinite(values).all() and np.isfinite(other).all()):
        return math.nan
    if np.ptp(values) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(values), rankdata(other))[0, 1])


def partners(similarity: Array, transfer: Array) -> dict[str, Array]:
    """How good a partner the most similar task is: ``transfer[i, j]`` is the accuracy on task i of the features of j.

    Returns:
        Of each task: ``top``, 1 if the most similar task is its best partner and 0 if not; ``rank``, that of the most
        similar among all partners, 1 for the best; ``regret``, by how much it is worse than the best. NaN if unknown.
    """
    others = similarity + np.diag(np.full(len(similarity), -np.inf))
    worth = transfer + np.diag(np.full(len(transfer), -np.inf))
    known = ~(np.isnan(others).any(1) | np.isnan(worth).any(1))
    taken = worth[np.arange(len(worth)), others.argmax(1)]
    rank = 1 + (worth > taken[:, None]).sum(1) + ((worth == taken[:, None]).sum(1) - 1) / 2  # ties share their ranks
    scores = {"top": taken == worth.max(1), "rank": rank, "regret": worth.max(1) - taken}
    return {name: np.where(known, values, np.nan) for name, values in scores.items()}


def distances(angles: Sequence[float], period: float = 360) -> Array:
    """Smallest turns between directions that repeat after a period, in degrees: 180 for lines without a head.

    >>> distances([0, 30, 330])[0].tolist(), distances([0, 30, 180], 180)[0].tolist()
    ([0.0, 30.0, 30.0], [0.0, 30.0, 0.0])
    """
    turns = np.abs(np.subtract.outer(angles, angles)) % period
    return np.minimum(turns, period - turns).astype(float)


def jackknife(
    statistic: Callable[[Array], float],
    clusters: Sequence[object],
    strata: Sequence[object] | None = None,
) -> tuple[float, float, float]:
    """A statistic of networks and its 95 % interval: clusters are left out one by one (Student's t; Rust and Rao 1996).

    Args:
        statistic: of the places of the networks that count.
        clusters: a label of each network; those of one label are left out together.
        strata: the group of each network, where the design fixes groups; clusters vary within them. None: one group.

    Returns:
        The statistic of all networks, and the interval: NaN where leaving one out leaves the statistic undefined, or
        where there are too few to leave out.
    """
    from scipy.special import stdtrit

    whole = float(statistic(np.arange(len(clusters))))
    names = np.unique(np.asarray(clusters), return_inverse=True)[1]
    layers = np.zeros(len(names), int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    variance, free = 0.0, 0
    for layer in np.unique(layers):
        members = np.unique(names[layers == layer])
        if len(members) < 2:
            continue
        less = np.array([statistic(np.flatnonzero(names != member)) for member in members])
        variance += (len(members) - 1) / len(members) * float(np.square(less - less.mean()).sum())
        free += len(members) - 1
    # of two or three networks a group, a discrete statistic may not vary at all, which would seem to be certainty
    half = float(stdtrit(free, 0.975)) * math.sqrt(variance) if free >= LEAST_FREE else math.nan
    return whole, whole - half, whole + half


def scores(
    values: Mapping[str, Array],
    statistic: Statistic,
    clusters: Sequence[object] | None = None,
    strata: Sequence[object] | None = None,
    rival: str = "cka",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Score]:
    """A statistic of each similarity, and how far it is above the rival's, each with an interval.

    Args:
        values: what the statistic takes first, by similarity: matrices (networks last), or vectors.
        statistic: of these values, and of the places of the networks that count.
        clusters, strata: as in :func:`jackknife`; without clusters each network is left out alone.
        rival: the similarity that all are compared with; the differences are NaN if it is not there.
        bounds: which no score can leave.

    Returns:
        The score of each similarity, by its name.
    """
    left_out = range(next(iter(values.values())).shape[-1]) if clusters is None else clusters
    known: dict[tuple[str, bytes], float] = {}

    def of(name: str, kept: Array) -> float:
        key = name, kept.tobytes()
        if key not in known:
            known[key] = statistic(values[name], kept)
        return known[key]

    def above(name: str, kept: Array) -> float:
        return of(name, kept) - of(rival, kept)

    return {
        name: _score(
            jackknife(partial(of, name), left_out, strata),
            jackknife(partial(above, name), left_out, strata) if rival in values else UNKNOWN,
            bounds,
        )
        for name in values
    }


def mean_scores(
    values: Mapping[str, Array], rival: str = "cka", bounds: tuple[float, float] = (0.0, 1.0)
) -> dict[str, Score]:
    """As :func:`scores`, where each network or task has a value: means, and t intervals over these values."""
    return {
        name: _score(_mean(column), _mean(column - values[rival]) if rival in values else UNKNOWN, bounds)
        for name, column in values.items()
    }


def _mean(column: Array) -> tuple[float, float, float]:
    if not np.isfinite(column).all():
        return UNKNOWN
    spread = seed_interval(column.tolist())
    return spread.mean, spread.low, spread.high


def _score(
    of_it: tuple[float, float, float], above_rival: tuple[float, float, float], bounds: tuple[float, float]
) -> Score:
    score, low, high = of_it
    less, less_low, less_high = above_rival
    low, high = (min(max(end, bounds[0]), bounds[1]) if math.isfinite(end) else end for end in (low, high))
    return Score(score=score, low=low, high=high, less=less, less_low=less_low, less_high=less_high)
