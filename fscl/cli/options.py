"""Options that several commands share, and their checks before training. Slow libraries are imported inside."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_args

import typer

from fscl.errors import FsclError
from fscl.text import brief

if TYPE_CHECKING:
    from fscl.runs.grid.sweep import Outcome

__all__ = [
    "AsJson",
    "Data",
    "Quiet",
    "Trust",
    "check_writable",
    "choice",
    "complain",
    "complain_of",
    "data_folder",
    "recorded",
]

Data = Annotated[Optional[Path], typer.Option("--data", help="Data folder; else FSCL_DATA, else ./data.")]  # noqa: UP045
Trust = Annotated[
    bool, typer.Option("--trust", help="Trust the recipe files: they may name any network and run any code.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print no progress and no table, only errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON, and nothing else, to stdout.")]


def choice(names: Any, explanation: str, *option: str) -> Any:
    """An option whose value is one of the names of a ``Literal``. Help shows the names, and other values are refused.

    Args:
        names: the ``Literal``.
        explanation: what help says of the option.
        *option: its names; by default the name of the parameter.
    """

    def check(parameter: typer.CallbackParam, value: str) -> str:
        check_choice(parameter.opts[0], value, names)
        return value

    return typer.Option(*option, help=explanation, metavar="|".join(get_args(names)), callback=check)


def choices(names: Any, explanation: str) -> Any:
    """An option as of :func:`choice` that may be repeated. Its command calls :func:`check_choice` with each value,
    because the callbacks of typer 0.16 cannot take a list that is not given.
    """
    return typer.Option(help=f"{explanation}; may be repeated.", metavar="|".join(get_args(names)))


def check_choice(option: str, value: str, names: Any) -> None:
    """Refuses a value that is not among the names of a ``Literal``.

    Raises:
        FsclError: it is not.
    """
    known = get_args(names)
    if value not in known:
        raise FsclError(f"{option} is {brief(value)}; {', '.join(known[:-1])} or {known[-1]} would do")


def recorded(failed: "Outcome") -> bool:
    """Whether a failed run left a record, which the report can list."""
    from fscl.runs.results import load_run

    try:
        run = load_run(failed.folder / "run.json")
    except FsclError:
        return False
    return run.status == "failed" and run.recipe_hash == failed.spec.hash


def check_writable(out: Path, option: str = "--out") -> None:
    """Makes the folder if it does not exist.

    Raises:
        FsclError: the folder cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # a process with this id on another machine may have removed it
    except OSError as error:
        raise FsclError(f"{option} {out}: cannot be written ({error.strerror})") from error


def data_folder(data: Path | None) -> str | None:
    """The folder of ``--data``, or None if the option is not given.

    Raises:
        FsclError: there is no such folder.
    """
    if data is not None and not data.is_dir():
        raise FsclError(f"--data {data}: no such folder")
    return None if data is None else str(data)


def complain(message: object) -> None:
    """Prints an error as one line to stderr."""
    typer.echo(f"error: {' '.join(str(message).split())}", err=True)


def complain_of(failed: "list[Outcome]") -> None:
    """Prints one line for each error that failed runs had. Runs with the same error share a line."""
    by_error: dict[str, list[Outcome]] = {}
    for outcome in failed:
        by_error.setdefault(outcome.error, []).append(outcome)
    for error, outcomes in by_error.items():
        more = f" (and {len(outcomes) - 1} more)" if len(outcomes) > 1 else ""
        complain(f"{outcomes[0].folder}{more}: {error}")
