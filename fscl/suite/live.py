"""The live view of a grid: a table that is drawn anew while its runs go on."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from fscl.suite.spec import RunSpec
from fscl.suite.watch import Grid, Row

__all__ = ["LiveTable", "draw"]

PAUSE = 0.5  # seconds between two looks
BAR = 10  # columns


def draw(rows: Sequence[Row]) -> Table:
    """A table of 80 columns; what is not known is a dash."""
    failed = any(row.failed for row in rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        header_style="bold",
        caption="ACC: mean accuracy on the tasks that each run has seen so far",
        caption_justify="left",
    )
    table.add_column("Strategy", min_width=11)
    table.add_column("", width=BAR)
    for name in ("Runs", *(["Failed"] if failed else []), "Tasks", "ACC %", "Elapsed", "Left"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for i, row in enumerate(rows):
        if i and i == len(rows) - 1:
            table.add_section()
        table.add_row(
            escape(row.title),
            ProgressBar(total=1.0, completed=row.done, width=BAR),
            f"{row.finished}/{row.runs}",
            *([f"[red]{row.failed}[/]" if row.failed else "0"] if failed else []),
            f"{row.learned}/{row.tasks or '–'}",
            _percent(row.accuracy),
            _clock(row.elapsed),
            _clock(row.left),
        )
    return table


class LiveTable:
    """Shows how far a grid is while it goes on: a table on a terminal, elsewhere a line for each run that has finished.

    Args:
        specs, out, overwrite: as of :func:`fscl.suite.sweep.sweep`.
        console: where; None shows nothing.
    """

    def __init__(self, specs: Sequence[RunSpec], out: Path, overwrite: bool, console: Console | None) -> None:
        self._grid = Grid(specs, out, overwrite, time.monotonic())
        self._console = console
        self._live = None
        if console is not None and console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(draw(self._grid.rows()), console=console, auto_refresh=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def failed(self, folder: Path) -> None:
        """Says that a run will not be finished."""
        self._grid.failed(folder)

    def __enter__(self) -> "LiveTable":
        if self._live is not None:
            self._live.start(refresh=True)
        if self._console is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console is not None:
            self._stop.set()
            self._thread.join()
            self._show()
        if self._live is not None:
            self._live.stop()

    def _watch(self) -> None:
        while not self._stop.wait(PAUSE):
            self._show()

    def _show(self) -> None:
        finished = self._grid.look(time.monotonic())
        if self._live is not None:
            self._live.update(draw(self._grid.rows()), refresh=True)
        elif self._console is not None:
            for run in finished:
                line = f"{run.title}, seed {run.seed}: {_percent(run.accuracy)} % in {_clock(run.seconds)}"
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _clock(seconds: float | None) -> str:
    """
    >>> _clock(None), _clock(62.4), _clock(3725.0)
    ('–', '1:02', '1:02:05')
    """
    if seconds is None:
        return "–"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
