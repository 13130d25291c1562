"""Each strategy of a benchmark against the best: differences paired by seed, tested over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fscl.estimate import Estimate, seed_interval

__all__ = ["Difference", "against_best"]

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Difference(Estimate):
    """Final accuracy of a strategy less that of the best, over the seeds that both have.

    ``p_value`` is of the hypothesis that the strategy is itself the best; NaN for what is no candidate, and where
    there are fewer than two seeds or no spread to judge by.
    """

    p_value: float


def against_best(accuracy: Mapping[str, BySeed], candidates: frozenset[str]) -> dict[str, Difference]:
    """Every strategy against the best candidate, but for the best itself.

    Seeds are what is independent: tasks of one seed share a network, so they count once. A seed decides the order of
    classes, the initial weights and the batches of every strategy, hence the pairing. The best is the candidate of the
    highest mean among those with the most seeds; of equals, the first.

    Which one is the best is found in the very accuracies that are compared, and a test against it alone would find
    differences where there are none. So each candidate is tested for being below any other: the least p of one-sided
    paired t-tests, times the number of other candidates (multiple comparisons with the best; Hsu, Annals of Statistics
    1984, with Bonferroni's bound in place of a common variance). However many candidates there are, the one that is
    truly the best has p < 0.05 in at most one of twenty cases.

    Args:
        accuracy: strategy -> seed -> final accuracy, a fraction.
        candidates: the strategies among which the best is looked for; bounds are none.

    Returns:
        Differences by strategy, in fractions; empty if there is no candidate.

    Example:
        >>> runs = {"a": {0: 0.80, 1: 0.82, 2: 0.81}, "b": {0: 0.70, 1: 0.73, 2: 0.70}, "bound": {0: 0.9}}
        >>> found = against_best(runs, frozenset("ab"))
        >>> {name: (round(d.mean, 3), round(d.p_value, 4), d.n) for name, d in found.items()}
        {'b': (-0.1, 0.0017, 3), 'bound': (0.1, nan, 1)}
    """
    learners = {name: by_seed for name, by_seed in accuracy.items() if name in candidates and by_seed}
    if not learners:
        return {}
    most = max(len(by_seed) for by_seed in learners.values())
    means = {name: round(float(np.mean(list(s.values()))), 12) for name, s in learners.items() if len(s) == most}
    best = max(means, key=lambda name: means[name])
    found = {}
    for name, by_seed in accuracy.items():
        differences = _differences(by_seed, accuracy[best])
        if name == best or not differences:
            continue
        others = [other for key, other in learners.items() if key != name]
        p_value = _is_best(by_seed, others) if name in learners else math.nan
        found[name] = Difference(**asdict(seed_interval(differences)), p_value=p_value)
    return found


def _is_best(mine: BySeed, others: Sequence[BySeed]) -> float:
    p_values = [p for other in others if math.isfinite(p := _below(_differences(mine, other)))]
    return min(1.0, len(others) * min(p_values)) if p_values else math.nan


def _differences(one: BySeed, other: BySeed) -> list[float]:
    return [one[seed] - other[seed] for seed in one if seed in other]


def _below(differences: list[float]) -> float:
    """One-sided p of the t-test that their mean is not below 0; equal differences leave nothing to judge by."""
    n = len(differences)
    if n < 2 or np.ptp(differences) <= 1e-12:
        return math.nan
    from scipy.special import stdtr

    # scipy.stats.ttest_1samp gives the same in a hundred times as long, and a report takes hundreds
    return float(stdtr(n - 1, math.sqrt(n) * np.mean(differences) / np.std(differences, ddof=1)))
