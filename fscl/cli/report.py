"""``fscl report`` prints the table of runs and writes their report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fscl.cli.options import AsJson, Quiet
from fscl.cli.output import Output
from fscl.errors import FsclError

if TYPE_CHECKING:
    from fscl.runs.records.record import Record

__all__ = ["read_records", "report", "show_report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders with runs at any depth, or runs.json files of reports.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = Path("report"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of any runs as one HTML page and one Markdown page, with their numbers as CSV."""
    read = read_records(runs)
    show_report(read, read, out, Output(quiet, as_json))


def read_records(paths: Sequence[Path]) -> "list[Record]":
    """The runs under some folders. A line on stderr names each record that cannot be read.

    Raises:
        FsclError: no run is found.
    """
    from fscl.runs.results import read_runs

    return read_runs(paths, lambda error: typer.echo(f"left out: {' '.join(str(error).split())}", err=True))


def show_report(shown: "Sequence[Record]", runs: "Sequence[Record]", out: Path, output: Output) -> None:
    """Prints the results of some runs, and writes a report to ``out``.

    Args:
        shown: the runs whose results are printed.
        runs: the runs of the report.
        out: folder of the report.
        output: how results are printed.

    Raises:
        FsclError: there is no run, or the report cannot be written.
    """
    from fscl.report.federation.summary import federation_rows, group_federations
    from fscl.report.federation.table import federation_table
    from fscl.report.page import write_report
    from fscl.report.summary import group_runs, summary_rows
    from fscl.report.tables import TABLES
    from fscl.report.terminal import rich_table
    from fscl.runs.results import federations_of, streams_of

    if streams := streams_of(shown):
        output.table(lambda width: rich_table(summary_rows(group_runs(streams)), width=width))
    if federations := federations_of(shown):
        output.table(lambda width: federation_table(federation_rows(group_federations(federations)), width=width))
    if unfinished := sum(not run.finished for run in shown):
        output.line(f"Not in the table: {_runs(unfinished)} that failed or did not finish; the report lists them.")
    try:
        with output.working("Drawing the report ..."):
            written = write_report(runs, out)
    except OSError as error:
        raise FsclError(f"cannot write the report {out}: {error.strerror or error}") from error
    if len(shown) < len(runs):
        output.line(f"The table shows the {_runs(len(shown))} of this command; the report has all {_runs(len(runs))}.")
    output.line(f"Report: {written.html}")
    rows = [
        {**dict(zip(table.columns, row, strict=True)), "error": run.error, "record": run.path}
        for table in (TABLES["summary"], TABLES["federations"])
        for run in shown
        for row in table.rows([run])
    ]
    output.json({"runs": rows, "report": vars(written)})


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"
