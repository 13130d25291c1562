"""What each test makes of the similarities of its networks, and tasks that share superclasses but no class."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.similarity.grounding_scores import (
    damage_scores,
    group_scores,
    less_own_mean,
    matrix_scores,
    plain,
    transfer_scores,
)
from benchmarks.similarity.grounding_statistics import nearest, separation
from benchmarks.similarity.grounding_superclasses import SUPERCLASSES, class_numbers, superclass_tasks
from fscl.errors import FsclError

GROUPS = ["a"] * 3 + ["b"] * 4 + ["c"] * 2


def symmetric(seed: int, size: int = 9) -> np.ndarray:
    matrix = np.random.default_rng(seed).random((size, size))
    return matrix + matrix.T


def together(groups: list[str]) -> np.ndarray:
    """Similarity 1 within a group, and 0 across."""
    return np.equal.outer(np.array(groups), np.array(groups)).astype(float)


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
