"""The command line of fscl. Each command has its own file. Slow libraries are imported inside the commands."""

import contextlib
import sys
from typing import Annotated

import typer

import fscl
from fscl.cli.cache import cache
from fscl.cli.heatmap import heatmap
from fscl.cli.listing import list_
from fscl.cli.options import complain
from fscl.cli.predict import predict
from fscl.cli.report import report
from fscl.cli.run import run
from fscl.cli.show import show
from fscl.cli.similarity import similarity
from fscl.cli.stopping import STOPPED, ToldToStop, told_to_stop
from fscl.cli.tune import tune
from fscl.errors import FsclError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Continual learning with filter atoms: benchmarks, reports and task-similarity heatmaps.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("list")(list_)
for command in (run, show, report, predict, heatmap, similarity, tune, cache):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fscl {fscl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


INTERRUPTED = 130  # typer exits with this code after Ctrl-C, too


def main() -> None:
    """Runs the command line. A user's mistake gives one line on stderr and exit code 2."""
    try:
        with told_to_stop():
            app()
    except (FsclError, OSError) as error:
        complain(error)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
        if code != INTERRUPTED and not isinstance(stop, ToldToStop):
            raise
        with contextlib.suppress(OSError):  # the terminal may be gone
            typer.echo(STOPPED, err=True)
        sys.exit(code)
