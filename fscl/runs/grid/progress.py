"""The progress of a grid, as a live table. It is read from the files of the runs, so any process may do them."""

import contextlib
import heapq
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from fscl.errors import FsclError
from fscl.plain import read_json
from fscl.runs.records.record import Record
from fscl.runs.results import load_run
from fscl.runs.spec import RunSpec
from fscl.text import clock, points

__all__ = ["Finished", "Grid", "LiveTable", "Row", "draw", "record_stamp"]


@dataclass(frozen=True)
class Row:
    """The progress of one strategy over all its runs.

    Attributes:
        title: the strategy's title.
        runs, finished, failed: number of all runs, of finished runs and of failed runs.
        tasks, learned: number of all tasks, 0 while it is unknown, and of learned tasks.
        done: share of the tasks that is done, in [0, 1]; tasks in training count in part.
        accuracy: mean accuracy on the tasks that a run has seen, a mean over runs; None before the first task.
        elapsed: seconds since the grid began, until now or until the strategy's last run ended.
        left: estimated seconds until the strategy's last run ends; None before the first task is learned.
    """

    title: str
    runs: int
    finished: int
    failed: int
    tasks: int
    learned: int
    done: float
    accuracy: float | None
    elapsed: float
    left: float | None


@dataclass(frozen=True)
class Finished:
    """A finished run: title of the strategy, seed, mean accuracy after the last task, seconds of all tasks."""

    title: str
    seed: int
    accuracy: float | None
    seconds: float


@dataclass
class _Run:
    """What is known of one run. A missing or half-written file changes nothing."""

    spec: RunSpec
    folder: Path
    hash: str
    stamp_read: int  # stamp of the record that was read last
    stamp_before: int = 0  # stamp of the record that existed before the grid began
    finished: bool = False
    failed: bool = False
    tasks: int = 0
    accuracy: float | None = None
    seconds: list[float] = field(default_factory=list)  # of each learned task
    share: float = 0.0  # of the task in training that is done

    @property
    def begun(self) -> bool:
        """Whether any process has written the record since the grid began."""
        return self.stamp_read != self.stamp_before

    @property
    def over(self) -> bool:
        return self.finished or self.failed

    def look(self) -> None:
        if self.finished:
            return
        with contextlib.suppress(FsclError, ValueError):  # a file that is missing, half-written or not from fscl
            stamp = record_stamp(self.folder)
            if stamp != self.stamp_read:
                self._take(load_run(self.folder / "run.json"))
                self.stamp_read = stamp
            if self.begun:
                share = _reported(self.folder) - len(self.seconds)
                self.share = self.share if math.isnan(share) else min(max(share, 0.0), 1.0)

    def _take(self, record: Record) -> None:
        if record.recipe_hash != self.hash:
            return
        seen = [accuracy for accuracy in record.last_accuracies if not math.isnan(accuracy)]
        self.tasks, self.finished = record.steps_in_all, record.finished
        self.seconds, self.accuracy, self.share = record.step_seconds, fmean(seen) if seen else None, 0.0


