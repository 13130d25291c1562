"""The results of runs as tables of plain values. A report has each of them as a CSV file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, fields
from typing import Any

from fscl.report.federation.tables import FEDERATION_TABLES
from fscl.report.measures import Measures, measures
from fscl.report.prediction import whole_similarity
from fscl.report.results_table import RUN, ResultsTable, Row, of_run
from fscl.runs.records.record import RunRecord

__all__ = ["TABLES"]


def _summary(run: RunRecord) -> Iterator[Row]:
    numbers = (math.nan if number is None else number for number in astuple(measures(run)))
    yield *of_run(run), run.strategy.title, len(run.tasks), len(run.accuracy), *numbers


def _accuracies(run: RunRecord) -> Iterator[Row]:
    names = run.task_names
    rows = list(enumerate(run.accuracy.tolist()))
    if run.at_once:  # nothing was measured between tasks that were learned together
        rows = [(len(names) - 1, row) for _, row in rows[-1:]]
    for learned, row in rows:
        for tested, accuracy in enumerate(row):
            if not math.isnan(accuracy):
                yield *of_run(run), learned, tested, names[learned], names[tested], accuracy


def _similarities(run: RunRecord) -> Iterator[Row]:
    matrix, names = whole_similarity(run), run.task_names
    if matrix is None or run.similarity is None:
        return
    how = run.provenance or "", run.similarity.metric, run.similarity.aggregate
    for a, b in itertools.combinations(range(len(matrix)), 2):
        yield *of_run(run), *how, a, b, names[a], names[b], float(matrix[b, a])


TABLES: dict[str, ResultsTable[Any]] = {
    "summary": ResultsTable(
        "a row for each run: final accuracy, forgetting, transfer, bytes and seconds",
        RunRecord,
        (*RUN, "title", "tasks", "tasks_learned", *(field.name for field in fields(Measures))),
        _summary,
    ),
    "accuracy": ResultsTable(
        "a row for each run, task learned and task tested: the accuracy on one after learning the other",
        RunRecord,
        (*RUN, "task_learned", "task_tested", "name_learned", "name_tested", "accuracy"),
        _accuracies,
    ),
    "similarity": ResultsTable(
        "a row for each run and pair of tasks: the similarity of their atoms or filters",
        RunRecord,
        (*RUN, "compared", "metric", "aggregate", "task_a", "task_b", "name_a", "name_b", "similarity"),
        _similarities,
    ),
    **FEDERATION_TABLES,
}
