"""The grid of benchmark x strategies x seeds on one machine, with progress that survives its workers."""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fscl.errors import FsclError
from fscl.suite.run import RunSpec, is_finished, run_one

__all__ = ["Outcome", "sweep"]


@dataclass(frozen=True)
class Outcome:
    """How one run of the grid ended: its folder, or why it failed."""

    spec: RunSpec
    folder: Path
    error: str = ""


def sweep(
    specs: Sequence[RunSpec],
    out: Path,
    jobs: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[Outcome]:
    """Runs every spec, ``jobs`` at a time, each in a process of its own; a run that fails does not stop the others.

    Args:
        specs: the runs.
        out: output folder.
        jobs: runs at a time; by default one a core.
        overwrite: run finished ones again.
        console: where the progress bars go; None draws none.

    Returns:
        An outcome for each spec, in order.
    """
    jobs = max(1, min(jobs or _cores(), len(specs)))
    todo = [spec for spec in specs if overwrite or not is_finished(spec, out)]
    started = time.time()
    with _Bars(specs, todo, out, console, started):
        if jobs == 1 or len(todo) < 2:
            done = [_attempt(spec, out, overwrite) for spec in todo]
        else:
            from joblib import Parallel, delayed

            done = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs)(
                delayed(_attempt)(spec, out, overwrite) for spec in todo
            )
    outcomes = {outcome.folder: outcome for outcome in done}
    return [outcomes.get(spec.folder(out), Outcome(spec, spec.folder(out))) for spec in specs]


def _attempt(spec: RunSpec, out: Path, overwrite: bool) -> Outcome:
    folder = spec.folder(out)

    def report(experience: int, epoch: int, epochs: int) -> None:
        # a torn or missing file only leaves the bar where it is
        (folder / "progress").write_text(json.dumps([experience + epoch / epochs, os.getpid()]), encoding="utf-8")

    try:
        run_one(spec, out, overwrite, report)
        error = ""
    except FsclError as failure:
        error = str(failure)
    except Exception as failure:  # a learner's own: it is recorded, and the grid goes on
        import traceback

        error = f"{type(failure).__name__}: {failure}"
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    (folder / "progress").unlink(missing_ok=True)
    return Outcome(spec, folder, error)


class _Bars:
    """One bar over all runs and one a strategy; a thread reads what the runs have written, wherever they run."""

    def __init__(
        self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], out: Path, console: Console | None, started: float
    ) -> None:
        self.specs, self.todo, self.out = specs, todo, out
        self.started = started
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", justify="right"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=console or Console(quiet=True),
        )
        self.bars: dict[str, TaskID] = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.progress.start()
        for spec in self.specs:
            if spec.strategy.name not in self.bars:
                runs = [s for s in self.specs if s.strategy.name == spec.strategy.name]
                self.bars[spec.strategy.name] = self.progress.add_task(
                    spec.strategy.title or spec.strategy.name, total=len(runs), unit="runs"
                )
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._update(final=True)
        self.progress.stop()

    def _watch(self) -> None:
        while not self.stop.wait(0.5):
            self._update()

    def _update(self, final: bool = False) -> None:
        for name, bar in self.bars.items():
            runs = [s for s in self.specs if s.strategy.name == name]
            shares = [self._share(spec) for spec in runs]
            self.progress.update(bar, completed=int(sum(shares) + 1e-9) if final else sum(shares))

    def _share(self, spec: RunSpec) -> float:
        """How much of a run is done, in [0, 1]."""
        folder = spec.folder(self.out)
        try:
            file = folder / "run.json"
            if spec not in self.todo or (file.stat().st_mtime >= self.started and is_finished(spec, self.out)):
                return 1.0
            experiences = json.loads((folder / "progress").read_text(encoding="utf-8"))[0]
            return min(experiences / len(json.loads(file.read_text(encoding="utf-8"))["tasks"]), 0.99)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, FsclError):
            return 0.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
