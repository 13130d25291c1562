"""The numbers of one federation by which its method is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fscl.runs.records.federated import FederatedRecord

__all__ = [
    "FederatedMeasures",
    "bytes_sent",
    "bytes_to_reach",
    "federated_measures",
    "final_accuracy",
    "mean_accuracies",
    "rand_index",
    "worst_tenth",
    "worst_tenths",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FederatedMeasures:
    """The measures of one federation. A number is None if it is undefined.

    Attributes:
        accuracy: mean over clients of the accuracy on their own test images, at the last evaluation. All accuracies
            are fractions. Clients that were not tested are left out.
        worst_tenth: mean accuracy of the worst tenth of the clients, rounded down, but of at least one client.
        client_spread: standard deviation of the accuracy over clients. They are all clients, not a sample.
        bytes_in_all: bytes sent in both directions for training, with Flower's headers.
        bytes_per_client_round: the same of the last round, for each client that was asked.
        evaluation_bytes: bytes sent in both directions for evaluations, which no other measure counts.
        rand_index: agreement of the groups found with the known ones, see :func:`rand_index`.
        train_seconds: training time of all rounds.
    """

    accuracy: float | None = None
    worst_tenth: float | None = None
    client_spread: float | None = None
    bytes_in_all: float | None = None
    bytes_per_client_round: float | None = None
    evaluation_bytes: float | None = None
    rand_index: float | None = None
    train_seconds: float | None = None


def federated_measures(run: FederatedRecord) -> FederatedMeasures:
    """All measures of a federation. None of them is defined before it is finished."""
    if not run.finished:
        return FederatedMeasures()
    tested = _tested(run.accuracy[-1])
    last = run.rounds[-1] if run.rounds else None
    return FederatedMeasures(
        accuracy=final_accuracy(run),
        worst_tenth=_defined(float(worst_tenths(run)[-1])),
        client_spread=float(tested.std()) if len(tested) else None,
        bytes_in_all=float(run.bytes_until(last.number)) if last else None,
        bytes_per_client_round=(last.sent + last.received) / len(last.chosen) if last and last.chosen else None,
        evaluation_bytes=float(run.evaluation_bytes),
        rand_index=rand_index(run),
        train_seconds=run.train_seconds if run.rounds else None,
    )


def final_accuracy(run: FederatedRecord) -> float | None:
    """The mean over clients of the accuracy at the last evaluation; None if no client was tested."""
    return _defined(float(mean_accuracies(run)[-1])) if len(run.accuracy) else None


def mean_accuracies(run: FederatedRecord) -> Array:
    """The mean accuracy over the clients that were tested, for each evaluation; NaN if there was none."""
    return np.array([_mean(_tested(row)) for row in run.accuracy])


def worst_tenths(run: FederatedRecord) -> Array:
    """The mean accuracy of the worst tenth of the clients that were tested, for each evaluation; NaN if none was."""
    return np.array([worst_tenth(row) for row in run.accuracy])


def worst_tenth(accuracies: Array) -> float:
    """The mean accuracy of the worst tenth of the clients that were tested, rounded down, but of at least one.

    >>> worst_tenth(np.array([0.5, np.nan, 0.25]))
    0.25
    """
    tested = np.sort(_tested(accuracies))
    return _mean(tested[: max(1, len(tested) // 10)])


def bytes_sent(run: FederatedRecord) -> Array:
    """Bytes sent in both directions up to each evaluation."""
    return np.array([run.bytes_until(evaluation.round) for evaluation in run.evaluated], dtype=np.float64)


def bytes_to_reach(run: FederatedRecord, accuracy: float) -> float | None:
    """Bytes sent until an evaluation first found this mean accuracy. Nothing is interpolated.

    Returns:
        The bytes; None if no evaluation found so high an accuracy.
    """
    reached = np.flatnonzero(mean_accuracies(run) >= accuracy - 1e-12)  # equal means can differ in their last bits
    return float(bytes_sent(run)[reached[0]]) if len(reached) else None


def rand_index(run: FederatedRecord) -> float | None:
    """The adjusted Rand index of the groups that a method found at the end and the known groups.

    It is 1 if both group the clients alike, and 0 on average for random groups of these sizes. Clients whose group the
    method does not know are left out. It is None if the recipe has no groups, or the method found none.

    References:
        Hubert, Arabie. Comparing partitions. Journal of Classification 1985.
    """
    found = run.evaluated[-1].groups if run.evaluated else []
    pairs = [pair for pair in zip(run.groups, found, strict=False) if pair[1] >= 0]
    if len(pairs) < 2:
        return None
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*zip(*pairs, strict=True)))


def _tested(row: Array) -> Array:
    return row[np.isfinite(row)]


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
