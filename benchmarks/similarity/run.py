"""All units of the study, each measured once, in several processes, and the file of their results."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from benchmarks.similarity.agreement import measure as agreement
from benchmarks.similarity.failures import measure as failures
from benchmarks.similarity.grounding import measure as grounding
from benchmarks.similarity.libraries import measure as libraries
from benchmarks.similarity.robustness import measure as robustness
from benchmarks.similarity.transformers import measure as transformers
from benchmarks.similarity.units import Context, Result, Unit
from fscl.errors import FsclError
from fscl.files import write_text_atomically

__all__ = ["FILE", "SECTIONS", "Measured", "Results", "gather", "read_results"]

FILE = "results.json"
SECTIONS: Mapping[
    str, Callable[[bool], list[Unit]]
] = {  # the units of each section, of the quick mode or of the full one
    "agreement": agreement.units,
    "robustness": robustness.units,
    "grounding": grounding.units,
    "failures": failures.units,
    "transformers": transformers.units,
    "libraries": libraries.units,
}


class Measured(BaseModel):
    """What a unit measured, and when, where and in what time."""

    result: dict[str, Any]  # a unit's Result as JSON has it
    version: int = 1
    seconds: float
    date: str
    machine: str


class Results(BaseModel):
    """What ``results.json`` holds."""

    quick: bool
    units: dict[str, Measured]
    of: int = 0  # how many units there are in this mode

    def holds(self, unit: Unit) -> bool:
        """Whether the unit was measured, in its present version."""
        return unit.name in self.units and self.units[unit.name].version == unit.version

    def of_section(self, section: str) -> dict[str, Result]:
        """The results of a section's units, by their names."""
        units = [unit for unit in SECTIONS[section](self.quick) if self.holds(unit)]
        return {unit.name: unit.result.model_validate(self.units[unit.name].result) for unit in units}


def read_results(file: Path) -> Results:
    """Reads ``results.json``.

    Raises:
        FsclError: it cannot be read, or does not hold results of this study.
    """
    try:
        return Results.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FsclError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise FsclError(f"{file} does not hold results of this command; move it away, or give another --out") from error


def gather(
    context: Context, out: Path, jobs: int, only: str | None = None, overwrite: bool = False, console: Any = None
) -> Results:
    """Measures the units that ``out/results.json`` lacks, and returns all results.

    Each unit is written to the file as it ends, so that an interrupted run goes on with the next. Units that need a
    package that is not installed are left out and named.

    Args:
        context: where data are, and whether to be quick.
        out: the folder of ``results.json``.
        jobs: processes at a time.
        only: the beginning of the names of the units to measure; None measures all.
        overwrite: whether to measure finished units again.
        console: where progress is shown; None shows it on standard output.

    Raises:
        FsclError: a unit failed (the others are measured first), or the folder holds results of the other mode.
    """
    units = _units(context.quick)
    wanted = [unit for unit in units if only is None or unit.name.startswith(only)]
    if not wanted:
        raise FsclError(f"--only {only}: no such units; known: {', '.join(unit.name for unit in units)}")
    file = out / FILE
    results = read_results(file) if file.exists() else Results(quick=context.quick, units={})
    if results.quick != context.quick:
        mode = "quick" if results.quick else "full"
        raise FsclError(f"{file} holds results of the {mode} mode; use that mode, or another --out")
    results.of = len(units)
    missing = [unit for unit in wanted if overwrite or not results.holds(unit)]
    for unit in missing:
        if unit.lacks:
            which = f"{' and '.join(unit.lacks)} {'is' if len(unit.lacks) == 1 else 'are'} not installed"
            _say(console, f"{unit.name}: left out; {which}")
    missing = [unit for unit in missing if not unit.lacks]
    failed: list[str] = []
    for name, outcome in _outcomes(missing, context, jobs, console):
        if isinstance(outcome, str):
            failed.append(f"{name}: {outcome}")
            continue
        results.units = dict(sorted({**results.units, name: outcome}.items()))
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, results.model_dump_json() + "\n")
    if failed:
        raise FsclError(f"{len(failed)} of {len(missing)} units failed; {'; '.join(failed)}")
    return results


def _units(quick: bool) -> list[Unit]:
    return [unit for units in SECTIONS.values() for unit in units(quick)]


def _say(console: Any, text: str) -> None:
    from rich.console import Console

    (console or Console()).print(text, markup=False, highlight=False, soft_wrap=True)


def _outcomes(units: list[Unit], context: Context, jobs: int, console: Any) -> Iterator[tuple[str, Measured | str]]:
    """The name of each unit as it ends, with what it measured, or with what went wrong."""
    from joblib import Parallel, delayed
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not units) as bar:
        task = bar.add_task("units", total=len(units))
        work = Parallel(n_jobs=min(jobs, max(1, len(units))), return_as="generator_unordered", batch_size=1)
        for name, outcome in work(delayed(_measure)(unit, context) for unit in units):
            bar.advance(task)
            said = f"failed: {outcome}" if isinstance(outcome, str) else f"{outcome.seconds:.0f} s"
            bar.console.print(f"{name}: {said}", markup=False, highlight=False)
            yield name, outcome


def _measure(unit: Unit, context: Context) -> tuple[str, Measured | str]:
    import torch

    from fscl.runs.environment import processor

    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        result = unit.measure(context)
    except Exception as error:  # the other units go on
        return unit.name, f"{type(error).__name__}: {error}"
    return unit.name, Measured(
        result=result.to_json(),
        version=unit.version,
        seconds=round(time.perf_counter() - began, 1),
        date=date.today().isoformat(),
        machine=f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}",
    )
