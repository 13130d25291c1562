"""What each test makes of the similarities of its networks: scores, intervals, and how far away CKA's are."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.similarity.grounding_statistics import (
    mean_scores,
    nearest,
    partners,
    rank_correlation,
    scores,
    separation,
)
from fscl.similarity import mantel

__all__ = ["damage_scores", "group_scores", "less_own_mean", "matrix_scores", "plain", "transfer_scores"]

Array = NDArray[Any]


def damage_scores(values: dict[str, Array], rows: dict[str, Any]) -> dict[str, Any]:
    """Rank correlation of dissimilarity with lost accuracy: in all layers, in each alone, and in whichever one."""
    where, size, lost = (np.array(rows[key]) for key in ("where", "size", "lost"))
    choices = {name: where == name for name in dict.fromkeys(where.tolist())}
    choices["any one layer"] = where != "all layers"
    found = {}
    for name, chosen in choices.items():
        strata = [f"{w} {s:.6g}" for w, s in zip(where[chosen], size[chosen], strict=True)]
        # with one draw of each size there is nothing to leave out within a size
        strata = strata if len(set(strata)) < len(strata) else [""] * len(strata)
        chosen_values = {key: column[chosen] for key, column in values.items()}
        found[name] = scores(chosen_values, partial(_dissimilarity, lost[chosen]), strata=strata, bounds=(-1, 1))
    return found


def _dissimilarity(lost: Array, similarity: Array, kept: Array) -> float:
    return -rank_correlation(similarity[kept], lost[kept])


def group_scores(values: dict[str, Array], groups: Sequence[str], together: bool = False) -> dict[str, Any]:
    """AUPRC and share of nearest neighbours of the own group; `together` leaves out whole groups, not networks."""
    labels = np.array(groups)
    clusters, strata = (groups, None) if together else (range(len(groups)), groups)

    def separated(matrix: Array, kept: Array) -> float:
        return separation(matrix[np.ix_(kept, kept)], labels[kept].tolist())

    return {
        "separation": scores(values, separated, clusters, strata),
        "nearest": mean_scores({name: nearest(matrix, groups) for name, matrix in values.items()}),
    }


def matrix_scores(values: dict[str, Array], truth: Array, resamples: int) -> dict[str, Any]:
    """Rank correlation with a matrix (T, T), or one for each run (R, T, T); mean over runs, and Mantel's p of each."""
    against = np.broadcast_to(truth, next(iter(values.values())).shape)

    def statistic(stack: Array, kept: Array) -> float:
        cut = np.ix_(kept, kept)
        return float(np.mean([rank_correlation(m[cut], t[cut]) for m, t in zip(stack, against, strict=True)]))

    found = scores(values, statistic, bounds=(-1, 1))
    for name, stack in values.items():
        tests = [mantel(m, t, pairs="all", n_resamples=resamples) for m, t in zip(stack, against, strict=True)]
        found[name] |= {"each": [test.statistic for test in tests], "p": [test.p_value for test in tests]}
    return found


def transfer_scores(values: dict[str, Array], transfer: Array, resamples: int) -> dict[str, Any]:
    """Similarity against what features are worth elsewhere: as it is, and less each task's own mean; and as advice.

    A task that is hard is hard with all features, and similarity, the same both ways, cannot know that: the mean over
    partners of each task is taken away in `transfer_less`.
    """
    tasks = transfer.shape[-1]
    less = less_own_mean(transfer)
    found: dict[str, Any] = {
        "transfer": matrix_scores(values, transfer, resamples),
        "transfer_less": matrix_scores(values, less, resamples),
    }
    advice = {
        name: [partners(m, t) for m, t in zip(stack, transfer, strict=True)] for name, stack in values.items()
    }  # fmt: skip
    for key, bounds in (("top", (0.0, 1.0)), ("rank", (1.0, tasks - 1.0)), ("regret", (0.0, 1.0))):
        # runs have the same tasks: one value of each
        found[key] = mean_scores(
            {name: np.mean([run[key] for run in runs], axis=0) for name, runs in advice.items()}, bounds=bounds
        )
    best = np.where(np.eye(tasks, dtype=bool), -np.inf, less).max(-1)
    found["chance"] = {"top": 1 / (tasks - 1), "rank": tasks / 2, "regret": float(best.mean())}
    return found


def less_own_mean(transfer: Array) -> Array:
    """Each row less its mean off the diagonal, (R, T, T)."""
    off = ~np.eye(transfer.shape[-1], dtype=bool)
    return transfer - np.where(off, transfer, 0).sum(-1, keepdims=True) / (transfer.shape[-1] - 1)


def plain(values: Any) -> Any:
    """Results as JSON has them: what is undefined becomes None.

    >>> plain({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
