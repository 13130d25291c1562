"""What several commands take, and check before anything is trained. Slow libraries are imported where they are used."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fscl.errors import FsclError

if TYPE_CHECKING:
    from fscl.runs.spec import RunSpec
    from fscl.runs.sweep import Outcome

__all__ = [
    "Data",
    "Trust",
    "check_specs",
    "check_writable",
    "complain",
    "complain_of",
    "data_base",
    "find_device",
    "recorded",
]

Data = Annotated[Optional[Path], typer.Option("--data", help="Data folder; else FSCL_DATA, else ./data.")]  # noqa: UP045
Trust = Annotated[
    bool, typer.Option("--trust", help="Build whatever the recipe files name: they may then run any code.")
]


def check_specs(specs: "list[RunSpec]") -> None:
    """Refuses, before anything is trained, what would fail in every run; the specs differ by strategy only."""
    from fscl.continual.learner import strategy_class
    from fscl.runs.building import check_runnable, check_trusted, load_stream

    for spec in specs:
        check_trusted(spec)
        strategy_class(spec.strategy.class_path, spec.strategy.args)  # sooner than images are read
    stream = load_stream(specs[0])
    for spec in specs:
        check_runnable(spec, stream)


def recorded(failed: "Outcome") -> bool:
    """Whether a run that failed left a record for the report to list."""
    from fscl.runs.results import load_run

    try:
        run = load_run(failed.folder / "run.json")
    except FsclError:
        return False
    return run.status == "failed" and run.recipe_hash == failed.spec.hash


def check_writable(out: Path, option: str = "--out") -> None:
    """Makes the folder if it is not there.

    Raises:
        FsclError: it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # a process of this number on another machine may have done it
    except OSError as error:
        raise FsclError(f"{option} {out}: cannot be written ({error.strerror})") from error


def data_base(data: Path | None) -> Path:
    """The data folder, absolute: runs may start in another place."""
    from fscl.data.datasets import data_root

    return data_root(data).absolute()


def find_device(name: str) -> str:
    """The device of that name; of ``auto``, a GPU if there is one.

    Raises:
        FsclError: it is not to be had.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FsclError(f"--device {name}: not to be had here ({str(error).splitlines()[0]})") from error
    return name


def complain(message: object) -> None:
    """One line on the error stream."""
    typer.echo(f"error: {' '.join(str(message).split())}", err=True)


def complain_of(failed: "list[Outcome]") -> None:
    """A line for each reason for which runs failed."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in failed:
        groups.setdefault(outcome.error, []).append(outcome)
    for error, alike in groups.items():
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        complain(f"{alike[0].folder}{more}: {error}")
