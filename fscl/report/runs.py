"""Runs as one object in Python: filtered, and as tables of pandas. Imports neither torch nor Avalanche."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from fscl.errors import FsclError
from fscl.report.federation.summary import federation_rows, group_federations
from fscl.report.federation.table import FEDERATION_COLUMNS
from fscl.report.prediction import whole_similarity
from fscl.report.summary import group_runs, summary_rows
from fscl.report.table import COLUMNS, Column, OverSeeds
from fscl.report.tables import TABLES
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.records.record import Record, RunRecord
from fscl.runs.results import LeaveOut, federations_of, read_runs, refuse, streams_of
from fscl.text import brief, html_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Runs", "load_runs"]

R = TypeVar("R", bound=OverSeeds)


def load_runs(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], leave_out: LeaveOut = refuse) -> Runs:
    """The results of all runs under some folders, unfinished runs included.

    If a run is found twice, in its folder and in a report, the record with more tasks or rounds counts. If a run was
    made again in its folder, the older record in a report is left out.

    Args:
        paths: one or several folders with runs at any depth, ``run.json`` files, folders of reports, or their
            ``runs.json`` files.
        leave_out: called with the error of a record that cannot be read, which is then left out. By default the error
            is raised.

    Returns:
        The runs, sorted by benchmark, strategy, recipe hash and seed.

    Raises:
        FsclError: a path does not exist, no run is found, or a record cannot be read.

    Example:
        >>> load_runs("nowhere")
        Traceback (most recent call last):
        fscl.errors.FsclError: nowhere: no such file or folder; give a folder that `fscl run --out` wrote
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return Runs(read_runs(map(Path, several), leave_out))


