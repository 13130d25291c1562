"""Scores against what is known of networks: definitions, textbook intervals, and what must not change them."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.similarity.grounding.statistics import (
    distances,
    jackknife,
    mean_scores,
    nearest,
    partners,
    rank_correlation,
    scores,
    separation,
)

# the same group


@pytest.mark.parametrize("seed", range(4))
def test_separation_is_the_mean_precision_at_pairs_of_one_group(seed, groups, matrices):
    matrix = matrices[seed]
    pairs = sorted(((matrix[i, j], groups[i] == groups[j]) for i in range(9) for j in range(i)), reverse=True)
    precisions = [sum(same for _, same in pairs[: k + 1]) / (k + 1) for k, (_, same) in enumerate(pairs) if same]
    assert separation(matrix, groups) == pytest.approx(np.mean(precisions))


def test_separation_takes_order_alone_and_any_order_of_networks(groups, grouped, matrices):
    matrix = matrices[0]
    assert separation(np.exp(3 * matrix), groups) == pytest.approx(separation(matrix, groups))
    order = np.random.default_rng(1).permutation(9)
    moved = separation(matrix[np.ix_(order, order)], [groups[k] for k in order])
    assert moved == pytest.approx(separation(matrix, groups))
    diagonal = matrix + np.diag(np.full(9, 50.0))  # a network and itself are no pair
    assert separation(diagonal, groups) == separation(matrix, groups)
    assert separation(grouped, groups) == 1
    assert separation(np.ones((9, 9)), groups) == pytest.approx((3 + 6 + 1) / 36)  # chance


def test_separation_is_unknown_where_nothing_can_be_told(groups, matrices):
    broken = matrices[0].copy()
    broken[2, 5] = broken[5, 2] = np.nan
    for matrix, labels in ((matrices[0], ["a"] * 9), (matrices[0], list("abcdefghi")), (broken, groups)):
        assert math.isnan(separation(matrix, labels))


def test_the_nearest_is_another_network(groups, grouped):
    assert nearest(grouped, groups).tolist() == [1.0] * 9
    assert nearest(np.diag(np.full(9, 50.0)) - grouped, groups).tolist() == [0.0] * 9
    broken = grouped.copy()
    broken[2, 5] = np.nan
    assert np.isnan(nearest(broken, groups)).tolist() == [k == 2 for k in range(9)]


# ranks and partners


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 40).astype(float), rng.random(40)  # with ties
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    left, right = rng.random((6, 6)), rng.random((6, 6))
    off = ~np.eye(6, dtype=bool)
    expected = stats.spearmanr(left[off], right[off]).statistic
    np.fill_diagonal(left, 99)
    assert rank_correlation(left, right) == pytest.approx(expected)
    for unknown in (np.ones(40), np.full(40, np.nan), np.array([np.inf, *one[1:]])):
        assert math.isnan(rank_correlation(unknown, other))
        assert math.isnan(rank_correlation(other, unknown))
    assert math.isnan(rank_correlation(one[:2], other[:2]))


def test_partners_are_judged_by_what_their_features_are_worth():
    worth = np.array([[9, 0.5, 0.7, 0.6], [0.1, 9, 0.1, 0.4], [0.3, 0.2, 9, 0.1], [0.5, 0.5, 0.5, 9]])
    taken = np.array([[1, 0.2, 0.1, 0.8], [0.2, 1, 0.9, 0.3], [0.1, 0.9, 1, 0.3], [0.8, 0.3, 0.3, 1]])  # 3, 2, 1, 0
    found = partners(taken, worth)
    assert found["top"].tolist() == [0, 0, 0, 1]
    assert found["rank"].tolist() == [2, 2.5, 2, 2]  # ties share the mean of their ranks
    assert found["regret"] == pytest.approx([0.1, 0.3, 0.1, 0])
    best = partners(worth, worth)
    assert best["regret"].tolist() == [0] * 4
    assert best["top"].tolist() == [1] * 4
    taken[1, 2] = np.nan
    assert [np.isnan(row).tolist() for row in partners(taken, worth).values()] == [[False, True, False, False]] * 3


def test_distances_go_the_short_way_round():
    angles = [0, 10, 100, 190, 350]
    turns = distances(angles)
    assert turns[0].tolist() == [0, 10, 100, 170, 10]
    assert np.array_equal(turns, turns.T)
    assert np.array_equal(distances([a + 720 for a in angles]), turns)
    assert distances(angles, 180)[0].tolist() == [0, 10, 80, 10, 10]
    assert turns.max() <= 180
    assert distances(angles, 180).max() <= 90


# intervals


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(0).normal(size=12)
    found = jackknife(lambda kept: values[kept].mean(), range(12))
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert found == pytest.approx((values.mean(), *expected))


def test_clusters_are_left_out_whole():
    means = np.random.default_rng(0).normal(size=8)
    values, clusters = np.repeat(means, 3), np.repeat(list("abcdefgh"), 3)
    found = jackknife(lambda kept: values[kept].mean(), clusters.tolist())
    assert found[1:] == pytest.approx(stats.t.interval(0.95, 7, means.mean(), stats.sem(means)))
    apart = jackknife(lambda kept: values[kept].mean(), range(24))
    assert apart[2] - apart[1] < 0.8 * (found[2] - found[1]), "copies that count as networks seem to be certainty"


def test_what_the_design_fixes_is_no_chance():
    values, strata = np.random.default_rng(0).normal(size=12), ["low"] * 6 + ["high"] * 6
    widths = []
    for shift in (0, 100):
        moved = values + shift * np.array([s == "high" for s in strata])
        _, low, high = jackknife(lambda kept, moved=moved: moved[kept].mean(), range(12), strata)
        widths.append(high - low)
        _, low, high = jackknife(lambda kept, moved=moved: moved[kept].mean(), range(12))
        widths.append(high - low)
    assert widths[3] > 10 * widths[1]
    # the statistic is a mean of means of strata, each of which varies on its own
    halves = values[:6], values[6:]

    def of_strata(kept: np.ndarray) -> float:
        return float(np.mean([values[kept[kept < 6]].mean(), values[kept[kept >= 6]].mean()]))

    found = jackknife(of_strata, range(12), strata)
    error = math.sqrt(sum(half.var(ddof=1) / 6 for half in halves)) / 2
    assert found[2] - found[0] == pytest.approx(stats.t.ppf(0.975, 10) * error)


def test_an_interval_of_too_few_is_unknown():
    values = np.arange(20.0)

    def mean(kept: np.ndarray) -> float:
        return float(values[kept].mean())

    assert math.isfinite(jackknife(mean, range(6))[1])
    for clusters, strata in ((range(5), None), ([0] * 20, None), (range(6), [0, 0, 1, 1, 2, 2])):
        score, low, high = jackknife(mean, clusters, strata)
        assert math.isfinite(score)
        assert math.isnan(low)
        assert math.isnan(high)
    assert math.isnan(jackknife(lambda kept: float("nan") if 3 not in kept else 1.0, range(10))[1])


def test_scores_say_how_far_they_are_from_the_rivals():
    rng = np.random.default_rng(0)
    rival = rng.normal(0.5, 0.1, 10)
    values = {"cka": rival, "ours": rival + 0.2 + rng.normal(0, 0.01, 10), "twin": rival}

    def mean(column: np.ndarray, kept: np.ndarray) -> float:
        return float(column[kept].mean())

    for found in (scores(values, mean), mean_scores(values)):
        for name, column in values.items():
            low, high = stats.t.interval(0.95, 9, column.mean(), stats.sem(column))
            score = found[name]
            assert (score.score, score.low, score.high) == pytest.approx((column.mean(), low, high))
            if name != "ours":
                assert (score.less, score.less_low, score.less_high) == (0, 0, 0)
        less = values["ours"] - rival  # in pairs: what all networks share cancels
        known = (less.mean(), *stats.t.interval(0.95, 9, less.mean(), stats.sem(less)))
        assert (found["ours"].less, found["ours"].less_low, found["ours"].less_high) == pytest.approx(known)


def test_scores_stay_within_their_bounds_and_need_no_rival():
    cut = mean_scores({"ours": np.array([0.0, 1.0, 1.0, 1.0])}, bounds=(0.0, 1.0))["ours"]
    assert (cut.score, cut.high) == (0.75, 1.0)
    assert math.isnan(cut.less)
    assert math.isnan(mean_scores({"ours": np.array([0.0, np.nan])})["ours"].score)
