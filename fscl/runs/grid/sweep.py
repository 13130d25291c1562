"""Does a grid of runs (benchmark x strategies x seeds), by default on this machine, and shows its progress."""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fscl.errors import FsclError
from fscl.runs.building import find_device, prepared
from fscl.runs.grid.progress import LiveTable, record_stamp
from fscl.runs.run import BusyError, is_finished, run_one
from fscl.runs.schema import FederationRecipe
from fscl.runs.spec import RunSpec
from fscl.runs.workers import FOR_FEDERATIONS, FOR_STREAMS, Died, each_in_a_worker, in_a_worker, warm_up

__all__ = ["Engine", "Outcome", "attempt", "sweep"]

PAUSE = 1.0  # seconds between two looks at runs that other processes are doing

Ended = tuple[str, bool]  # the error, empty if there was none, and whether it was a crash
Item = tuple[RunSpec, int | None]  # a run, and with overwrite the stamp of the record that it will replace


@dataclass(frozen=True)
class Outcome:
    """How one run of the grid ended.

    Attributes:
        spec: the run.
        folder: the run's folder.
        error: why it failed; empty if it did not.
        crashed: whether the learner raised or its process was killed. Other errors are mistakes of the user.
    """

    spec: RunSpec
    folder: Path
    error: str = ""
    crashed: bool = False


# Does runs. Arguments: the runs, the output folder, runs at a time (None: as many as fit), whether to overwrite.
Engine = Callable[[Sequence[RunSpec], Path, int | None, bool], Iterator[Outcome]]


