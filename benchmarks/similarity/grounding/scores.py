"""What each test makes of the similarities of its networks: scores, intervals, and how far away CKA's are."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.similarity.grounding.results import Chance, GroupScores, RunScore, Score, TransferScores
from benchmarks.similarity.grounding.statistics import (
    mean_scores,
    nearest,
    partners,
    rank_correlation,
    scores,
    separation,
)
from fscl.similarity import mantel

__all__ = ["damage_scores", "group_scores", "less_own_mean", "matrix_scores", "transfer_scores"]

Array = NDArray[Any]


def damage_scores(
    values: Mapping[str, Array], where: Sequence[str], size: Sequence[float], lost: Sequence[float]
) -> dict[str, dict[str, Score]]:
    """Rank correlation of dissimilarity with lost accuracy: in all layers, in each alone, and in any one layer.

    Args:
        values: similarity of each damaged network to the undamaged one, by measure.
        where: the layer that was damaged in each, or "all layers".
        size: of the noise.
        lost: accuracy.
    """
    layers, sizes, losses = np.array(where), np.array(size), np.array(lost)
    choices = {name: layers == name for name in dict.fromkeys(where)}
    choices["any one layer"] = layers != "all layers"
    by_layer = {}
    for name, chosen in choices.items():
        strata = [f"{layer} {s:.6g}" for layer, s in zip(layers[chosen], sizes[chosen], strict=True)]
        # with one draw of each size there is nothing to leave out within a size
        strata = strata if len(set(strata)) < len(strata) else [""] * len(strata)
        in_these = {measure: column[chosen] for measure, column in values.items()}
        by_layer[name] = scores(in_these, partial(_dissimilarity, losses[chosen]), strata=strata, bounds=(-1, 1))
    return by_layer


def _dissimilarity(lost: Array, similarity: Array, kept: Array) -> float:
    return -rank_correlation(similarity[kept], lost[kept])


def group_scores(values: Mapping[str, Array], groups: Sequence[str], together: bool = False) -> GroupScores:
    """AUPRC of "the same group", and how often the most similar network is of the own group.

    Args:
        values: similarity of all networks (T, T), by measure; differences are taken to the measure called "cka".
        groups: of each network.
        together: whether intervals leave out whole groups, not networks.

    Example:
        >>> mine = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.2, 0.1], [0.1, 0.2, 1, 0.8], [0.2, 0.1, 0.8, 1]])
        >>> found = group_scores({"mine": mine}, ["cats", "cats", "dogs", "dogs"])
        >>> found.separation["mine"].score, found.nearest["mine"].score
        (1.0, 1.0)
    """
    labels = np.array(groups)
    clusters, strata = (groups, None) if together else (range(len(groups)), groups)

    def separated(matrix: Array, kept: Array) -> float:
        return separation(matrix[np.ix_(kept, kept)], labels[kept].tolist())

    return GroupScores(
        separation=scores(values, separated, clusters, strata),
        nearest=mean_scores({name: nearest(matrix, groups) for name, matrix in values.items()}),
    )


def matrix_scores(values: Mapping[str, Array], truth: Array, resamples: int) -> dict[str, RunScore]:
    """Rank correlation with a matrix (T, T), or one for each run (R, T, T); mean over runs, and Mantel's p of each.

    Args:
        values: similarity in each run (R, T, T), by measure.
        truth: what is known of the tasks.
        resamples: permutations of the Mantel test.
    """
    against = np.broadcast_to(truth, next(iter(values.values())).shape)

    def statistic(stack: Array, kept: Array) -> float:
        cut = np.ix_(kept, kept)
        return float(np.mean([rank_correlation(m[cut], t[cut]) for m, t in zip(stack, against, strict=True)]))

    by_measure = {}
    for name, score in scores(values, statistic, bounds=(-1, 1)).items():
        tests = [mantel(m, t, pairs="all", n_resamples=resamples) for m, t in zip(values[name], against, strict=True)]
        each, p = [test.statistic for test in tests], [test.p_value for test in tests]
        by_measure[name] = RunScore(**dict(score), each=each, p=p)
    return by_measure


def transfer_scores(
    values: Mapping[str, Array], transfer: Array, resamples: int, **more: Any
) -> TransferScores:  # fmt: skip
    """Similarity against how well features transfer: as it is, and less each task's own mean; and as advice.

    A task that is hard is hard with all features, and similarity, the same both ways, cannot know that. So
    `transfer_less` takes away each task's mean over partners.

    Args:
        values: similarity in each run (R, T, T), by measure.
        transfer: accuracy on task i of the features of network j in each run, (R, T, T).
        resamples: permutations of the Mantel test.
        more: scores against what is known of the tasks, by fields of TransferScores.
    """
    tasks = transfer.shape[-1]
    less = less_own_mean(transfer)
    advice = {name: [partners(m, t) for m, t in zip(stack, transfer, strict=True)] for name, stack in values.items()}

    def mean_advice(key: str, bounds: tuple[float, float]) -> dict[str, Score]:
        # runs have the same tasks: one value of each
        columns = {name: np.mean([run[key] for run in runs], axis=0) for name, runs in advice.items()}
        return mean_scores(columns, bounds=bounds)

    best = np.where(np.eye(tasks, dtype=bool), -np.inf, less).max(-1)
    return TransferScores(
        transfer=matrix_scores(values, transfer, resamples),
        transfer_less=matrix_scores(values, less, resamples),
        top=mean_advice("top", (0.0, 1.0)),
        rank=mean_advice("rank", (1.0, tasks - 1.0)),
        regret=mean_advice("regret", (0.0, 1.0)),
        chance=Chance(top=1 / (tasks - 1), rank=tasks / 2, regret=float(best.mean())),
        **more,
    )


def less_own_mean(transfer: Array) -> Array:
    """Each row less its mean off the diagonal, (R, T, T)."""
    off = ~np.eye(transfer.shape[-1], dtype=bool)
    return transfer - np.where(off, transfer, 0).sum(-1, keepdims=True) / (transfer.shape[-1] - 1)
