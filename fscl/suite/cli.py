"""The command line: list, run, report, heatmap. Slow libraries are imported where they are used."""

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from fscl.errors import FsclError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Continual learning with filter atoms: benchmarks, reports and task-similarity heatmaps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[Optional[Path], typer.Option("--data", help="Data folder; else FSCL_DATA, else ./data.")]  # noqa: UP045


@app.command("list")
def list_(data: Data = None) -> None:
    """List the benchmarks and strategies, and whether each benchmark's data is present."""
    from rich.console import Console
    from rich.table import Table

    from fscl.continual.datasets import find_data
    from fscl.suite.recipe import find_recipes, load_benchmark, load_strategy

    console = Console()
    benchmarks = Table("benchmark", "what it is", "data", title="Benchmarks", title_justify="left", box=None)
    for name in find_recipes("benchmarks"):
        recipe = load_benchmark(name)
        where = find_data(recipe.data.name, data)
        benchmarks.add_row(name, recipe.description, "[green]present[/]" if where else "[yellow]missing[/]")
    strategies = Table("strategy", "what it is", title="Strategies", title_justify="left", box=None)
    for name in find_recipes("strategies"):
        strategies.add_row(name, load_strategy(name).description)
    console.print(benchmarks)
    console.print()
    console.print(strategies)


@app.command()
def run(
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name, or the path of a TOML file.")] = "split_digits",
    strategy: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("-s", "--strategy", help="A strategy's name, or the path of a TOML file; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, counted from 0.")] = 3,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs"),
    jobs: Annotated[Optional[int], typer.Option(help="Runs at a time; one a core by default.")] = None,  # noqa: UP045
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe: training.epochs=2, args.num_atoms=6."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads a run; numbers depend on it in the last digits.")] = 1,
    validation: Annotated[
        float, typer.Option(help="Test on this share of the training images instead of the test images.")
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run finished runs again.")] = False,
    report_to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--report", help="Folder of the report; <out>/<benchmark>/report by default."),
    ] = None,
) -> None:
    """Train strategies on a benchmark, print the table, write the report. What is finished is not run again."""
    from rich.console import Console

    from fscl.suite.recipe import load_benchmark, load_strategy, with_overrides
    from fscl.suite.run import RunSpec
    from fscl.suite.sweep import sweep

    for name, value in (("--seeds", seeds), ("--threads", threads), ("--jobs", 1 if jobs is None else jobs)):
        if value < 1:
            raise FsclError(f"{name} is {value}; it must be at least 1")
    console = Console()
    recipe = load_benchmark(benchmark)
    learners = [load_strategy(s) for s in strategy or ("atom_swapping", "naive", "ewc", "from_scratch")]
    pairs = [with_overrides(recipe, learner, set_ or []) for learner in learners]
    _check_writable(out)
    with console.status("Loading Avalanche and PyTorch ..."):
        _check(pairs, data)
        place = _device(device)
    specs = [
        RunSpec(b, s, seed, str(data) if data else None, place, threads, validation)
        for seed in range(seeds)
        for b, s in pairs
    ]
    outcomes = sweep(specs, out, jobs, overwrite, console)
    failed = [o for o in outcomes if o.error]
    _show_report([o.folder for o in outcomes if not o.error], report_to or out / recipe.name / "report", console)
    for outcome in failed:
        typer.echo(f"error: {outcome.folder}: {outcome.error}", err=True)
    if failed:
        raise typer.Exit(2 if len(failed) == len(outcomes) else 1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders with runs, at any depth.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = Path("report"),
) -> None:
    """Write the report of any mixture of runs: one HTML page and one Markdown page."""
    from rich.console import Console

    _show_report(runs, out, Console())


@app.command()
def heatmap(
    banks: Annotated[list[Path], typer.Argument(help="Bank files (several must share their coefficients).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG, SVG or PDF file.")] = Path("heatmap.png"),
    metric: Annotated[str, typer.Option(help="cosine, filter, grassmann or projection.")] = "cosine",
    aggregate: Annotated[str, typer.Option(help="product (of squares) or mean over layers.")] = "product",
) -> None:
    """Draw the task-to-task similarity of the atoms in a bank; no data is needed."""
    from matplotlib.figure import Figure

    from fscl.atoms.bank import AtomBank
    from fscl.files import write_atomically
    from fscl.plots import similarity_heatmap

    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise FsclError(f"{out}: unknown kind of figure; use .png, .svg or .pdf")
    first, *others = [AtomBank.load(path) for path in banks]
    bank = first.merge(*others)
    if len(bank) < 2:
        raise FsclError(f"{banks[0]}: {len(bank)} task in the bank; a heatmap needs at least 2")
    similarity = bank.similarity(metric, aggregate).numpy()
    size = 3.2 + 0.3 * len(bank)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    similarity_heatmap(similarity, bank.names, ax=figure.subplots())
    write_atomically(out, lambda temporary: figure.savefig(temporary, dpi=150))
    typer.echo(f"{len(bank)} tasks, {len(bank.layers)} layers, {metric} ({aggregate} over layers) -> {out}")


def _show_report(folders: list[Path], out: Path, console: object) -> None:
    from rich.console import Console

    from fscl.suite.report import rich_table, summary_rows, write_report
    from fscl.suite.results import load_runs

    assert isinstance(console, Console)
    if not folders:
        return
    found = load_runs(folders)
    if not found:
        raise FsclError(f"no runs (run.json) in {', '.join(map(str, folders))}")
    console.print(rich_table(summary_rows(found)))
    with console.status("Drawing the report ..."):
        paths = write_report(found, out)
    console.print(f"Report: {paths.html}", highlight=False, soft_wrap=True)


def _check(pairs: list, data: Path | None) -> None:
    """Refuses, before anything is trained, what would fail in every run."""
    from fscl.continual.datasets import load_images
    from fscl.continual.networks import build_network
    from fscl.continual.stream import split_classes
    from fscl.continual.trainer import strategy_class

    for _, strategy in pairs:
        strategy_class(strategy.class_path, strategy.args)
    recipe = pairs[0][0]
    stream = split_classes(*load_images(recipe.data.name, data, recipe.data.image_size), recipe.split.tasks)
    build_network(recipe.model.name, stream.image_shape, stream.classes_per_task, recipe.model.args)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FsclError(f"--out {out}: cannot be written ({error.strerror})") from error


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FsclError(f"--device {name}: not to be had here ({str(error).splitlines()[0]})") from error
    return name


def main() -> None:
    """Runs the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except FsclError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command again to go on", err=True)
        sys.exit(130)
