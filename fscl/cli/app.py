"""The command line of fscl. Slow libraries are imported where they are used."""

import contextlib
import sys
from dataclasses import replace
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
from fscl.cli.stopping import STOPPED, ToldToStop, told_to_stop
from fscl.cli.tune import tune
from fscl.errors import FsclError
from fscl.text import printable

if TYPE_CHECKING:
    from fscl.runs.sweep import Engine

__all__ = ["app", "main"]

app = typer.Typer(
    help="Continual learning with filter atoms: benchmarks, reports and task-similarity heatmaps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130  # what typer makes of Ctrl-C, too
DEFAULT_STRATEGIES = ("atom_swapping", "naive", "ewc", "from_scratch")
# where test images come without the label of their task
WITHOUT_LABELS = ("atom_selection", "naive", "ewc", "replay", "joint")


@app.command("list")
def list_(data: Data = None) -> None:
    """List the benchmarks and strategies, and whether each benchmark's data is present."""
    from rich.console import Console
    from rich.table import Table

    from fscl.data.datasets import find_data
    from fscl.runs.recipe import find_recipes, load_benchmark, load_strategy

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
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("runs"),
    jobs: Annotated[Optional[int], typer.Option(help="Runs at a time; by default one a core, or one on a GPU.")] = None,  # noqa: UP045
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe: training.epochs=2, args.num_atoms=6."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads a run; numbers depend on it in the last digits.")] = 1,
    validation: Annotated[
        float, typer.Option(help="Test on this share of the training images instead of the test images.")
    ] = 0.0,
    loader: Annotated[
        str, typer.Option(help="Where images are kept: auto, device, host; off for Avalanche's own loader.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="joblib: this machine. ray: a Ray cluster.")] = "joblib",
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of the Ray cluster, HOST:PORT; by default RAY_ADDRESS, or one on this machine."),
    ] = None,
    gpus_per_run: Annotated[float, typer.Option(help="GPUs of the Ray cluster for each run; 0.5 shares one.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run finished runs again.")] = False,
    trust: Trust = False,
    report_to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--report", help="Folder of the report; <out>/<benchmark>/report by default."),
    ] = None,
) -> None:
    """Train strategies on a benchmark, print the table, write the report. What is finished is not run again."""
    from rich.console import Console

    from fscl.runs.recipe import find_recipes, load_benchmark, load_strategy, with_overrides
    from fscl.runs.spec import RunSpec
    from fscl.runs.sweep import sweep

    for name, value in (("--seeds", seeds), ("--threads", threads), ("--jobs", 1 if jobs is None else jobs)):
        if value < 1:
            raise FsclError(f"{name} is {value}; it must be at least 1")
    cluster = _engine(engine, address, gpus_per_run)
    console = Console()
    recipe = load_benchmark(benchmark, trust)
    scenario = with_overrides(recipe, load_strategy("naive"), set_ or [])[0].split.scenario
    usual = DEFAULT_STRATEGIES if scenario == "task" else WITHOUT_LABELS
    learners = [load_strategy(s, trust) for s in dict.fromkeys(strategy or usual)]
    names = [learner.name for learner in learners]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FsclError(f"two strategies are named {twice[0]!r}; give one of them another name in its file")
    pairs = [with_overrides(recipe, learner, set_ or []) for learner in learners]
    if strange := sorted(set(recipe.strategies) - set(names) - set(find_recipes("strategies"))):
        known = ", ".join(dict.fromkeys([*names, *find_recipes("strategies")]))
        raise FsclError(f"{benchmark}: unknown key 'strategies.{strange[0]}'; known strategies: {known}")
    for folder in (out, report_to):
        if folder is not None:
            check_writable(folder)
    with console.status("Loading Avalanche and PyTorch ..."):
        place = _remote_device(device, gpus_per_run) if cluster else find_device(device)
        base = str(data_base(data))
        specs = [
            RunSpec(b, s, seed, base, place, threads, validation, loader) for seed in range(seeds) for b, s in pairs
        ]
        check_specs([replace(spec, device="cpu") if cluster else spec for spec in specs[: len(pairs)]])
    if jobs is None and place.startswith("cuda") and not cluster:
        jobs = 1  # runs would share one GPU's memory
    outcomes = sweep(specs, out, jobs, overwrite, console, cluster)
    failed = [o for o in outcomes if o.error]
    try:
        if len(failed) < len(outcomes):
            folders = [o.folder for o in outcomes if not o.error or recorded(o)]
            _show_report(folders, report_to or out / recipe.name / "report", console)
    finally:
        complain_of(failed)
    if failed:
        mistaken = len(failed) == len(outcomes) and not any(o.crashed for o in failed)
        raise typer.Exit(2 if mistaken else 1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders with runs, at any depth, or reports' runs.json.")],
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
    aggregate: Annotated[str, typer.Option(help="product (of squares), mean or depth, over layers.")] = "product",
) -> None:
    """Draw the task-to-task similarity of the atoms in a bank; no data is needed."""
    from matplotlib.figure import Figure

    from fscl.atoms.bank import AtomBank
    from fscl.files import write_atomically
    from fscl.plots import similarity_heatmap, similarity_label

    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise FsclError(f"{out}: unknown kind of figure; use .png, .svg or .pdf")
    first, *others = [AtomBank.load(path) for path in banks]
    bank = first.merge(*others)
    if len(bank) < 2:
        raise FsclError(f"{banks[0]}: {len(bank)} task in the bank; a heatmap needs at least 2")
    similarity = bank.similarity(metric, aggregate).numpy()
    figure = similarity_heatmap(similarity, bank.names, label=similarity_label(metric, aggregate)).figure
    assert isinstance(figure, Figure)  # the axes are not in a part of one
    write_atomically(out, lambda temporary: figure.savefig(temporary, dpi=150))
    typer.echo(
        f"{len(bank)} tasks, {len(bank.layers)} layers, {metric} ({aggregate} over layers) -> {printable(str(out))}"
    )


