"""The results of runs as tables of plain values, for pandas, spreadsheets and JSON. Numbers keep all their digits."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields

from fscl.report.measures import Measures, measures
from fscl.report.prediction import whole_similarity
from fscl.runs.record import RunRecord
from fscl.text import spreadsheet_text

__all__ = ["TABLES", "ResultsTable"]

Row = tuple[str | int | float, ...]


@dataclass(frozen=True)
class ResultsTable:
    """A table of results.

    Attributes:
        holds: what it holds, in words.
        columns: names of its columns.
        rows_of: the rows that one run adds. A number that is not defined is NaN.
    """

    holds: str
    columns: tuple[str, ...]
    rows_of: Callable[[RunRecord], Iterable[Row]]

    def rows(self, runs: Iterable[RunRecord]) -> list[Row]:
        """The table's rows, run by run."""
        return [row for run in runs for row in self.rows_of(run)]

    def csv(self, runs: Iterable[RunRecord]) -> str:
        """The table as CSV. The cell of an undefined number is empty, and no spreadsheet takes a name for a formula."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(map(_cell, row) for row in self.rows(runs))
        return text.getvalue()


def _cell(value: str | int | float) -> str | int | float:
    if isinstance(value, str):
        return spreadsheet_text(value)
    return "" if math.isnan(value) else value


RUN = ("benchmark", "strategy", "recipe_hash", "seed", "status")  # the columns that tell runs apart


def _run(run: RunRecord) -> Row:
    return run.stream, run.strategy.name, run.recipe_hash, run.seed, run.status


def _summary(run: RunRecord) -> Iterator[Row]:
    numbers = (math.nan if number is None else number for number in astuple(measures(run)))
    yield *_run(run), run.strategy.title, len(run.tasks), len(run.accuracy), *numbers


def _accuracies(run: RunRecord) -> Iterator[Row]:
    names = run.task_names
    rows = list(enumerate(run.accuracy.tolist()))
    if run.at_once:  # nothing was measured between tasks that were learned together
        rows = [(len(names) - 1, row) for _, row in rows[-1:]]
    for learned, row in rows:
        for tested, accuracy in enumerate(row):
            if not math.isnan(accuracy):
                yield *_run(run), learned, tested, names[learned], names[tested], accuracy


def _similarities(run: RunRecord) -> Iterator[Row]:
    matrix, names = whole_similarity(run), run.task_names
    if matrix is None or run.similarity is None:
        return
    how = run.provenance or "", run.similarity.metric, run.similarity.aggregate
    for a, b in itertools.combinations(range(len(matrix)), 2):
        yield *_run(run), *how, a, b, names[a], names[b], float(matrix[b, a])


TABLES = {
    "summary": ResultsTable(
        "a row for each run: final accuracy, forgetting, transfer, bytes and seconds",
        (*RUN, "title", "tasks", "tasks_learned", *(field.name for field in fields(Measures))),
        _summary,
    ),
    "accuracy": ResultsTable(
        "a row for each run, task learned and task tested: the accuracy on one after learning the other",
        (*RUN, "task_learned", "task_tested", "name_learned", "name_tested", "accuracy"),
        _accuracies,
    ),
    "similarity": ResultsTable(
        "a row for each run and pair of tasks: the similarity of their atoms or filters",
        (*RUN, "compared", "metric", "aggregate", "task_a", "task_b", "name_a", "name_b", "similarity"),
        _similarities,
    ),
}