def sweep(
    specs: Sequence[RunSpec],
    out: Path,
    jobs: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    engine: Engine | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Does all runs, ``jobs`` at a time, each in a process of its own. All are checked before the first one begins.

    If a run fails or its process is killed, for example when memory runs out, the other runs go on.

    Several processes may do the same grid at once, on machines that share ``out``. Each process takes runs that no
    other process is doing, waits for the remaining runs, and resumes the runs of a process that died.

    Args:
        specs: the runs.
        out: output folder.
        jobs: runs at a time; by default as many as the cores allow, or one on a GPU. A single job is done in this
            process.
        overwrite: run finished runs again.
        console: where to show the progress; None shows nothing.
        engine: does the runs; by default this machine.
        meanwhile: called while the server of worker processes imports Avalanche, which takes seconds.

    Returns:
        An outcome for each spec, in their order.

    Raises:
        FsclError: as :func:`fscl.runs.building.prepared`.
    """
    todo = [spec for spec in specs if overwrite or not is_finished(spec, out)]
    if todo:
        slow = "PyTorch and Flower" if _is_federated(todo) else "Avalanche and PyTorch"
        with console.status(f"Loading {slow} ...") if console else contextlib.nullcontext():
            todo = _prepared(todo, jobs, engine, meanwhile)
    else:
        _check_unused(specs, engine, console)
    outcomes = {}
    with LiveTable(specs, out, overwrite, console if todo else None) as live:
        for outcome in (engine or _here)(todo, out, jobs, overwrite):
            outcomes[outcome.folder] = outcome
            if outcome.error:
                live.failed(outcome.folder)
    return [outcomes.get(spec.folder(out), Outcome(spec, spec.folder(out))) for spec in specs]


def _check_unused(specs: Sequence[RunSpec], engine: Engine | None, console: Console | None) -> None:
    """Names the options for which nothing is left to do, because all runs are finished. A wrong device is refused.

    Finished runs need neither PyTorch nor Avalanche, so no more is imported than the devices need.
    """
    devices = sorted({spec.device for spec in specs} - {"auto", "cpu"})
    logs = dict.fromkeys(log for spec in specs for log in spec.log)
    unused = [*(f"--device {name}" for name in devices), *(f"--log {log}" for log in logs)]
    if engine is None:
        for name in devices:
            find_device(name, "--device ")
    else:
        unused.append("--engine ray")
    if console and unused:
        console.print(f"All runs are finished, so nothing is left to do for {', '.join(unused)}.", highlight=False)


def _prepared(
    todo: Sequence[RunSpec], jobs: int | None, engine: Engine | None, meanwhile: Callable[[], object]
) -> list[RunSpec]:
    if engine is not None:
        return prepared(todo, here=False)
    if jobs == 1 or len(todo) == 1 or any(spec.simulated for spec in todo):
        if _is_federated(todo) and _cores() > 1 and not any(spec.simulated for spec in todo):
            warm_up(FOR_FEDERATIONS)  # for the processes of clients
        return prepared(todo)
    warm_up(FOR_FEDERATIONS if _is_federated(todo) else FOR_STREAMS)
    meanwhile()
    return in_a_worker(prepared, todo)  # the server has imported what is slow, so this process need not


def _is_federated(specs: Sequence[RunSpec]) -> bool:
    return all(isinstance(spec.benchmark, FederationRecipe) for spec in specs)


def _here(todo: Sequence[RunSpec], out: Path, jobs: int | None, overwrite: bool) -> Iterator[Outcome]:
    threads = max((spec.threads for spec in todo), default=1)
    if jobs is None and any(spec.device.startswith("cuda") for spec in todo):
        jobs = 1  # runs would share one GPU's memory
    if any(spec.simulated for spec in todo):
        jobs = 1  # each run starts a Ray cluster of its own
    jobs = max(1, min(jobs or _cores() // threads, len(todo)))
    spared = max(1, _cores() // (jobs * threads))  # where few runs are done, clients of a federation use other cores
    left: list[Item] = [
        (replace(spec, workers=spared), record_stamp(spec.folder(out)) if overwrite else None) for spec in todo
    ]
    while left:
        busy = []
        for item, ended in _in_turn(left, out) if jobs == 1 else _at_once(left, out, jobs):
            if ended is None:
                busy.append(item)
            else:
                yield Outcome(item[0], item[0].folder(out), *ended)
        if len(busy) == len(left):
            time.sleep(PAUSE)
        left = busy


def _in_turn(items: Sequence[Item], out: Path) -> Iterator[tuple[Item, Ended | None]]:
    for item in items:
        yield item, _unless_busy(*item, out)


def _at_once(items: Sequence[Item], out: Path, jobs: int) -> Iterator[tuple[Item, Ended | None]]:
    place = out.absolute()  # the server that forks workers may have started in another folder
    for (item, _), ended in each_in_a_worker(_in_worker, [(item, place) for item in items], jobs):
        yield item, (_death(ended.exit_code), True) if isinstance(ended, Died) else ended


def _death(exit_code: int) -> str:
    again = "run the same command again to go on"
    if exit_code == -9:
        return (
            f"its process was killed by signal 9, as happens when memory runs out; {again}, perhaps with fewer --jobs"
        )
    end = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code} and no result"
    return f"its process {end}; {again}"


def _in_worker(task: tuple[Item, Path]) -> Ended | None:
    item, out = task
    return _unless_busy(*item, out)


def _unless_busy(spec: RunSpec, replaced: int | None, out: Path) -> Ended | None:
    """Attempts a run; None if another process is doing it.

    ``replaced`` is the stamp of the record to overwrite. If the record has another stamp by now, another process has
    overwritten it already, and the run is not restarted.
    """
    try:
        return attempt(spec, out, replaced == record_stamp(spec.folder(out)), wait=False)
    except BusyError:
        return None


def attempt(
    spec: RunSpec, out: Path, overwrite: bool, kept: Callable[[], None] | None = None, wait: bool = True
) -> Ended:
    """Does one run. Returns the error, empty if there was none, and whether it was a crash.

    Args:
        spec, out, overwrite, kept, wait: as in :func:`fscl.runs.run.run_one`.

    Raises:
        BusyError: another process is doing the run, and ``wait`` is False.
    """
    folder = spec.folder(out)
    reported = False

    def report(experience: int, epoch: int, epochs: int) -> None:
        nonlocal reported
        reported = True
        # the file is only for the progress bar, so a full disk must not end the run
        with contextlib.suppress(OSError):
            text = json.dumps([experience + epoch / epochs, os.getpid()])
            (folder / "progress").write_text(text, encoding="utf-8")

    try:
        with _without_deprecations():
            run_one(spec, out, overwrite, report, kept, wait)
    except BusyError:
        raise
    except FsclError as failure:
        return str(failure), False
    except Exception as failure:  # a learner may raise anything; the error is recorded, and the grid goes on
        import traceback

        with contextlib.suppress(OSError):
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(failure).__name__}: {failure} (see error.txt in its folder)", True
    else:
        (folder / "error.txt").unlink(missing_ok=True)
        return "", False
    finally:
        if reported:
            with contextlib.suppress(OSError):
                (folder / "progress").unlink(missing_ok=True)


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hides warnings of deprecation. Avalanche raises them at every task, and they would break the live table."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_others(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, DeprecationWarning) and "is deprecated" not in str(message):
                show(message, category, *where)

        warnings.showwarning = show_others  # type: ignore[assignment]  # passes on whatever it is given
        yield


def _cores() -> int:
    from joblib import cpu_count

    return cpu_count()  # respects CPU affinity and a container's quota
