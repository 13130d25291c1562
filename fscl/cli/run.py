"""``fscl run`` trains strategies on a benchmark, prints their table and writes their report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fscl.choices import Engine, Log, Place
from fscl.cli.options import (
    AsJson,
    Data,
    Quiet,
    Trust,
    check_choice,
    check_writable,
    choice,
    choices,
    complain_of,
    data_folder,
)
from fscl.cli.output import Output
from fscl.cli.report import read_records, show_report
from fscl.errors import FsclError
from fscl.text import brief

if TYPE_CHECKING:
    from fscl.runs.grid.sweep import Engine as RunsEngine
    from fscl.runs.grid.sweep import Outcome
    from fscl.runs.recipe import BenchmarkRecipe, FederationRecipe, StrategyRecipe
    from fscl.runs.records.record import Record

__all__ = ["run"]

DEFAULT_STRATEGIES = ("atom_swapping", "naive", "ewc", "from_scratch")
MOST_SEEDS = 10_000  # counted from 0; a larger number is a mistake, and its list may not fit into memory
DEFAULT_METHODS = ("atoms", "fedavg_finetuned", "fedrep", "local")
LARGEST_SEED = 2**63 - 1  # a record holds integers of 64 bits
# for the scenarios in which test images have no task label
WITHOUT_LABELS = ("atom_selection", "naive", "ewc", "replay", "joint")


def run(
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name, or the path of a TOML file.")] = "split_digits",
    strategy: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("-s", "--strategy", help="A strategy's name, or the path of a TOML file; may be repeated."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Number of seeds, counted from 0; or the seeds, such as 0,3,7 (one seed: 3,).")
    ] = "3",
    data: Data = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("runs"),
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Runs at a time; by default one per core, or one on a GPU."),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe: training.epochs=2, args.num_atoms=6."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads per run; the last digits of results depend on it.")] = 1,
    validation: Annotated[
        float, typer.Option(help="Test on this share of the training images instead of the test images.")
    ] = 0.0,
    loader: Annotated[str, choice(Place, "Where images are kept; off for Avalanche's own loader.")] = "auto",
    engine: Annotated[
        str, choice(Engine, "local: this machine. ray: a Ray cluster, or Flower's simulation.")
    ] = "local",
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Ray cluster, HOST:PORT; by default RAY_ADDRESS, else a cluster on this machine."),
    ] = None,
    gpus_per_run: Annotated[
        float, typer.Option(help="GPUs per run on the Ray cluster; with 0.5, two runs share one GPU.")
    ] = 0.0,
    weights: Annotated[
        bool,
        typer.Option("--weights/--no-weights", help="Whether finished runs keep what `fscl predict` needs."),
    ] = True,
    log: Annotated[
        Optional[list[str]],  # noqa: UP045
        choices(Log, "Log each run in its folder while it trains"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run finished runs again.")] = False,
    trust: Trust = False,
    report_to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--report", help="Folder of the report; <out>/<benchmark>/report by default."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train strategies on a benchmark, print their table, write the report of all runs of the benchmark in the folder.

    Finished runs are not run again.
    """
    from fscl.runs.grid.sweep import sweep
    from fscl.runs.recipe import FederationRecipe, find_recipes, load_any_benchmark, load_strategy, with_overrides
    from fscl.runs.spec import RunSpec

    chosen_seeds = _seeds(seeds)
    for name, value in (("--threads", threads), ("--jobs", 1 if jobs is None else jobs)):
        if value < 1:
            raise FsclError(f"{name} is {value}; it must be at least 1")
    for name in log or ():
        check_choice("--log", name, Log)
    output = Output(quiet, as_json)
    recipe = load_any_benchmark(benchmark, trust)
    simulated = isinstance(recipe, FederationRecipe) and engine == "ray"
    if simulated:
        _check_simulation(address, gpus_per_run, jobs)
    cluster = None if simulated else _engine(engine, address, gpus_per_run, log or [])
    if isinstance(recipe, FederationRecipe):
        default: tuple[str, ...] = DEFAULT_METHODS
    else:
        scenario = with_overrides(recipe, load_strategy("naive"), set_ or [])[0].split.scenario
        default = DEFAULT_STRATEGIES if scenario == "task" else WITHOUT_LABELS
    learners = [load_strategy(s, trust) for s in dict.fromkeys(strategy or default)]
    _check_kinds(recipe, learners)
    names = [learner.name for learner in learners]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise FsclError(f"two strategies are named {repeated[0]!r}; give one of them another name in its file")
    pairs = [with_overrides(recipe, learner, set_ or []) for learner in learners]
    if unknown := sorted(set(recipe.strategies) - set(names) - set(find_recipes("strategies"))):
        known = ", ".join(dict.fromkeys([*names, *find_recipes("strategies")]))
        raise FsclError(f"{benchmark}: unknown key 'strategies.{unknown[0]}'; known strategies: {known}")
    for folder in (out, report_to):
        if folder is not None:
            check_writable(folder)
    place = ("cuda" if gpus_per_run else "cpu") if cluster and device == "auto" else device
    base = data_folder(data)
    where: dict[str, Any] = {
        "data": base,
        "device": place,
        "threads": threads,
        "loader": loader,
        "simulated": simulated,
    }
    kept: dict[str, Any] = {"weights": weights, "log": tuple(dict.fromkeys(log or ()))}
    specs = [RunSpec(b, s, seed, validation=validation, **kept, **where) for seed in chosen_seeds for b, s in pairs]
    with output.only_results():
        outcomes = sweep(specs, out, jobs, overwrite, output.progress, cluster, meanwhile=_import_report)
    failed = [o for o in outcomes if o.error]
    try:
        if len(failed) < len(outcomes):
            runs = _without_copies(read_records([out / recipe.name]), out)
            show_report(_of(outcomes, runs), runs, report_to or out / recipe.name / "report", output)
    finally:
        complain_of(failed)
    if failed:
        mistaken = len(failed) == len(outcomes) and not any(o.crashed for o in failed)
        raise typer.Exit(2 if mistaken else 1)


