"""Scores against what is known of networks: definitions, textbook intervals, and what must not change them."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from fscl.errors import FsclError
from fscl.suite.evidence.grounding_scores import (
    damage_scores,
    group_scores,
    less_own_mean,
    matrix_scores,
    plain,
    transfer_scores,
)
from fscl.suite.evidence.grounding_statistics import (
    distances,
    jackknife,
    mean_scores,
    nearest,
    partners,
    rank_correlation,
    scores,
    separation,
)
from fscl.suite.evidence.grounding_superclasses import SUPERCLASSES, class_numbers, superclass_tasks

GROUPS = ["a"] * 3 + ["b"] * 4 + ["c"] * 2


def symmetric(seed: int, size: int = 9) -> np.ndarray:
    matrix = np.random.default_rng(seed).random((size, size))
    return matrix + matrix.T


def together(groups: list[str]) -> np.ndarray:
    """Similarity 1 within a group, and 0 across."""
    return np.equal.outer(np.array(groups), np.array(groups)).astype(float)


# the same group


@pytest.mark.parametrize("seed", range(4))
def test_separation_is_the_mean_precision_at_pairs_of_one_group(seed):
    matrix = symmetric(seed)
    pairs = sorted(((matrix[i, j], GROUPS[i] == GROUPS[j]) for i in range(9) for j in range(i)), reverse=True)
    precisions = [sum(same for _, same in pairs[: k + 1]) / (k + 1) for k, (_, same) in enumerate(pairs) if same]
    assert separation(matrix, GROUPS) == pytest.approx(np.mean(precisions))


def test_separation_takes_order_alone_and_any_order_of_networks():
    matrix = symmetric(0)
    assert separation(np.exp(3 * matrix), GROUPS) == pytest.approx(separation(matrix, GROUPS))
    order = np.random.default_rng(1).permutation(9)
    moved = separation(matrix[np.ix_(order, order)], [GROUPS[k] for k in order])
    assert moved == pytest.approx(separation(matrix, GROUPS))
    diagonal = matrix + np.diag(np.full(9, 50.0))  # a network and itself are no pair
    assert separation(diagonal, GROUPS) == separation(matrix, GROUPS)
    assert separation(together(GROUPS), GROUPS) == 1
    assert separation(np.ones((9, 9)), GROUPS) == pytest.approx((3 + 6 + 1) / 36)  # chance


def test_separation_is_unknown_where_nothing_can_be_told():
    broken = symmetric(0)
    broken[2, 5] = broken[5, 2] = np.nan
    for matrix, groups in ((symmetric(0), ["a"] * 9), (symmetric(0), list("abcdefghi")), (broken, GROUPS)):
        assert math.isnan(separation(matrix, groups))


def test_the_nearest_is_another_network():
    assert nearest(together(GROUPS), GROUPS).tolist() == [1.0] * 9
    assert nearest(np.diag(np.full(9, 50.0)) - together(GROUPS), GROUPS).tolist() == [0.0] * 9
    broken = together(GROUPS)
    broken[2, 5] = np.nan
    assert np.isnan(nearest(broken, GROUPS)).tolist() == [k == 2 for k in range(9)]


def test_scores_of_groups():
    values = {"known": together(GROUPS) + 0.1 * symmetric(0), "cka": symmetric(2), "same": symmetric(2)}
    found = group_scores(values, GROUPS)
    for score in found.values():
        assert [score["known"][key] for key in ("score", "high")] == pytest.approx([1, 1])
        assert score["known"]["less"] == pytest.approx(1 - score["cka"]["score"])
        assert score["same"]["less"] == score["same"]["less_low"] == score["same"]["less_high"] == 0
    assert found["separation"]["cka"]["score"] == separation(values["cka"], GROUPS)
    assert found["nearest"]["cka"]["score"] == nearest(values["cka"], GROUPS).mean()
    # of three groups, of which whole ones are left out, there is too little to tell
    whole = group_scores(values, GROUPS, together=True)["separation"]["cka"]
    assert whole["score"] == found["separation"]["cka"]["score"]
    assert math.isnan(whole["low"])


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
            assert [found[name][key] for key in ("score", "low", "high")] == pytest.approx([column.mean(), low, high])
            if name != "ours":
                assert [found[name][key] for key in ("less", "less_low", "less_high")] == [0, 0, 0]
        less = values["ours"] - rival  # in pairs: what all networks share cancels
        known = [less.mean(), *stats.t.interval(0.95, 9, less.mean(), stats.sem(less))]
        assert [found["ours"][key] for key in ("less", "less_low", "less_high")] == pytest.approx(known)
    cut = mean_scores({"ours": np.array([0.0, 1.0, 1.0, 1.0])}, bounds=(0.0, 1.0))["ours"]
    assert (cut["score"], cut["high"]) == (0.75, 1.0)
    assert "less" not in cut
    assert math.isnan(mean_scores({"ours": np.array([0.0, np.nan])})["ours"]["score"])


# each test's scores


def test_damage_is_seen_by_what_falls_with_accuracy():
    sizes = [*[0.1, 0.2, 0.4, 0.8] * 2]
    rows = {"where": ["all layers"] * 8 + ["a"] * 8 + ["b"] * 8, "size": sizes * 3}
    rows["lost"] = np.random.default_rng(0).permutation(24).tolist()
    lost = np.array(rows["lost"])
    where = np.array(rows["where"])
    values = {"sees": -lost, "cka": np.where(where == "a", lost, -lost), "blind": np.ones(24)}
    found = damage_scores(values, rows)
    assert list(found) == ["all layers", "a", "b", "any one layer"]
    assert [found[name]["sees"]["score"] for name in found] == pytest.approx([1] * 4)
    assert [found[name]["cka"]["score"] for name in ("all layers", "a", "b")] == pytest.approx([1, -1, 1])
    single = where != "all layers"
    expected = -stats.spearmanr(values["cka"][single], lost[single]).statistic
    assert found["any one layer"]["cka"]["score"] == pytest.approx(expected)
    assert math.isnan(found["a"]["blind"]["score"])


def test_a_matrix_that_orders_pairs_as_the_truth_scores_one_in_every_run():
    truth = symmetric(0)
    values = {"known": np.stack([truth**3, 5 * truth]), "cka": np.stack([symmetric(1), -truth])}
    found = matrix_scores(values, truth, resamples=199)
    assert found["known"]["each"] == pytest.approx([1, 1])
    assert found["known"]["score"] == pytest.approx(1)
    assert max(found["known"]["p"]) < 0.05
    assert found["cka"]["score"] == pytest.approx(np.mean(found["cka"]["each"]))
    assert found["cka"]["each"][1] == pytest.approx(-1)
    assert found["known"]["less"] == pytest.approx(1 - found["cka"]["score"])


def test_a_tasks_own_mean_is_taken_from_its_row():
    transfer = np.random.default_rng(0).random((2, 5, 5))
    off = ~np.eye(5, dtype=bool)
    less = less_own_mean(transfer)
    assert np.where(off, less, 0).sum(2) == pytest.approx(np.zeros((2, 5)))
    harder = transfer - np.arange(5)[:, None]  # which of the tasks are hard is no matter
    assert less_own_mean(harder)[:, off] == pytest.approx(less[:, off])


def test_scores_of_transfer_and_those_of_chance():
    transfer = np.random.default_rng(0).random((2, 6, 6))
    found = transfer_scores({"cka": transfer, "worst": -transfer}, transfer, resamples=49)
    assert found["transfer"]["cka"]["score"] == pytest.approx(1)
    assert found["transfer"]["worst"]["score"] == pytest.approx(-1)
    assert [found[key]["cka"]["score"] for key in ("top", "rank", "regret")] == pytest.approx([1, 1, 0])
    assert [found[key]["worst"]["score"] for key in ("top", "rank")] == pytest.approx([0, 5])
    # a partner that is drawn at random: the mean over all who could be
    drawn: dict[str, list[float]] = {"top": [], "rank": [], "regret": []}
    for run in transfer:
        for task in range(6):
            others = np.delete(run[task], task)
            drawn["top"] += (others == others.max()).tolist()
            drawn["rank"] += stats.rankdata(-others).tolist()
            drawn["regret"] += (others.max() - others).tolist()
    assert found["chance"] == pytest.approx({key: np.mean(values) for key, values in drawn.items()})


def test_results_are_json_without_what_is_undefined():
    found = plain({"a": {1: (0.5, math.nan)}, "b": [math.inf, "text", True, None, 3]})
    assert found == {"a": {"1": [0.5, None]}, "b": [None, "text", True, None, 3]}
    json.dumps(found, allow_nan=False)


# superclasses


def test_superclasses_are_twenty_of_five():
    assert len(SUPERCLASSES) == 20
    assert {len(members) for members in SUPERCLASSES.values()} == {5}
    assert len({name for members in SUPERCLASSES.values() for name in members}) == 100


def test_tasks_of_a_pair_share_superclasses_and_no_class():
    chosen = list(SUPERCLASSES)[:8]
    tasks = superclass_tasks(chosen, seed=3)
    assert tasks == superclass_tasks(chosen, seed=3) != superclass_tasks(chosen, seed=4)
    above = {member: name for name, members in SUPERCLASSES.items() for member in members}
    used = [member for _, classes in tasks for member in classes]
    assert len(used) == len(set(used)) == 40
    assert {above[member] for member in used} == set(chosen)
    for (name, one), (other_name, other) in zip(tasks[::2], tasks[1::2], strict=True):
        assert name == other_name == " + ".join(dict.fromkeys(above[member] for member in one))
        counts = [sorted(sum(above[m] == s for m in classes) for s in name.split(" + ")) for classes in (one, other)]
        assert counts == [[2, 3], [2, 3]]


def test_an_absent_class_is_named():
    assert class_numbers(["a b", "c_d", "e"], ["e", "a_b", "c_d"]) == [2, 0, 1]
    with pytest.raises(FsclError, match="no class 'bee' among 2: ant, wasp"):
        class_numbers(["ant", "wasp"], ["ant", "bee"])
