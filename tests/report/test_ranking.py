"""Comparisons with the best strategy, where the true best is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fscl.report.ranking import against_best


def drawn(rng: np.random.Generator, means: list[float], seeds: int) -> dict[str, dict[int, float]]:
    """Random accuracies of strategies with these means. All strategies have the same seeds."""
    shared = rng.normal(scale=0.02, size=seeds)
    return {
        f"s{i}": dict(enumerate((mean + shared + rng.normal(scale=0.01, size=seeds)).tolist()))
        for i, mean in enumerate(means)
    }


def test_p_of_being_best_is_the_smallest_one_sided_p_times_the_number_of_tests() -> None:
    runs = drawn(np.random.default_rng(0), [0.5, 0.51, 0.52, 0.49], 5)
    values = {name: list(by_seed.values()) for name, by_seed in runs.items()}
    found = against_best(runs, frozenset(runs))
    for name, difference in found.items():
        p = min(ttest_rel(values[name], values[o], alternative="less").pvalue for o in runs if o != name)
        assert difference.p_value == pytest.approx(min(1.0, 3 * p))


def test_the_true_best_is_rarely_rejected_and_worse_strategies_often_are() -> None:
    """A test against the strategy with the highest mean would reject the true best too often."""
    rng = np.random.default_rng(1)
    denied = told = naive = 0
    draws = 300
    for _ in range(draws):
        runs = drawn(rng, [0.5] * 8 + [0.4], 3)
        found = against_best(runs, frozenset(runs))
        denied += "s0" in found and found["s0"].p_value < 0.05
        told += found["s8"].p_value < 0.05
        naive += "s0" in found and found["s0"].high < 0
    assert denied <= 0.05 * draws + 3 * math.sqrt(0.05 * 0.95 * draws)
    assert naive > denied
    assert told > 0.5 * draws


def test_the_best_strategy_is_among_those_with_the_most_seeds() -> None:
    runs = {"lucky": {0: 0.99}, "a": {0: 0.8, 1: 0.7, 2: 0.6}, "b": {0: 0.7, 1: 0.61, 2: 0.52}}
    found = against_best(runs, frozenset(runs))
    assert set(found) == {"lucky", "b"}
    assert found["b"].n == 3
    assert math.isfinite(found["b"].p_value)
    assert math.isnan(found["lucky"].p_value)
