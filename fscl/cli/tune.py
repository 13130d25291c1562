"""``fscl tune`` chooses the settings of strategies on held-out training images of the first tasks."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fscl.cli.options import (
    AsJson,
    Data,
    Quiet,
    Trust,
    check_writable,
    complain,
    complain_of,
    data_folder,
    recorded,
)
from fscl.cli.output import Output
from fscl.errors import FsclError

if TYPE_CHECKING:
    from rich.table import Table

    from fscl.runs.stream.tune import Tuned

__all__ = ["tune"]


def tune(
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name, or the path of a TOML file.")],
    strategy: Annotated[
        list[str],
        typer.Option("-s", "--strategy", help="A strategy's name, or the path of a TOML file; may be repeated."),
    ],
    trials: Annotated[
        int, typer.Option(help="Settings tried per strategy, its own included; at most its whole grid.")
    ] = 6,
    tasks: Annotated[int, typer.Option(help="Tasks that a trial learns, the first ones of the stream.")] = 3,
    validation: Annotated[
        float, typer.Option(help="Share of the training images that judges a trial; test images are never used.")
    ] = 0.1,
    seed: Annotated[
        int,
        typer.Option(help="Seed of all trials. Reported runs count from 0, so take a seed that they do not use."),
    ] = 100,
    data: Data = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("runs/tune"),
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Trials at a time; by default one per core, or one on a GPU."),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe in the trials only: training.epochs=2."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads per trial.")] = 1,
    trust: Trust = False,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--recipe", help="File of the tuned recipe; by default <out>/<benchmark>/<benchmark>.toml."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose the settings of strategies from the grids in their files, and write the benchmark's recipe with them.

    A trial learns the first tasks and is judged by its accuracy on held-out training images.
    Finished trials are not run again.
    """
    from fscl.runs.grid.sweep import sweep
    from fscl.runs.recipe import find_recipe, load_benchmark, load_strategy
    from fscl.runs.stream.tune import Protocol, plan, record_of, tuned, write_record
    from fscl.runs.stream.tuned_recipe import changed_text, write_recipe

    for name, value in (("--trials", trials), ("--threads", threads), ("--jobs", 1 if jobs is None else jobs)):
        if value < 1:
            raise FsclError(f"{name} is {value}; it must be at least 1")
    protocol = Protocol(trials, tasks, validation, seed, tuple(set_ or []))
    recipe = load_benchmark(benchmark, trust)
    learners = [load_strategy(s, trust) for s in dict.fromkeys(strategy)]
    folder = out / recipe.name
    file = file or folder / f"{recipe.name}.toml"
    check_writable(folder)
    check_writable(file.parent, "--recipe")
    output = Output(quiet, as_json)
    planned = plan(recipe, learners, protocol, data=data_folder(data), device=device, threads=threads)
    source = find_recipe("benchmarks", benchmark)
    own_trials = [strategy_trials[0] for strategy_trials in planned]
    # fails now, not after hours of trials, if settings cannot be added to the file
    changed_text(source, {trial.spec.strategy.name: trial.settings for trial in own_trials}, {})
    with output.only_results():
        outcomes = sweep([trial.spec for trial in itertools.chain(*planned)], out, jobs, console=output.progress)
    failed = [o for o in outcomes if o.error]
    complain_of(failed)
    if not all(recorded(o) for o in failed):
        complain("some trials did not end, so no settings are chosen; run the same command again to go on")
        raise typer.Exit(1)
    results = [tuned(learner, strategy_trials, out) for learner, strategy_trials in zip(learners, planned, strict=True)]
    output.table(lambda width: _table(results))
    trials_file = folder / "tune.json"
    write_record(trials_file, recipe, protocol, results)
    write_recipe(source, file, protocol, results)
    output.line(f"Trials: {trials_file}")
    output.line(f"Recipe: {file}")
    output.json({**record_of(recipe, protocol, results), "files": {"trials": trials_file, "recipe": file}})
    if failed:
        raise typer.Exit(1)


def _table(results: "Sequence[Tuned]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("strategy", "trials", "best settings", box=None)
    for column in ("accuracy", "own settings'"):
        table.add_column(column, justify="right")
    for result in results:
        best, own, count = result.best, result.own, len(result.trials)
        tried = f"{count}, all" if result.whole else f"{count} of {result.candidates}"
        settings = "its own" if best is own else ", ".join(f"{k} = {v}" for k, v in best.settings.items())
        accuracies = ("-" if t.accuracy is None else f"{100 * t.accuracy:.1f} %" for t in (best, own))
        table.add_row(escape(result.strategy.title or result.strategy.name), tried, escape(settings), *accuracies)
    return table
