"""The grid of benchmark x strategies x seeds, by default on this machine, with progress that survives its workers."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fscl.errors import FsclError
from fscl.suite.run import RunSpec, is_finished, run_one

__all__ = ["Engine", "Outcome", "attempt", "sweep"]


KILLED = (
    "a worker process was killed, as happens when memory runs out; run the same command again to go on, "
    "perhaps with fewer --jobs"
)
WATCH = "fscl-watch"


@dataclass(frozen=True)
class Outcome:
    """How one run of the grid ended.

    Attributes:
        spec: what was to be run.
        folder: where it is.
        error: why it failed; empty if it did not.
        crashed: whether it failed for a reason that is not the user's: the learner raised, or its process was killed.
    """

    spec: RunSpec
    folder: Path
    error: str = ""
    crashed: bool = False


# what does the runs that are to be done, in a folder, so many at a time or as many as fit, over finished ones or not
Engine = Callable[[Sequence[RunSpec], Path, int | None, bool], Iterator[Outcome]]


def sweep(
    specs: Sequence[RunSpec],
    out: Path,
    jobs: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    engine: Engine | None = None,
) -> list[Outcome]:
    """Runs every spec, ``jobs`` at a time, each in a process of its own; a run that fails does not stop the others.

    Args:
        specs: the runs.
        out: output folder.
        jobs: runs at a time; by default one a core.
        overwrite: run finished ones again.
        console: where the progress bars go; None draws none.
        engine: where runs are done; this machine by default.

    Returns:
        An outcome for each spec, in order.
    """
    todo = [spec for spec in specs if overwrite or not is_finished(spec, out)]
    with _Bars(specs, todo, out, console, time.time()):
        outcomes = {outcome.folder: outcome for outcome in (engine or _here)(todo, out, jobs, overwrite)}
    return [outcomes.get(spec.folder(out), Outcome(spec, spec.folder(out))) for spec in specs]


def _here(todo: Sequence[RunSpec], out: Path, jobs: int | None, overwrite: bool) -> Iterator[Outcome]:
    jobs = max(1, min(jobs or _cores(), len(todo)))
    return _in_turn(todo, out, overwrite) if jobs == 1 else _at_once(todo, out, jobs, overwrite)


def _in_turn(todo: Sequence[RunSpec], out: Path, overwrite: bool) -> Iterator[Outcome]:
    for spec in todo:
        yield Outcome(spec, spec.folder(out), *attempt(spec, out, overwrite))


def _at_once(todo: Sequence[RunSpec], out: Path, jobs: int, overwrite: bool) -> Iterator[Outcome]:
    from joblib import Parallel, delayed

    left = dict(enumerate(todo))
    place = out.absolute()  # a worker that is kept from an earlier grid may have started in another folder
    pool = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered")
    try:
        calls = (delayed(_in_worker)(i, spec, place, overwrite, os.getpid()) for i, spec in enumerate(todo))
        for i, error, crashed in pool(calls):
            spec = left.pop(i)
            yield Outcome(spec, spec.folder(out), error, crashed)
    except BrokenExecutor:  # one worker was killed, and joblib has ended the others with it
        for spec in left.values():
            done = not overwrite and is_finished(spec, out)
            yield Outcome(spec, spec.folder(out)) if done else Outcome(spec, spec.folder(out), KILLED, True)
    except BaseException:
        _end_workers()
        raise


def _end_workers() -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _in_worker(i: int, spec: RunSpec, out: Path, overwrite: bool, driver: int) -> tuple[int, str, bool]:
    if os.getppid() == driver and WATCH not in (thread.name for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(driver,), name=WATCH, daemon=True).start()
    return i, *attempt(spec, out, overwrite)


def _end_with(driver: int) -> None:
    """Ends this worker when its driver is gone: killed, it told nobody, and training would go on unseen for hours."""
    while os.getppid() == driver:
        time.sleep(0.5)
    os._exit(1)


def attempt(
    spec: RunSpec,
    out: Path,
    overwrite: bool,
    kept: Callable[[], None] | None = None,
) -> tuple[str, bool]:
    """Runs, and returns the error, empty if there was none, and whether it was a crash; ``kept`` as in ``run_one``."""
    folder = spec.folder(out)

    def report(experience: int, epoch: int, epochs: int) -> None:
        # a torn or missing file only leaves the bar where it is
        with contextlib.suppress(OSError):
            text = json.dumps([experience + epoch / epochs, os.getpid()])
            (folder / "progress").write_text(text, encoding="utf-8")

    try:
        run_one(spec, out, overwrite, report, kept)
    except FsclError as failure:
        return str(failure), False
    except Exception as failure:  # a learner's own: it is recorded, and the grid goes on
        import traceback

        with contextlib.suppress(OSError):
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(failure).__name__}: {failure} (see error.txt there)", True
    else:
        (folder / "error.txt").unlink(missing_ok=True)
        return "", False
    finally:
        with contextlib.suppress(OSError):
            (folder / "progress").unlink(missing_ok=True)


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
                    escape(spec.strategy.title or spec.strategy.name), total=len(runs), unit="runs"
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
    from joblib import cpu_count

    return cpu_count()  # knows of affinity and of a container's quota
