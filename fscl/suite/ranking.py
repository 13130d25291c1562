"""Each strategy of a benchmark against the best: differences paired by seed, tested over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Difference", "against_best"]


@dataclass(frozen=True)
class Difference:
    """Final accuracy of a strategy less that of the best, over the seeds that both have.

    ``low`` and ``high`` are a 95 % t interval of the mean over seeds; ``p_value`` is of the paired t-test, adjusted by
    Holm over the strategies of the benchmark. NaN where there are fewer than two seeds, or no spread to judge by.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int


def against_best(accuracy: Mapping[str, Mapping[int, float]], candidates: frozenset[str]) -> dict[str, Difference]:
    """Every strategy against the best candidate, but for the best itself.

    Seeds are what is independent: tasks of one seed share a network, so they count once. A seed decides the order of
    classes, the initial weights and the batches of every strategy, hence the pairing.

    Args:
        accuracy: strategy -> seed -> final accuracy, a fraction.
        candidates: the strategies among which the best is looked for; bounds are none.

    Returns:
        Differences by strategy, in fractions; empty if there is no candidate.

    Example:
        >>> runs = {"a": {0: 0.80, 1: 0.82, 2: 0.81}, "b": {0: 0.70, 1: 0.73, 2: 0.70}, "c": {0: 0.9}}
        >>> found = against_best(runs, frozenset("ab"))
        >>> {name: (round(d.mean, 3), round(d.p_value, 4), d.n) for name, d in found.items()}
        {'b': (-0.1, 0.0033, 3), 'c': (0.1, nan, 1)}
    """
    from fscl.similarity.correlation import holm, seed_interval

    eligible = [name for name in accuracy if name in candidates and accuracy[name]]
    if not eligible:
        return {}
    best = max(eligible, key=lambda name: float(np.mean(list(accuracy[name].values()))))
    found = {}
    for name, by_seed in accuracy.items():
        seeds = [seed for seed in by_seed if seed in accuracy[best]]
        if name == best or not seeds:
            continue
        differences = [by_seed[seed] - accuracy[best][seed] for seed in seeds]
        spread = seed_interval(differences)
        found[name] = Difference(spread.mean, spread.low, spread.high, _paired(differences), len(seeds))
    adjusted = holm([difference.p_value for difference in found.values()])
    return {
        name: replace(difference, p_value=float(p))
        for (name, difference), p in zip(found.items(), adjusted, strict=True)
    }


def _paired(differences: list[float]) -> float:
    """p of the t-test that the differences' mean is 0; equal differences leave nothing to judge by."""
    if len(differences) < 2 or np.ptp(differences) <= 1e-12:
        return math.nan
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)
