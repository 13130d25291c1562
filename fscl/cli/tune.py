"""``fscl tune``: settings of learners, chosen on held-out training images of the first tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fscl.cli.options import (
    Data,
    Trust,
    check_specs,
    check_writable,
    complain,
    complain_of,
    data_base,
    find_device,
    recorded,
)
from fscl.errors import FsclError

if TYPE_CHECKING:
    from rich.table import Table

    from fscl.runs.tune import Tuned

__all__ = ["tune"]


def tune(
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name, or the path of a TOML file.")],
    strategy: Annotated[
        list[str],
        typer.Option("-s", "--strategy", help="A strategy's name, or the path of a TOML file; may be repeated."),
    ],
    trials: Annotated[
        int, typer.Option(help="Settings tried of each strategy, its own among them; all of its grid if that is less.")
    ] = 6,
    tasks: Annotated[int, typer.Option(help="Tasks learned in a trial: the first of the stream.")] = 3,
    validation: Annotated[
        float, typer.Option(help="Share of the training images to judge by; no test image is looked at.")
    ] = 0.1,
    seed: Annotated[
        int,
        typer.Option(help="Of all trials. Its order of classes is to be none of those reported, which count from 0."),
    ] = 100,
    data: Data = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("runs/tune"),
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Trials at a time; by default one a core, or one on a GPU."),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe, for the trials alone: training.epochs=2."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads a trial.")] = 1,
    trust: Trust = False,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--recipe", help="The recipe found; by default <out>/<benchmark>/<benchmark>.toml."),
    ] = None,
) -> None:
    """Choose strategies' settings from the grids in their files, and write the benchmark's recipe with them.

    A trial learns the first tasks and is judged by its accuracy on held-out training images. What is finished is not
    run again.
    """
    from rich.console import Console

    from fscl.runs.recipe import find_recipe, load_benchmark, load_strategy
    from fscl.runs.sweep import sweep
    from fscl.runs.tune import Protocol, plan, tuned, write_record
    from fscl.runs.tuned_recipe import changed_text, write_recipe
    from fscl.runs.workers import warm_up

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
    console = Console()
    with console.status("Loading Avalanche and PyTorch ..."):
        if jobs != 1:
            warm_up()
        place, base = find_device(device), str(data_base(data))
        planned = plan(recipe, learners, protocol, data=base, device=place, threads=threads)
        source = find_recipe("benchmarks", benchmark)
        changed_text(source, {of_one[0].spec.strategy.name: of_one[0].settings for of_one in planned}, {})  # can it be?
        check_specs([of_one[0].spec for of_one in planned])
    if jobs is None and place.startswith("cuda"):
        jobs = 1  # trials would share one GPU's memory
    outcomes = sweep([trial.spec for of_one in planned for trial in of_one], out, jobs, console=console)
    failed = [o for o in outcomes if o.error]
    complain_of(failed)
    if not all(recorded(o) for o in failed):
        complain("some trials did not end, so nothing is chosen; run the same command again to go on")
        raise typer.Exit(1)
    found = [tuned(learner, of_one, out) for learner, of_one in zip(learners, planned, strict=True)]
    console.print(_table(found))
    write_record(folder / "tune.json", recipe, protocol, found)
    write_recipe(source, file, protocol, found)
    console.print(f"Trials: {folder / 'tune.json'}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Recipe: {file}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _table(found: "Sequence[Tuned]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("strategy", "trials", "best settings", box=None)
    for column in ("accuracy", "own settings'"):
        table.add_column(column, justify="right")
    for one in found:
        count = f"{len(one.trials)}, all" if one.whole else f"{len(one.trials)} of {one.candidates}"
        best = "its own" if one.best is one.own else ", ".join(f"{k} = {v}" for k, v in one.best.settings.items())
        shares = ("-" if t.accuracy is None else f"{100 * t.accuracy:.1f} %" for t in (one.best, one.own))
        table.add_row(escape(one.strategy.title or one.strategy.name), count, escape(best), *shares)
    return table