@app.command()
def similarity(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Files (.pt, .pth, .pth.tar, .bin, .ckpt, .safetensors) of one architecture, or folders."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("similarity"),
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Their network: torchvision:resnet18, pytorchcv:NAME, or your own module:callable."),
    ] = None,
    atoms: Annotated[
        int,
        typer.Option(help="Atoms of a 3x3 layer for each start; 9 are those of one network, 9 a network are exact."),
    ] = 9,
    metric: Annotated[str, typer.Option(help="cosine, filter, grassmann or projection.")] = "cosine",
    aggregate: Annotated[
        str,
        typer.Option(
            help="mean, product (of squares) or depth, over layers. The mean reads the same at any depth; over 20 "
            "layers the product is near 0 for all but copies, and depth needs the layers in order (--arch)."
        ),
    ] = "mean",
    bank: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the networks as an atom bank in this .safetensors file; needs --arch."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out files that cannot be used, and say which.")
    ] = False,
) -> None:
    """Compare fine-tuned checkpoints by their filters: which are alike, and which share a start. No data is needed.

    Writes similarity.csv, similarity.json, similarity.png and clustered.png. 1x1 convolutions have no spatial part and
    are not compared. Other convolutions that cannot be compared are named, and then the numbers are not trusted.
    """
    from rich.console import Console

    from fscl.compare.checkpoints import load_checkpoints
    from fscl.compare.comparison import bank_note, check_measure, compare, lines, write_comparison

    check_measure(metric, aggregate)
    if atoms < 1:
        raise FsclError(f"--atoms is {atoms}; it must be at least 1")
    if bank is not None and (arch is None or bank.suffix != ".safetensors"):
        raise FsclError(f"--bank {bank}: give --arch and a .safetensors file; a bank restores networks")
    architecture = None
    if arch is not None:
        from fscl.compare.architecture import Architecture

        architecture = Architecture(arch)
    found = load_checkpoints(checkpoints, architecture, skip_broken)
    if bank is not None:
        check_writable(bank.parent, "--bank")
    check_writable(out)
    from fscl.compare.joint import joint_decompose

    with Console(stderr=True).status(f"Comparing {len(found.states)} checkpoints ..."):
        joint = joint_decompose(found.states, atoms, found.layers)
        compared = compare(joint, metric, aggregate, found.not_compared)
    more = {
        "arch": arch,
        "files": {name: printable(str(path)) for name, path in found.files.items()},
        "left_out": {printable(str(path)): reason for path, reason in found.left_out.items()},
    }
    written = write_comparison(compared, out, more)
    note = ""
    if bank is not None and architecture is not None:
        compared.joint.bank(architecture.network).save(bank)
        note = bank_note(compared)
    for line in [*lines(compared), *([f"Note: {note}"] if note else [])]:
        typer.echo(line)
    for path, reason in found.left_out.items():
        typer.echo(f"left out: {printable(str(path))}: {' '.join(reason.split())}", err=True)
    typer.echo(f"-> {', '.join(printable(str(file)) for file in [*written, *([bank] if bank else [])])}")


app.command()(tune)


def _engine(name: str, address: str | None, gpus_per_run: float) -> "Engine | None":
    if name not in ("joblib", "ray"):
        raise FsclError(f"--engine is {name!r}; joblib or ray would do")
    if gpus_per_run < 0:
        raise FsclError(f"--gpus-per-run is {gpus_per_run}; it must be at least 0")
    if name == "joblib":
        for option, given in (("--address", address), ("--gpus-per-run", gpus_per_run)):
            if given:
                raise FsclError(f"{option} is for --engine ray")
        return None
    from fscl.runs.cluster import RayEngine

    return RayEngine(address, gpus_per_run)


def _show_report(folders: list[Path], out: Path, console: object) -> None:
    from rich.console import Console

    from fscl.report.page import write_report
    from fscl.report.summary import group_runs, summary_rows
    from fscl.report.table import rich_table
    from fscl.runs.results import load_runs

    assert isinstance(console, Console)
    found = load_runs(folders, lambda error: typer.echo(f"left out: {' '.join(str(error).split())}", err=True))
    console.print(rich_table(summary_rows(group_runs(found)), width=console.width))
    try:
        with console.status("Drawing the report ..."):
            paths = write_report(found, out)
    except OSError as error:
        raise FsclError(f"cannot write the report {out}: {error.strerror or error}") from error
    console.print(f"Report: {paths.html}", highlight=False, markup=False, soft_wrap=True)


def _remote_device(name: str, gpus_per_run: float) -> str:
    """Of whichever machine a run comes to; whether it is there shows there."""
    if name != "auto":
        return name
    return "cuda" if gpus_per_run else "cpu"


def main() -> None:
    """Runs the command line; a user's mistake is one line and exit code 2."""
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
        with contextlib.suppress(OSError):  # of a terminal that is gone
            typer.echo(STOPPED, err=True)
        sys.exit(code)
