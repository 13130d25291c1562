"""Tunes strategies: which settings are tried, how trials are judged, and which settings are chosen."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.runs.recipe import BenchmarkRecipe, StrategyRecipe, with_overrides
from fscl.runs.records.record import RunRecord
from fscl.runs.results import load_stream_run
from fscl.runs.schema import Override
from fscl.runs.spec import RunSpec

__all__ = ["Protocol", "Trial", "Tuned", "plan", "record_of", "tuned", "write_record"]

FALL_BACK = {"training.lr_next": "lr", "training.epochs_next": "epochs"}  # the key that counts if the first is not set
FORMAT = 1
MOST_SETTINGS = 5000  # of a grid, because all its settings are listed in memory


@dataclass(frozen=True)
class Protocol:
    """How settings are chosen. The protocol is equal for all strategies.

    Attributes:
        trials: how many settings of a strategy are tried at most.
        tasks: how many tasks a trial learns, the first ones of the stream.
        validation: share of the training images that is held out to judge a trial.
        seed: seed of class order, weights and batches in all trials, and of the draw of settings.
        settings: ``key=value`` settings that hold in all trials.
    """

    trials: int = 6
    tasks: int = 3
    validation: float = 0.1
    seed: int = 100
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One trial of settings.

    Attributes:
        settings: the settings that are tried, such as ``{"args.ewc_lambda": 10.0}``.
        place: position in the grid, in the order of the strategy's file; -1 for settings that are not in the grid.
        own: whether these are the strategy's own settings, which it has without tuning.
        spec: the run.
        result: the finished run; None if it is not done or failed.
    """

    settings: Mapping[str, Any]
    place: int
    own: bool
    spec: RunSpec
    result: RunRecord | None = None

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over the tasks after the last one, on held-out training images, as a fraction."""
        return None if self.result is None else float(self.result.accuracy[-1].mean())


@dataclass(frozen=True)
class Tuned:
    """The results of the trials of one strategy.

    Attributes:
        strategy: the strategy.
        trials: all trials; the strategy's own settings come first.
        candidates: how many settings there were to choose from.
        best: the trial with the highest accuracy. On a tie the own settings win, else the first ones of the grid.
    """

    strategy: StrategyRecipe
    trials: Sequence[Trial]
    candidates: int
    best: Trial

    @property
    def own(self) -> Trial:
        """The trial of the strategy's own settings."""
        return self.trials[0]

    @property
    def whole(self) -> bool:
        """Whether all candidates were tried."""
        return len(self.trials) == self.candidates


def plan(
    benchmark: BenchmarkRecipe,
    strategies: Sequence[StrategyRecipe],
    protocol: Protocol,
    **where: Any,
) -> list[list[Trial]]:
    """The trials of each strategy: its own settings, then settings drawn from its grid without repeats.

    Args:
        benchmark, strategies: the recipes, as they are in their files.
        protocol: how settings are chosen.
        **where: ``data``, ``device`` and ``threads`` of :class:`fscl.runs.spec.RunSpec`.

    Raises:
        FsclError: a strategy has no grid, two strategies have the same name, a setting is both in the grid and in
            ``protocol.settings``, or ``protocol.validation`` holds nothing out.

    Example:
        >>> from fscl.runs.recipe import load_benchmark, load_strategy
        >>> (trials,) = plan(load_benchmark("split_digits"), [load_strategy("ewc")], Protocol(trials=3))
        >>> len(trials), trials[0].own, trials[0].settings["args.ewc_lambda"]
        (3, True, 100.0)
    """
    if not 0 < protocol.validation < 1:
        raise FsclError(f"--validation is {protocol.validation}; it must be above 0 and below 1")
    names = [strategy.name for strategy in strategies]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise FsclError(f"two strategies are named {repeated[0]!r}; give one of them another name in its file")
    return [_plan(benchmark, strategy, protocol, where) for strategy in strategies]


def tuned(strategy: StrategyRecipe, trials: Sequence[Trial], out: Path) -> Tuned:
    """Reads the results of the trials and chooses the best one. A failed trial is never chosen.

    Raises:
        FsclError: all trials failed, or a record cannot be read.
    """
    ended = []
    for trial in trials:
        result = load_stream_run(trial.spec.folder(out) / "run.json")
        ended.append(replace(trial, result=result if result.finished else None))
    finished = [trial for trial in ended if trial.accuracy is not None]
    if not finished:
        raise FsclError(f"all {len(trials)} trials of {strategy.name} failed, so no settings are chosen")
    candidates = len(_grid(_grid_values(strategy))) + (ended[0].place < 0)
    return Tuned(strategy, ended, candidates, min(finished, key=_rank))


def write_record(file: Path, benchmark: BenchmarkRecipe, protocol: Protocol, results: Sequence[Tuned]) -> None:
    """Writes what :func:`record_of` returns as JSON."""
    write_text_atomically(file, json.dumps(record_of(benchmark, protocol, results), indent=1))


