"""A table of plain values, for pandas, spreadsheets and JSON. Numbers keep all their digits."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fscl.runs.records.record import Record
from fscl.text import spreadsheet_text

__all__ = ["RUN", "ResultsTable", "Row", "of_run"]

Row = tuple[str | int | float, ...]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class ResultsTable(Generic[R]):
    """A table of results.

    Attributes:
        holds: what it holds, in words.
        of: the kind of record that it is about. Other runs add no row.
        columns: names of its columns.
        rows_of: the rows that one run adds. A number that is not defined is NaN.
    """

    holds: str
    of: type[R]
    columns: tuple[str, ...]
    rows_of: Callable[[R], Iterable[Row]]

    def concerns(self, runs: Iterable[Record]) -> bool:
        """Whether one of the runs is of the kind that the table is about."""
        return any(isinstance(run, self.of) for run in runs)

    def rows(self, runs: Iterable[Record]) -> list[Row]:
        """The table's rows, run by run."""
        return [row for run in runs if isinstance(run, self.of) for row in self.rows_of(run)]

    def csv(self, runs: Iterable[Record]) -> str:
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


def of_run(run: Record) -> Row:
    """The values of the columns that tell runs apart."""
    return run.stream, run.strategy.name, run.recipe_hash, run.seed, run.status
