"""``fscl report`` prints the table of runs and writes their report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fscl.errors import FsclError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["report", "show_report"]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders with runs at any depth, or runs.json files of reports.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = Path("report"),
) -> None:
    """Write the report of any runs as one HTML page and one Markdown page."""
    from rich.console import Console

    show_report(runs, out, Console())


def show_report(folders: list[Path], out: Path, console: "Console") -> None:
    """Prints the summary table of all runs in the folders, and writes their report to ``out``.

    Raises:
        FsclError: no run is found, or the report cannot be written.
    """
    from fscl.report.page import write_report
    from fscl.report.summary import group_runs, summary_rows
    from fscl.report.table import rich_table
    from fscl.runs.results import load_runs

    runs = load_runs(folders, lambda error: typer.echo(f"left out: {' '.join(str(error).split())}", err=True))
    console.print(rich_table(summary_rows(group_runs(runs)), width=console.width))
    try:
        with console.status("Drawing the report ..."):
            paths = write_report(runs, out)
    except OSError as error:
        raise FsclError(f"cannot write the report {out}: {error.strerror or error}") from error
    console.print(f"Report: {paths.html}", highlight=False, markup=False, soft_wrap=True)
