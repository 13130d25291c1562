"""All units of the evidence, each done once, in as many processes as there are cores; then the page."""

import json
import platform
import time
from collections.abc import Iterator
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.similarity.contents import Context, Part, Unit
from benchmarks.similarity.cost import cost_part
from fscl.errors import FsclError
from fscl.files import write_text_atomically

__all__ = ["PARTS", "gather", "parts_of"]

PARTS = ("agreement", "robustness", "grounding", "failures")  # modules with `units`; and with `part`, named ..._page
RESULTS = "results.json"


def gather(
    context: Context, out: Path, jobs: int, only: str | None = None, overwrite: bool = False, console: Any = None
) -> dict[str, Any]:
    """Does the units that ``out/results.json`` lacks, and gives all results.

    Each unit is written to the file as it ends, so that an interrupted run goes on with the next.

    Args:
        only: units whose names start so.
        overwrite: do them again.

    Raises:
        FsclError: a unit failed (the others are done first); results of the other mode are in the folder.
    """
    wanted = [unit for unit in _units(context.quick) if only is None or unit.name.startswith(only)]
    if not wanted:
        raise FsclError(f"--only {only}: no such units; known: {', '.join(u.name for u in _units(context.quick))}")
    file = out / RESULTS
    results: dict[str, Any] = {"quick": context.quick, "units": {}}
    if file.exists():
        results = _read(file)
        if results["quick"] != context.quick:
            mode = "quick" if results["quick"] else "full"
            raise FsclError(f"{file} holds results of the {mode} mode; use that mode, or another --out")
    results["of"] = len(_units(context.quick))
    missing = [unit for unit in wanted if overwrite or not _holds(results, unit)]
    failures: list[str] = []
    for name, found in _done(missing, context, jobs, console):
        if "error" in found:
            failures.append(f"{name}: {found['error']}")
            continue
        results["units"][name] = found
        results["units"] = dict(sorted(results["units"].items()))
        out.mkdir(parents=True, exist_ok=True)
        _write(file, results)
    if failures:
        raise FsclError(f"{len(failures)} of {len(missing)} units failed; {'; '.join(failures)}")
    return results


def parts_of(results: dict[str, Any], speed: Path | None = None) -> list[Part]:
    """The sections for whose units there are results of this version, and the costs that ``benchmarks.speed`` found.

    The costs come before the grounding.
    """
    parts = []
    for name in PARTS:
        if name == "grounding" and speed is not None:
            parts.append(cost_part(speed))
        module = import_module(f"benchmarks.similarity.{name}")
        known = [unit.name for unit in module.units(results["quick"]) if _holds(results, unit)]
        found = {unit: results["units"][unit]["result"] for unit in known}
        if found:
            parts.append(import_module(f"benchmarks.similarity.{name}_page").part(found))
    return parts


def _read(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(results["units"], dict) and isinstance(results["quick"], bool):
            return dict(results)
    except (ValueError, KeyError, TypeError):
        pass
    raise FsclError(f"{file} does not hold results of this command; move it away, or give another --out")


def _holds(results: dict[str, Any], unit: Unit) -> bool:
    return unit.name in results["units"] and results["units"][unit.name].get("version", 1) == unit.version


def _units(quick: bool) -> list[Unit]:
    return [unit for name in PARTS for unit in import_module(f"benchmarks.similarity.{name}").units(quick)]


def _done(units: list[Unit], context: Context, jobs: int, console: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    from joblib import Parallel, delayed
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not units) as bar:
        task = bar.add_task("evidence", total=len(units))
        work = Parallel(n_jobs=min(jobs, max(1, len(units))), return_as="generator_unordered", batch_size=1)
        for name, found in work(delayed(_do)(unit, context) for unit in units):
            bar.advance(task)
            outcome = f"failed: {found['error']}" if "error" in found else f"{found['seconds']:.0f} s"
            bar.console.print(f"{name}: {outcome}", markup=False, highlight=False)
            yield name, found


def _do(unit: Unit, context: Context) -> tuple[str, dict[str, Any]]:
    import torch

    from fscl.runs.environment import processor

    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        result = unit.call(context)
    except Exception as error:  # the other units go on
        return unit.name, {"error": f"{type(error).__name__}: {error}"}
    return unit.name, {
        "result": result,
        "version": unit.version,
        "seconds": round(time.perf_counter() - began, 1),
        "date": date.today().isoformat(),
        "machine": f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}",
    }


def _write(file: Path, results: dict[str, Any]) -> None:
    text = json.dumps(results, separators=(",", ":")) + "\n"
    write_text_atomically(file, text)
