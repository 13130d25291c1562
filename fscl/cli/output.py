"""Where commands print: results to stdout, progress to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer

from fscl.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Output"]


@dataclass(frozen=True)
class Output:
    """What a command prints.

    Attributes:
        quiet: no progress and no results for people, only errors.
        as_json: results as one JSON document for programs, in place of tables and lines for people.
    """

    quiet: bool = False
    as_json: bool = False

    @cached_property
    def progress(self) -> Console | None:
        """Where progress is shown; None if it is not shown."""
        from rich.console import Console

        return None if self.quiet else Console(stderr=True)

    def working(self, words: str) -> contextlib.AbstractContextManager[object]:
        """Shows that something slow is going on, on a terminal."""
        return contextlib.nullcontext() if self.progress is None else self.progress.status(words)

    def table(self, made: Callable[[int], Table]) -> None:
        """Prints a table for people.

        Args:
            made: makes it for a terminal of so many columns.
        """
        if not (self.quiet or self.as_json):
            from rich.console import Console

            console = Console()
            console.print(made(console.width))

    def line(self, text: str) -> None:
        """Prints a line for people."""
        if not (self.quiet or self.as_json):
            typer.echo(printable(text))

    def json(self, results: Any) -> None:
        """Prints results for programs. Paths become texts, and numbers that are not defined become null."""
        if self.as_json:
            typer.echo(json.dumps(_defined(results), indent=1, default=str, allow_nan=False))

    @contextlib.contextmanager
    def only_results(self) -> Iterator[None]:
        """Within the block everything that is printed goes to stderr, also what learners and other processes print."""
        sys.stdout.flush()
        kept = os.dup(1)
        try:
            os.dup2(2, 1)
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
