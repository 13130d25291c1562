"""Correlation of task-by-task matrices over seeds, and within strata of pairs."""

import numpy as np
import pandas as pd
import pytest

from fscl.errors import FsclError
from fscl.similarity import mantel, pooled_mantel


def lag(tasks):
    return np.abs(np.subtract.outer(np.arange(tasks), np.arange(tasks)))


def symmetric(rng, tasks):
    found = rng.normal(size=(tasks, tasks))
    return found + found.T


@pytest.mark.parametrize("pairs", ["all", "lower"])
def test_pooled_mantel_of_one_seed_without_strata_equals_mantel(pairs):
    rng = np.random.default_rng(0)
    x = symmetric(rng, 9)
    y = x + 4 * rng.normal(size=(9, 9))
    ours, theirs = pooled_mantel([(x, y)], pairs=pairs), mantel(x, y, pairs=pairs)
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-12)
    assert ours.p_value == pytest.approx(theirs.p_value, abs=0.02)
    assert 0.01 < theirs.p_value < 0.9, "an extreme p would agree by chance"
    assert np.isnan(ours.low), "one seed has no spread"


def test_pooled_mantel_is_the_mean_over_seeds():
    rng = np.random.default_rng(1)
    seeds = [(symmetric(rng, 7), rng.normal(size=(7, 7))) for _ in range(3)]
    found = pooled_mantel(seeds)
    each = [mantel(x, y, n_resamples=9).statistic for x, y in seeds]
    assert found.each == pytest.approx(each)
    assert found.statistic == pytest.approx(np.mean(each))
    half = 4.302653 * np.std(each, ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.statistic - half, found.statistic + half), rel=1e-5)


def test_pooled_mantel_with_strata_compares_ranks_within_them():
    rng = np.random.default_rng(2)
    x, y, strata = symmetric(rng, 8), rng.normal(size=(8, 8)), lag(8)
    index = np.tril_indices(8, -1)
    table = pd.DataFrame({"x": x[index], "y": y[index], "g": strata[index]})
    ranks = table[["x", "y"]].rank()
    oracle = (ranks - ranks.groupby(table["g"]).transform("mean")).corr().iloc[0, 1]
    assert pooled_mantel([(x, y)], strata=strata, pairs="lower").statistic == pytest.approx(oracle)
    named = 100 - 7 * strata  # what strata are called does not matter
    assert pooled_mantel([(x, y)], strata=named, pairs="lower").statistic == pytest.approx(oracle)


def test_pooled_mantel_finds_only_what_strata_do_not_explain():
    """Both matrices follow the distance in the stream, with task effects and noise: false positives of 200 trials."""
    rng = np.random.default_rng(3)
    plain, within, true = [], [], []
    for _ in range(200):
        seeds = []
        for _ in range(2):
            task, other = rng.normal(size=10), rng.normal(size=10)
            x = -lag(10) + np.add.outer(task, task) + symmetric(rng, 10)
            y = lag(10) + np.add.outer(other, other) + rng.normal(size=(10, 10))
            seeds.append((x, y))
        options = {"pairs": "lower", "n_resamples": 199}
        plain.append(pooled_mantel(seeds, **options).p_value)
        within.append(pooled_mantel(seeds, strata=lag(10), **options).p_value)
        linked = [(x, y - 2 * x) for x, y in seeds]
        true.append(pooled_mantel(linked, strata=lag(10), **options).p_value)
    assert np.mean(np.array(plain) < 0.05) > 0.95, "without strata the distance alone is found"
    assert np.mean(np.array(within) < 0.05) < 0.09  # 0.05 and three standard errors
    assert np.mean(np.array(true) < 0.05) > 0.95


def test_the_same_tasks_in_every_seed_are_not_more_evidence_than_in_one():
    rng = np.random.default_rng(4)
    x = symmetric(rng, 8)
    y = x + 4 * rng.normal(size=(8, 8))
    once = pooled_mantel([(x, y)]).p_value
    assert pooled_mantel([(x, y)] * 4, same_tasks=True).p_value == once
    assert pooled_mantel([(x, y)] * 4).p_value < once / 2


def test_undefined_seeds_are_left_out_and_noted():
    rng = np.random.default_rng(5)
    x, y = symmetric(rng, 6), rng.normal(size=(6, 6))
    found = pooled_mantel([(x, y), (x, np.ones((6, 6)))], names=("similarity", "forgetting"))
    assert found.n_seeds == 1
    assert np.isnan(found.each[1])
    assert found.note == "forgetting is constant"
    nothing = pooled_mantel([(x, np.ones((6, 6)))] * 2)
    assert not nothing.defined
    assert str(nothing) == "undefined (y is constant)"
    assert pooled_mantel([(x[:3, :3], y[:3, :3])]).note == "3 tasks; at least 4 are needed"


@pytest.mark.parametrize(
    ("matrices", "options", "message"),
    [
        ([], {}, "no matrices"),
        ([(np.eye(5), np.eye(6))], {}, r"\(5, 5\), \(6, 6\); they need the same number of tasks"),
        ([(np.eye(5), np.eye(5))], {"pairs": "upper"}, "unknown pairs 'upper'; known: all, lower"),
        ([(np.triu(np.ones((5, 5))), np.eye(5))], {"pairs": "lower"}, "x is not symmetric"),
        ([(np.full((5, 5), np.nan), np.eye(5))], {}, r"x\[0, 1\] is nan"),
        ([(np.eye(5), np.eye(5))], {"strata": np.eye(4)}, r"strata are \(4, 4\)"),
    ],
)
def test_pooled_mantel_explains_wrong_arguments(matrices, options, message):
    with pytest.raises(FsclError, match=message):
        pooled_mantel(matrices, **options)