class Grid:
    """The progress of all runs of a grid, done by any number of processes.

    Args:
        specs: the runs.
        out: output folder.
        overwrite: whether existing runs will be replaced.
        now: seconds of a clock that is never set back, such as ``time.monotonic()``.
    """

    def __init__(self, specs: Sequence[RunSpec], out: Path, overwrite: bool, now: float) -> None:
        folders = [spec.folder(out) for spec in specs]
        self._runs = [
            _Run(spec, folder, spec.hash, stamp_read=record_stamp(folder) if overwrite else 0)
            for spec, folder in zip(specs, folders, strict=True)
        ]
        for run in self._runs:
            run.look()
            run.stamp_before, run.share = run.stamp_read, 0.0
        self._names = list(dict.fromkeys(spec.strategy.name for spec in specs))
        self._ended: dict[str, float] = {}
        self._at_once = 1
        self._start = self._now = now

    def look(self, now: float) -> list[Finished]:
        """Reads the files that changed. Returns the runs that finished since the last call."""
        self._now = now
        unfinished = [run for run in self._runs if not run.finished]
        for run in unfinished:
            run.look()
        for name in self._names:
            if all(run.over for run in self._of(name)):
                self._ended.setdefault(name, now)
        self._at_once = max(self._at_once, sum(run.begun and not run.over for run in self._runs))
        return [
            Finished(_title(run.spec), run.spec.seed, run.accuracy, sum(run.seconds))
            for run in unfinished
            if run.finished
        ]

    def failed(self, folder: Path) -> None:
        """Marks a run as failed."""
        for run in self._runs:
            run.failed |= run.folder == folder

    def rows(self) -> list[Row]:
        """One row for each strategy. With several strategies the last row is for all of them, without an accuracy."""
        left = self._left()
        rows = [
            self._row(
                _title(self._of(name)[0].spec),
                self._of(name),
                self._ended.get(name, self._now),
                None if left is None else left.get(name, 0.0),
            )
            for name in self._names
        ]
        if len(rows) > 1:
            ended = max(self._ended.values()) if len(self._ended) == len(rows) else self._now
            last = None if left is None else max(left.values(), default=0.0)
            rows.append(replace(self._row("All", self._runs, ended, last), accuracy=None))
        return rows

    def _row(self, title: str, runs: list[_Run], ended: float, left: float | None) -> Row:
        tasks = sum(self._tasks(run) for run in runs)
        known = [run.accuracy for run in runs if run.accuracy is not None]
        return Row(
            title=title,
            runs=len(runs),
            finished=sum(run.finished for run in runs),
            failed=sum(run.failed for run in runs),
            tasks=tasks,
            learned=sum(len(run.seconds) for run in runs),
            done=sum(len(run.seconds) + run.share for run in runs) / max(tasks, 1),
            accuracy=fmean(known) if known else None,
            elapsed=ended - self._start,
            left=left,
        )

    def _of(self, name: str) -> list[_Run]:
        return [run for run in self._runs if run.spec.strategy.name == name]

    def _tasks(self, run: _Run) -> int:
        """Number of tasks of a run. A run that has not begun will have as many as the other runs."""
        return run.tasks or max(other.tasks for other in self._runs)

    def _left(self) -> dict[str, float] | None:
        """Estimated seconds until each strategy's last run ends, with as many runs at a time as were seen so far."""
        left: dict[str, float] = {}
        free_at = [0.0] * self._at_once  # when each worker is free, in seconds from now
        for run in sorted(self._runs, key=lambda run: not run.begun):
            if run.over:
                continue
            seconds, name = self._seconds_left(run), run.spec.strategy.name
            if seconds is None:
                return None
            end = heapq.heappop(free_at) + seconds
            heapq.heappush(free_at, end)
            left[name] = max(left.get(name, 0.0), end)
        return left

    def _seconds_left(self, run: _Run) -> float | None:
        """Estimated seconds that a run still takes, from the times of its strategy's tasks, else of all tasks."""
        timed = [r for r in self._of(run.spec.strategy.name) if r.seconds] or [r for r in self._runs if r.seconds]
        if not timed:
            return None
        first = fmean(r.seconds[0] for r in timed)
        later = [second for r in timed for second in r.seconds[1:]]
        training = run.spec.benchmark.training
        later_task = fmean(later) if later else first * (training.epochs_next or training.epochs) / training.epochs
        times = [first] + [later_task] * (self._tasks(run) - 1)
        return sum(times[len(run.seconds) :]) - run.share * sum(times[len(run.seconds) :][:1])


def _reported(folder: Path) -> float:
    """Number of tasks that a worker reports as done, the present one in part; NaN if the report is not a number.

    Raises:
        FsclError: there is no report, or it is half-written.
    """
    match read_json(folder / "progress"):
        case [int() | float() as done, *_] if abs(done) < 1e9:
            return done
    return math.nan


def record_stamp(folder: Path) -> int:
    """A number that changes with the record in a run's folder; 0 if there is no record."""
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return 0


def _title(spec: RunSpec) -> str:
    return spec.strategy.title or spec.strategy.name


PAUSE = 0.5  # seconds between two updates
BAR = 10  # columns


def draw(rows: Sequence[Row]) -> Table:
    """The rows as a table of 80 columns. Unknown numbers are dashes."""
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
            points(row.accuracy),
            clock(row.elapsed),
            clock(row.left),
        )
    return table


class LiveTable:
    """Shows the progress of a grid: a live table on a terminal, elsewhere one line for each finished run.

    Args:
        specs, out, overwrite: as in :func:`fscl.runs.grid.sweep.sweep`.
        console: where to print; None prints nothing.
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
        """Marks a run as failed."""
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
                line = f"{run.title}, seed {run.seed}: {points(run.accuracy)} % in {clock(run.seconds)}"
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
