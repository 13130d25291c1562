"""Summarises each strategy over the seeds of its runs on a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fscl.report.grouping import RunGroup, grouped, over_seeds
from fscl.report.measures import final_accuracy, measures
from fscl.report.ranking import Difference, against_best
from fscl.runs.records.record import Record, RunRecord
from fscl.runs.results import streams_of
from fscl.similarity.estimate import Estimate

__all__ = ["StrategyRuns", "SummaryRow", "group_runs", "summary_rows"]


class StrategyRuns(RunGroup[RunRecord]):
    """Finished runs of one strategy on one stream that may be averaged."""

    @property
    def square(self) -> bool:
        return all(run.square for run in self.runs)

    @property
    def same_order(self) -> bool:
        """Whether every seed learned the same tasks in the same order."""
        return len({run.task_names for run in self.runs}) == 1

    @property
    def shown(self) -> tuple[RunRecord, ...]:
        """The runs that a task-by-task matrix averages: all if they learned the same tasks, else only the first."""
        return self.runs if self.same_order else self.runs[:1]

    def mean_accuracy(self) -> np.ndarray:
        """(T, T) mean over the shown runs."""
        return np.mean([run.accuracy for run in self.shown], axis=0)


@dataclass(frozen=True)
class SummaryRow:
    """One row of the summary table. Accuracies and differences are fractions; a number is None if it is undefined."""

    benchmark: str
    strategy: str
    label: str
    recipe_hash: str
    seeds: tuple[int, ...]
    bound: str | None
    accuracy: Estimate | None
    against_best: Difference | None
    incremental_accuracy: Estimate | None
    learning_accuracy: Estimate | None
    backward_transfer: Estimate | None
    forgetting: Estimate | None
    forward_transfer: Estimate | None
    bytes_per_task: Estimate | None
    bytes_in_all: Estimate | None
    train_seconds: Estimate | None

    @property
    def p_value(self) -> float | None:
        """p of the hypothesis that the strategy is the best learner; None for the best learner itself."""
        return None if self.against_best is None else self.against_best.p_value


def group_runs(runs: Iterable[Record]) -> list[StrategyRuns]:
    """Groups finished runs on streams by stream, strategy and recipe hash; see :func:`fscl.report.grouping.grouped`.

    Within a stream the best mean final accuracy comes first; on a tie, the strategy that stores least. Federations are
    left out.

    Raises:
        FsclError: a group has the same seed twice.
    """
    return sorted(grouped(streams_of(runs), StrategyRuns), key=_rank)


def _rank(group: StrategyRuns) -> tuple[str, float, float, str, str]:
    accuracy, stored = np.mean([(final_accuracy(run), run.stored) for run in group.runs], axis=0)
    # equal means can differ in their last bits, and must still count as a tie
    return group.benchmark, -round(float(accuracy), 12), float(stored), group.name, group.recipe_hash


def summary_rows(groups: Sequence[StrategyRuns]) -> list[SummaryRow]:
    """One row for each group, in their order."""
    rows = []
    for benchmark in dict.fromkeys(group.benchmark for group in groups):
        compared = [group for group in groups if group.benchmark == benchmark]
        accuracy = {group.label: {run.seed: final_accuracy(run) for run in group.runs} for group in compared}
        learners = frozenset(group.label for group in compared if group.bound is None)
        differences = against_best(accuracy, learners)
        rows += [_row(group, differences.get(group.label)) for group in compared]
    return rows


def _row(group: StrategyRuns, difference: Difference | None) -> SummaryRow:
    mean = partial(over_seeds, [measures(run) for run in group.runs])
    return SummaryRow(
        benchmark=group.benchmark,
        strategy=group.name,
        label=group.label,
        recipe_hash=group.recipe_hash,
        seeds=group.seeds,
        bound=group.bound,
        against_best=difference,
        accuracy=mean(lambda run: run.accuracy),
        incremental_accuracy=mean(lambda run: run.incremental_accuracy),
        learning_accuracy=mean(lambda run: run.learning_accuracy),
        backward_transfer=mean(lambda run: run.backward_transfer),
        forgetting=mean(lambda run: run.forgetting),
        forward_transfer=mean(lambda run: run.forward_transfer),
        bytes_per_task=mean(lambda run: run.bytes_per_task),
        bytes_in_all=mean(lambda run: run.bytes_in_all),
        train_seconds=mean(lambda run: run.train_seconds),
    )
