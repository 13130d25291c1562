"""Summarises each method over the seeds of its federations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fscl.report.federation.measures import (
    bytes_to_reach,
    federated_measures,
    final_accuracy,
)
from fscl.report.grouping import RunGroup, grouped, over_seeds
from fscl.report.ranking import Difference, against_best
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.records.record import Record
from fscl.runs.results import federations_of
from fscl.similarity.estimate import Estimate, seed_interval

__all__ = ["FederationRow", "MethodRuns", "Reached", "federation_rows", "group_federations", "reference_of"]


class MethodRuns(RunGroup[FederatedRecord]):
    """Finished federations of one method that may be averaged."""

    @property
    def has_atoms(self) -> bool:
        return any("atoms" in run.sizes for run in self.runs)

    @property
    def alone(self) -> bool:
        """Whether clients train alone: no part of a network travels."""
        return all(run.sizes and not run.travels for run in self.runs)

    @property
    def same_groups(self) -> bool:
        """Whether client i has the same known group in all seeds. Clients may be averaged over seeds only then."""
        groups = {tuple(run.groups) for run in self.runs}
        return len(groups) == 1 and groups != {()}

    @property
    def final_accuracies(self) -> dict[int, float]:
        """By seed; seeds in which no client was tested at the end are left out."""
        return {run.seed: value for run in self.runs if (value := final_accuracy(run)) is not None}


@dataclass(frozen=True)
class Reached:
    """Bytes sent until a method was first as accurate as the reference at its end, on the same seed.

    Attributes:
        bytes: over the seeds; None unless every seed reached it. A mean over some seeds would leave out the worst.
        seeds: number of seeds that reached it.
        asked: number of seeds that the reference has, too.
    """

    bytes: Estimate | None
    seeds: int
    asked: int


@dataclass(frozen=True)
class FederationRow:
    """One row of the summary table. Accuracies and differences are fractions; a number is None if it is undefined."""

    benchmark: str
    strategy: str
    label: str
    recipe_hash: str
    seeds: tuple[int, ...]
    bound: str | None
    accuracy: Estimate | None
    against_best: Difference | None
    worst_tenth: Estimate | None
    client_spread: Estimate | None
    bytes_in_all: Estimate | None
    bytes_per_client_round: Estimate | None
    reached: Reached
    rand_index: Estimate | None
    train_seconds: Estimate | None

    @property
    def p_value(self) -> float | None:
        """p of the hypothesis that the method is the best one; None for the best method itself."""
        return None if self.against_best is None else self.against_best.p_value


def group_federations(runs: Iterable[Record]) -> list[MethodRuns]:
    """Groups finished federations by stream, method and recipe hash; see :func:`fscl.report.grouping.grouped`.

    Within a stream the best mean accuracy comes first; on a tie, the method that sends least. Other runs are left out.

    Raises:
        FsclError: a group has the same seed twice.
    """
    return sorted(grouped(federations_of(runs), MethodRuns), key=_rank)


def _rank(group: MethodRuns) -> tuple[str, float, float, str, str]:
    accuracies = list(group.final_accuracies.values()) or [-1.0]
    sent = np.mean([sum(r.sent + r.received for r in run.rounds) for run in group.runs])
    # equal means can differ in their last bits, and must still count as a tie
    return group.benchmark, -round(float(np.mean(accuracies)), 12), float(sent), group.name, group.recipe_hash


def reference_of(groups: Sequence[MethodRuns]) -> MethodRuns | None:
    """The method whose accuracy others must reach: the best one without atoms, else the best one. Bounds are none.

    Args:
        groups: the methods of one stream.
    """
    methods = [group for group in groups if group.bound is None and group.final_accuracies]
    without_atoms = [group for group in methods if not group.has_atoms]
    return max(
        without_atoms or methods,
        key=lambda group: (len(group.final_accuracies), np.mean(list(group.final_accuracies.values()))),
        default=None,
    )


def federation_rows(groups: Sequence[MethodRuns]) -> list[FederationRow]:
    """One row for each group, in their order."""
    rows = []
    for benchmark in dict.fromkeys(group.benchmark for group in groups):
        compared = [group for group in groups if group.benchmark == benchmark]
        accuracy = {group.label: group.final_accuracies for group in compared}
        methods = frozenset(group.label for group in compared if group.bound is None)
        differences = against_best(accuracy, methods)
        reference = reference_of(compared)
        rows += [_row(group, differences.get(group.label), reference) for group in compared]
    return rows


def _row(group: MethodRuns, difference: Difference | None, reference: MethodRuns | None) -> FederationRow:
    mean = partial(over_seeds, [federated_measures(run) for run in group.runs])
    return FederationRow(
        benchmark=group.benchmark,
        strategy=group.name,
        label=group.label,
        recipe_hash=group.recipe_hash,
        seeds=group.seeds,
        bound=group.bound,
        accuracy=mean(lambda run: run.accuracy),
        against_best=difference,
        worst_tenth=mean(lambda run: run.worst_tenth),
        client_spread=mean(lambda run: run.client_spread),
        bytes_in_all=mean(lambda run: run.bytes_in_all),
        bytes_per_client_round=mean(lambda run: run.bytes_per_client_round),
        reached=_reached(group, reference),
        rand_index=mean(lambda run: run.rand_index),
        train_seconds=mean(lambda run: run.train_seconds),
    )


def _reached(group: MethodRuns, reference: MethodRuns | None) -> Reached:
    targets = reference.final_accuracies if reference else {}
    asked = [bytes_to_reach(run, targets[run.seed]) for run in group.runs if run.seed in targets]
    reached = [sent for sent in asked if sent is not None]
    return Reached(seed_interval(reached) if asked and len(reached) == len(asked) else None, len(reached), len(asked))
