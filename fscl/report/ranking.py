"""Compares each strategy of a benchmark with the best learner: differences paired by seed, tested over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fscl.similarity.estimate import Estimate, seed_interval

__all__ = ["Difference", "against_best"]

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Difference(Estimate):
    """Final accuracy of a strategy minus that of the best learner, over the seeds that both have.

    ``p_value`` tests the hypothesis that the strategy is itself the best learner. It is NaN for bounds, and if there
    are fewer than two seeds or all differences are equal.
    """

    p_value: float


def against_best(accuracy: Mapping[str, BySeed], candidates: frozenset[str]) -> dict[str, Difference]:
    """Compares every other strategy with the best candidate.

    Only seeds are independent: tasks of one seed share a network. A seed decides the order of classes, the initial
    weights and the batches of every strategy, so differences are paired by seed. The best candidate has the highest
    mean among the candidates with the most seeds; on a tie it is the first.

    The best candidate is chosen by the same accuracies that are compared. A test against it alone would therefore find
    differences where there are none. So each candidate is tested for being worse than any other candidate: p is the
    smallest p of the one-sided paired t-tests, times the number of other candidates (multiple comparisons with the
    best; Hsu, Annals of Statistics 1984, with Bonferroni's bound in place of a common variance). For any number of
    candidates, the true best has p < 0.05 in at most one of twenty cases.

    Args:
        accuracy: strategy -> seed -> final accuracy, a fraction.
        candidates: the strategies that may be the best; bounds are not among them.

    Returns:
        Differences by strategy, as fractions; empty if there is no candidate.

    Example:
        >>> runs = {"a": {0: 0.80, 1: 0.82, 2: 0.81}, "b": {0: 0.70, 1: 0.73, 2: 0.70}, "bound": {0: 0.9}}
        >>> differences = against_best(runs, frozenset("ab"))
        >>> {name: (round(d.mean, 3), round(d.p_value, 4), d.n) for name, d in differences.items()}
        {'b': (-0.1, 0.0017, 3), 'bound': (0.1, nan, 1)}
    """
    learners = {name: by_seed for name, by_seed in accuracy.items() if name in candidates and by_seed}
    if not learners:
        return {}
    most = max(len(by_seed) for by_seed in learners.values())
    means = {name: round(float(np.mean(list(s.values()))), 12) for name, s in learners.items() if len(s) == most}
    best = max(means, key=lambda name: means[name])
    compared = {}
    for name, by_seed in accuracy.items():
        differences = _differences(by_seed, accuracy[best])
        if name == best or not differences:
            continue
        rivals = [rival for key, rival in learners.items() if key != name]
        p_value = _p_of_being_best(by_seed, rivals) if name in learners else math.nan
        compared[name] = Difference(**asdict(seed_interval(differences)), p_value=p_value)
    return compared


def _p_of_being_best(candidate: BySeed, rivals: Sequence[BySeed]) -> float:
    p_values = [p for rival in rivals if math.isfinite(p := _p_of_not_below(_differences(candidate, rival)))]
    return min(1.0, len(rivals) * min(p_values)) if p_values else math.nan


def _differences(first: BySeed, second: BySeed) -> list[float]:
    return [first[seed] - second[seed] for seed in first if seed in second]


def _p_of_not_below(differences: list[float]) -> float:
    """One-sided p of the t-test whose hypothesis is a mean of at least 0; NaN if all differences are equal."""
    n = len(differences)
    if n < 2 or np.ptp(differences) <= 1e-12:
        return math.nan
    from scipy.special import stdtr

    # scipy.stats.ttest_1samp gives the same p but takes a hundred times as long, and a report needs hundreds of tests
    return float(stdtr(n - 1, math.sqrt(n) * np.mean(differences) / np.std(differences, ddof=1)))
