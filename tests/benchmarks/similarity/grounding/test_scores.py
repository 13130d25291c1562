"""What each test makes of the similarities of its networks."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.similarity.grounding.scores import (
    damage_scores,
    group_scores,
    less_own_mean,
    matrix_scores,
    transfer_scores,
)
from benchmarks.similarity.grounding.statistics import nearest, separation


def test_scores_of_groups(groups, grouped, matrices):
    values = {"known": grouped + 0.1 * matrices[0], "cka": matrices[2], "same": matrices[2]}
    found = group_scores(values, groups)
    for scores in (found.separation, found.nearest):
        assert (scores["known"].score, scores["known"].high) == pytest.approx((1, 1))
        assert scores["known"].less == pytest.approx(1 - scores["cka"].score)
        assert scores["same"].less == scores["same"].less_low == scores["same"].less_high == 0
    assert found.separation["cka"].score == separation(values["cka"], groups)
    assert found.nearest["cka"].score == nearest(values["cka"], groups).mean()


def test_of_three_groups_left_out_whole_there_is_no_interval(groups, matrices):
    apart, whole = (group_scores({"cka": matrices[2]}, groups, together=t).separation["cka"] for t in (False, True))
    assert whole.score == apart.score
    assert math.isnan(whole.low)


def test_damage_is_seen_by_what_falls_with_accuracy():
    where = ["all layers"] * 8 + ["a"] * 8 + ["b"] * 8
    lost = np.random.default_rng(0).permutation(24)
    layers = np.array(where)
    values = {"sees": -lost, "cka": np.where(layers == "a", lost, -lost), "blind": np.ones(24)}
    found = damage_scores(values, where, [0.1, 0.2, 0.4, 0.8] * 6, lost.tolist())
    assert list(found) == ["all layers", "a", "b", "any one layer"]
    assert [scores["sees"].score for scores in found.values()] == pytest.approx([1] * 4)
    assert [found[name]["cka"].score for name in ("all layers", "a", "b")] == pytest.approx([1, -1, 1])
    single = layers != "all layers"
    expected = -stats.spearmanr(values["cka"][single], lost[single]).statistic
    assert found["any one layer"]["cka"].score == pytest.approx(expected)
    assert math.isnan(found["a"]["blind"].score)


def test_a_matrix_that_orders_pairs_as_the_truth_scores_one_in_every_run(matrices):
    truth = matrices[0]
    values = {"known": np.stack([truth**3, 5 * truth]), "cka": np.stack([matrices[1], -truth])}
    found = matrix_scores(values, truth, resamples=199)
    assert found["known"].each == pytest.approx([1, 1])
    assert found["known"].score == pytest.approx(1)
    assert max(found["known"].p) < 0.05
    assert found["cka"].score == pytest.approx(np.mean(found["cka"].each))
    assert found["cka"].each[1] == pytest.approx(-1)
    assert found["known"].less == pytest.approx(1 - found["cka"].score)


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
    assert found.transfer["cka"].score == pytest.approx(1)
    assert found.transfer["worst"].score == pytest.approx(-1)
    assert [scores["cka"].score for scores in (found.top, found.rank, found.regret)] == pytest.approx([1, 1, 0])
    assert [scores["worst"].score for scores in (found.top, found.rank)] == pytest.approx([0, 5])
    # a partner that is drawn at random: the mean over all who could be
    drawn: dict[str, list[float]] = {"top": [], "rank": [], "regret": []}
    for run in transfer:
        for task in range(6):
            others = np.delete(run[task], task)
            drawn["top"] += (others == others.max()).tolist()
            drawn["rank"] += stats.rankdata(-others).tolist()
            drawn["regret"] += (others.max() - others).tolist()
    assert dict(found.chance) == pytest.approx({key: np.mean(values) for key, values in drawn.items()})