def _check_kinds(recipe: "BenchmarkRecipe | FederationRecipe", learners: "list[StrategyRecipe]") -> None:
    """Refuses a method of federations on a stream of tasks, and a learner of tasks in a federation."""
    from fscl.runs.recipe import names_of

    federated = hasattr(recipe, "federation")
    kinds = {True: "a method of federations", False: "a learner of tasks"}
    others = names_of("strategies", not federated)
    for learner in learners:
        if learner.name in others:
            there = ", ".join(names_of("benchmarks", not federated))
            known = ", ".join(names_of("strategies", federated))
            raise FsclError(f"{learner.name} is {kinds[not federated]}, for {there}; {recipe.name} takes {known}")


def _of(outcomes: "list[Outcome]", runs: "list[Record]") -> "list[Record]":
    """The records of the runs of this command. A run that was refused has none: its folder may hold another run."""
    keys = {(o.spec.strategy.name, o.spec.hash, o.spec.seed) for o in outcomes}
    return [run for run in runs if (run.strategy.name, run.recipe_hash, run.seed) in keys]


def _without_copies(runs: "list[Record]", out: Path) -> "list[Record]":
    """The runs without copies, by hand, of runs that are also in their own folders. A report would refuse both."""

    from fscl.runs.results import run_key

    def in_place(run: "Record") -> bool:
        place = out / run.benchmark.name / run.strategy.name / f"seed_{run.seed}" / "run.json"
        return run.path == place.resolve()

    places = {run_key(run): run.path for run in runs if in_place(run)}
    originals = []
    for run in runs:
        if (place := places.get(run_key(run), run.path)) == run.path:
            originals.append(run)
        else:
            typer.echo(f"left out: {run.path}: a copy of {place}", err=True)
    return originals


def _seeds(text: str) -> list[int]:
    """The seeds of ``--seeds``: so many, counted from 0, or those of a list.

    Raises:
        FsclError: the text is neither.
    """
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError as error:
        raise FsclError(
            f"--seeds is {brief(text)}; a number of seeds, such as 3, or the seeds themselves, such as 0,3,7, would do"
        ) from error
    counted = "," not in text
    if max(numbers) > (most := MOST_SEEDS if counted else LARGEST_SEED):
        raise FsclError(f"--seeds is {brief(text)}; {'numbers' if counted else 'seeds'} up to {most} would do")
    seeds = list(range(numbers[0])) if counted else numbers
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise FsclError(f"--seeds is {text}; it must be at least 1, or different seeds of at least 0")
    return seeds


def _engine(name: str, address: str | None, gpus_per_run: float, logs: list[str]) -> "RunsEngine | None":
    if gpus_per_run < 0:
        raise FsclError(f"--gpus-per-run is {gpus_per_run}; it must be at least 0")
    if name == "local":
        for option, value in (("--address", address), ("--gpus-per-run", gpus_per_run)):
            if value:
                raise FsclError(f"{option} is {value}; it needs --engine ray")
        return None
    from fscl.runs.grid.cluster import RayEngine, refuse_logs

    refuse_logs(logs)
    return RayEngine(address, gpus_per_run)


def _check_simulation(address: str | None, gpus_per_run: float, jobs: int | None) -> None:
    from fscl.runs.with_ray import check_ray

    check_ray()
    for option, value in (("--address", address), ("--gpus-per-run", gpus_per_run)):
        if value:
            raise FsclError(f"{option} is {value}; a federation is simulated on this machine's cores; leave it out")
    if (jobs or 1) > 1:
        raise FsclError(f"--jobs is {jobs}; with --engine ray one federation is simulated at a time; leave it out")


def _import_report() -> None:
    import fscl.report.page  # noqa: F401  # it imports matplotlib and seaborn