def record_of(benchmark: BenchmarkRecipe, protocol: Protocol, results: Sequence[Tuned]) -> dict[str, Any]:
    """All trials as plain values: settings, accuracy, budget, versions and machine."""
    return {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "protocol": vars(protocol),
        "strategies": {
            result.strategy.name: {
                "grid": _grid_values(result.strategy),
                "candidates": result.candidates,
                "best": dict(result.best.settings),
                "accuracy": result.best.accuracy,
                "own": dict(result.own.settings),
                "own_accuracy": result.own.accuracy,
                "trials": [_describe(trial) for trial in result.trials],
            }
            for result in results
        },
    }


def _rank(trial: Trial) -> tuple[float, bool, int]:
    """A sort key that puts the best trial first. The own settings come first among trials of equal accuracy."""
    return -(trial.accuracy or 0.0), not trial.own, trial.place


def _plan(
    benchmark: BenchmarkRecipe, strategy: StrategyRecipe, protocol: Protocol, where: Mapping[str, Any]
) -> list[Trial]:
    values = _grid_values(strategy)
    if (size := math.prod(map(len, values.values()))) > MOST_SETTINGS:
        raise FsclError(f"{strategy.name} has a grid of {size} settings; it may have at most {MOST_SETTINGS}")
    if not values:
        raise FsclError(
            f"{strategy.name} has no grid to search; its file needs a table [tune], as in strategies/ewc.toml"
        )
    if fixed := {setting.partition("=")[0].strip() for setting in protocol.settings} & set(values):
        raise FsclError(f"--set {min(fixed)}: the grid of {strategy.name} tunes it; leave it out")
    grid = _grid(values)
    own_settings = _own_settings(benchmark, strategy, protocol.settings, values)
    own_place = grid.index(own_settings) if own_settings in grid else -1
    count = min(protocol.trials, len(grid) + (own_place < 0))
    drawn = _draw(values, grid, count - 1, own_place, protocol.seed)
    trials: list[Trial] = []
    for place, settings in [(own_place, own_settings), *((i, grid[i]) for i in drawn)]:
        own = not trials
        changed = benchmark if own else _changed(benchmark, strategy.name, settings)
        pair = with_overrides(changed, strategy, protocol.settings)
        spec = RunSpec(
            *pair, protocol.seed, validation=protocol.validation, first=protocol.tasks, weights=False, **where
        )
        trials.append(Trial(settings, place, own, spec))
    return trials


def _grid_values(strategy: StrategyRecipe) -> dict[str, list[Any]]:
    """The values that the strategy's file lists, by dotted key."""
    sections = {"args": strategy.tune.args, "training": strategy.tune.training}
    return {f"{section}.{key}": values for section, keys in sections.items() for key, values in keys.items()}


def _grid(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values, without repeats."""
    grid: list[dict[str, Any]] = []
    for choice in itertools.product(*values.values()):
        settings = dict(zip(values, choice, strict=True))
        if settings not in grid:
            grid.append(settings)
    return grid


def _own_settings(
    benchmark: BenchmarkRecipe, strategy: StrategyRecipe, settings: Sequence[str], keys: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of the tuned keys before tuning."""
    run_benchmark, run_strategy = with_overrides(benchmark, strategy, settings)
    own: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        own[key] = run_strategy.args[name] if section == "args" else getattr(run_benchmark.training, name)
        if own[key] is None and key in FALL_BACK:
            own[key] = getattr(run_benchmark.training, FALL_BACK[key])
    return own


def _draw(
    values: Mapping[str, list[Any]], grid: Sequence[Mapping[str, Any]], count: int, own_place: int, seed: int
) -> list[int]:
    """``count`` different places in the grid, without ``own_place``, in the order in which Optuna visits the grid."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise it logs the start of each study
    indices = {key: list(range(len(choices))) for key, choices in values.items()}
    ranges: dict[str, Any] = {
        key: optuna.distributions.IntDistribution(0, len(choices) - 1) for key, choices in values.items()
    }
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(indices, seed))
    drawn: list[int] = []
    while len(drawn) < count:
        suggestion = study.ask(ranges)
        place = grid.index({key: values[key][i] for key, i in suggestion.params.items()})
        if place != own_place and place not in drawn:
            drawn.append(place)
    return drawn


def _changed(benchmark: BenchmarkRecipe, strategy: str, settings: Mapping[str, Any]) -> BenchmarkRecipe:
    """The benchmark with these settings in its table of the strategy, where ``fscl tune`` writes the chosen ones."""
    before = benchmark.strategies.get(strategy, Override())
    sections = {"args": dict(before.args), "training": dict(before.training)}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return benchmark.model_copy(update={"strategies": {**benchmark.strategies, strategy: Override(**sections)}})


def _describe(trial: Trial) -> dict[str, Any]:
    description = {
        "settings": dict(trial.settings),
        "own": trial.own,
        "accuracy": trial.accuracy,
        "seed": trial.spec.seed,
        "recipe_hash": trial.spec.hash,
        "budget": trial.spec.benchmark.training.model_dump(),
    }
    if trial.result is not None:
        result = trial.result
        description |= {"seconds": result.seconds.total, "versions": result.versions, "machine": result.machine}
    return description