class Runs(Sequence[Record]):
    """The results of some runs, on streams of tasks and of federations: a sequence of their records.

    A slice of it is a ``Runs``, too. A notebook shows it as the summary tables of a report.

    Args:
        records: the records of the runs.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Runs: ...

    def __getitem__(self, index: int | slice) -> Record | Runs:
        return Runs(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __repr__(self) -> str:
        finished = sum(run.finished for run in self)
        names = (", ".join(dict.fromkeys(name)) for name in ((run.stream for run in self), map(_strategy, self)))
        return f"<{len(self)} runs, {finished} finished; {'; '.join(filter(None, names))}>"

    def _repr_html_(self) -> str:
        tables = []
        unfinished = len(self) - sum(run.finished for run in self)
        omitted = f" {unfinished} unfinished runs are not shown." if unfinished else ""
        caption = f"Mean ± sample standard deviation over seeds.{omitted}"
        if streams_of(self) or not len(self):
            tables.append(_html(caption, COLUMNS.values(), summary_rows(group_runs(self))))
        if federations_of(self):
            rows = federation_rows(group_federations(self))
            tables.append(_html(f"Federations. {caption}", FEDERATION_COLUMNS.values(), rows))
        return "".join(tables)

    def filter(
        self,
        *,
        benchmark: str | Iterable[str] | None = None,
        strategy: str | Iterable[str] | None = None,
        seed: int | Iterable[int] | None = None,
        recipe_hash: str | Iterable[str] | None = None,
    ) -> Runs:
        """The runs with these values. Each is one value or several; None takes all.

        Args:
            benchmark: names of streams, as in the column ``benchmark`` of :meth:`to_dataframe`.
            strategy: names of strategies.
            seed: seeds.
            recipe_hash: hashes of recipes.

        Raises:
            FsclError: no run has one of the values.
        """
        runs = self
        for name, value, of in (
            ("benchmark", benchmark, lambda run: run.stream),
            ("strategy", strategy, _strategy),
            ("seed", seed, lambda run: run.seed),
            ("recipe_hash", recipe_hash, lambda run: run.recipe_hash),
        ):
            if value is not None:
                if isinstance(value, Iterable) and not isinstance(value, str):
                    runs = runs._with(name, set(value), of)
                else:  # a number of NumPy is no int
                    runs = runs._with(name, {value}, of)
        return runs

    def _with(self, name: str, values: set[object], of: Callable[[Record], str | int]) -> Runs:
        known = dict.fromkeys(map(of, self))
        if unknown := [value for value in values if value not in known]:
            raise FsclError(f"no run has {name} {brief(unknown[0])}; there is {', '.join(map(str, known)) or 'no run'}")
        return Runs(run for run in self if of(run) in values)

    def to_dataframe(self, table: str = "accuracy") -> pd.DataFrame:
        """One of the tables of results. A report has each of them as a CSV file. Undefined numbers are NaN.

        Accuracies and their differences are fractions. Runs that are not finished have the ``status`` ``running`` or
        ``failed``; in the tables ``summary`` and ``federations`` their numbers are undefined.

        Args:
            table: of runs on streams: ``accuracy``, with a row for each run, task learned and task tested; ``summary``,
                with a row for each run; ``similarity``, with a row for each run and pair of tasks. Of federations:
                ``federations``, with a row for each run; ``clients``, with a row for each run, evaluation and client;
                ``rounds``, with a row for each run and round.

        Raises:
            FsclError: there is no such table.
        """
        import pandas as pd

        if table not in TABLES:
            raise FsclError(f"no table {brief(table)}; use {', '.join(TABLES)}")
        return pd.DataFrame(TABLES[table].rows(self), columns=list(TABLES[table].columns))

    def similarity(
        self, strategy: str | None = None, seed: int | None = None, benchmark: str | None = None
    ) -> pd.DataFrame:
        """The similarity of the tasks or clients of one strategy: a mean over the seeds.

        Only finished runs count. Clients of different seeds have different images. They are averaged if client i has
        the same known group in all seeds.

        Args:
            strategy: the strategy; None if there is one.
            seed: the seed of one run; None for the mean over all seeds.
            benchmark: the stream or federation; None if there is one.

        Returns:
            (T, T), all layers together. Rows and columns have the names of the tasks, in the order of learning; or
            (clients, clients), NaN for a client of which the server has nothing to compare.

        Raises:
            FsclError: no such run is finished and has a similarity; or the runs differ in benchmark, strategy, recipe,
                tasks or clients, so that their mean would mix them.
        """
        import pandas as pd

        runs = self.filter(benchmark=benchmark, strategy=strategy, seed=seed)
        similar = [(run, matrix) for run in runs if run.finished and (matrix := _similarity(run)) is not None]
        if not similar:
            raise FsclError(f"none of these runs is finished and has a similarity: {runs!r}")
        first = similar[0][0]
        for name, of in (
            ("benchmark", lambda run: run.stream),
            ("strategy", _strategy),
            ("recipe_hash", lambda run: run.recipe_hash),
        ):
            if len(values := dict.fromkeys(of(run) for run, _ in similar)) > 1:
                raise FsclError(f"the runs have several values of {name}: {', '.join(values)}; filter by one of them")
        names = _compared(first)
        for run, _ in similar[1:]:
            seeds = ", ".join(str(run.seed) for run, _ in similar)
            if not (isinstance(run, RunRecord) or _groups(run) == _groups(first) != []):
                raise FsclError(
                    f"the clients of {run.strategy.name} have other images with seed {run.seed} than with seed "
                    f"{first.seed}, and no known groups in common; give one seed of {seeds}"
                )
            if different := [pair for pair in zip(names, _compared(run), strict=True) if len(set(pair)) > 1]:
                ours, theirs = different[0]
                raise FsclError(
                    f"the seeds of {run.strategy.name} learned other tasks: where seed {first.seed} has {brief(ours)}, "
                    f"seed {run.seed} has {brief(theirs)}; give one seed of {seeds}"
                )
        return pd.DataFrame(np.mean([matrix for _, matrix in similar], axis=0), index=names, columns=names)


def _similarity(run: Record) -> NDArray[np.float64] | None:
    if isinstance(run, FederatedRecord):
        return run.similarity if len(run.similarity) else None
    return whole_similarity(run) if isinstance(run, RunRecord) else None


def _groups(run: Record) -> list[int]:
    return run.groups if isinstance(run, FederatedRecord) else []


def _compared(run: Record) -> list[str]:
    """The names of the tasks or clients of a run."""
    if isinstance(run, RunRecord):
        return list(run.task_names)
    return [f"client {client}" for client in range(run.clients)] if isinstance(run, FederatedRecord) else []


def _html(caption: str, columns: Iterable[Column[R]], rows: Sequence[R]) -> str:
    shown = list(columns)
    cells = ((row.benchmark, *(column.cell(row) for column in shown)) for row in rows)
    return html_table(caption, ["Benchmark", *(column.heading for column in shown)], cells)


def _strategy(run: Record) -> str:
    return run.strategy.name
