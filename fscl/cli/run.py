"""``fscl run``: learners on a benchmark, their table and their report."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fscl.cli.options import Data, Trust, check_specs, check_writable, complain_of, data_base, find_device, recorded
from fscl.cli.report import show_report
from fscl.errors import FsclError

if TYPE_CHECKING:
    from fscl.runs.sweep import Engine

__all__ = ["run"]

DEFAULT_STRATEGIES = ("atom_swapping", "naive", "ewc", "from_scratch")
# where test images come without the label of their task
WITHOUT_LABELS = ("atom_selection", "naive", "ewc", "replay", "joint")


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
    engine: Annotated[str, typer.Option(help="local: this machine. ray: a Ray cluster.")] = "local",
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
    from fscl.runs.run import is_finished
    from fscl.runs.spec import RunSpec
    from fscl.runs.sweep import sweep
    from fscl.runs.workers import warm_up

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
    specs = [RunSpec(b, s, seed, None, device, threads, validation, loader) for seed in range(seeds) for b, s in pairs]
    todo = [spec for spec in specs if overwrite or not is_finished(spec, out)]
    if todo:  # what is finished needs neither PyTorch nor Avalanche
        with console.status("Loading Avalanche and PyTorch ..."):
            if jobs != 1 and cluster is None and len(todo) > 1:
                warm_up()
            place, base = _remote_device(device, gpus_per_run) if cluster else find_device(device), str(data_base(data))
            specs = [replace(spec, device=place, data=base) for spec in specs]
            unfinished = {spec.strategy.name for spec in todo}
            one_of_each = [spec for spec in specs[: len(pairs)] if spec.strategy.name in unfinished]
            check_specs([replace(spec, device="cpu") if cluster else spec for spec in one_of_each])
        if jobs is None and place.startswith("cuda") and not cluster:
            jobs = 1  # runs would share one GPU's memory
    outcomes = sweep(specs, out, jobs, overwrite, console, cluster)
    failed = [o for o in outcomes if o.error]
    try:
        if len(failed) < len(outcomes):
            folders = [o.folder for o in outcomes if not o.error or recorded(o)]
            show_report(folders, report_to or out / recipe.name / "report", console)
    finally:
        complain_of(failed)
    if failed:
        mistaken = len(failed) == len(outcomes) and not any(o.crashed for o in failed)
        raise typer.Exit(2 if mistaken else 1)


def _engine(name: str, address: str | None, gpus_per_run: float) -> "Engine | None":
    if name not in ("local", "ray"):
        raise FsclError(f"--engine is {name!r}; local or ray would do")
    if gpus_per_run < 0:
        raise FsclError(f"--gpus-per-run is {gpus_per_run}; it must be at least 0")
    if name == "local":
        for option, given in (("--address", address), ("--gpus-per-run", gpus_per_run)):
            if given:
                raise FsclError(f"{option} is for --engine ray")
        return None
    from fscl.runs.cluster import RayEngine

    return RayEngine(address, gpus_per_run)


def _remote_device(name: str, gpus_per_run: float) -> str:
    """Of whichever machine a run comes to; whether it is there shows there."""
    if name != "auto":
        return name
    return "cuda" if gpus_per_run else "cpu"
