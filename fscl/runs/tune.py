"""Trials of strategies' settings: which are tried, how they are judged, and which is chosen."""

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
from fscl.runs.record import RunRecord
from fscl.runs.results import load_run
from fscl.runs.schema import Override
from fscl.runs.spec import RunSpec

__all__ = ["Protocol", "Trial", "Tuned", "plan", "tuned", "write_record"]

FALL_BACK = {"training.lr_next": "lr", "training.epochs_next": "epochs"}  # what is meant where one is not given
FORMAT = 1
MOST_SETTINGS = 5000  # of a grid, which is counted up


@dataclass(frozen=True)
class Protocol:
    """How settings are chosen, alike for all strategies.

    Attributes:
        trials: how many of a strategy's settings are tried at most.
        tasks: how many tasks of the stream a trial learns, the first ones.
        validation: share of their training images by which it is judged.
        seed: of class order, weights and batches of all trials, and of which settings are tried.
        settings: ``key=value`` settings of all trials.
    """

    trials: int = 6
    tasks: int = 3
    validation: float = 0.1
    seed: int = 100
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One choice of settings.

    Attributes:
        settings: what is tried, such as ``{"args.ewc_lambda": 10.0}``.
        place: in the grid, in the order in which its file counts them up; -1 for what is not in it.
        own: whether a strategy has these settings without any tuning.
        spec: the run.
        result: how it ended; None if it is not done, or failed.
    """

    settings: Mapping[str, Any]
    place: int
    own: bool
    spec: RunSpec
    result: RunRecord | None = None

    @property
    def accuracy(self) -> float | None:
        """Mean over the tasks after the last of them, of held-out training images: a fraction."""
        return None if self.result is None else float(self.result.accuracy[-1].mean())


@dataclass(frozen=True)
class Tuned:
    """What the trials of one strategy came to.

    Attributes:
        strategy: the strategy.
        trials: all of them, its own settings first.
        candidates: how many settings there were to choose from.
        best: the trial of highest accuracy; among equals its own settings, or else what comes first in the grid.
    """

    strategy: StrategyRecipe
    trials: Sequence[Trial]
    candidates: int
    best: Trial

    @property
    def own(self) -> Trial:
        """The trial of the settings that the strategy has without any tuning."""
        return self.trials[0]

    @property
    def whole(self) -> bool:
        """Whether all were tried that there are."""
        return len(self.trials) == self.candidates


def plan(
    benchmark: BenchmarkRecipe,
    strategies: Sequence[StrategyRecipe],
    protocol: Protocol,
    **where: Any,
) -> list[list[Trial]]:
    """The trials of each strategy: its own settings, and so many others of its grid, drawn without repeats.

    Args:
        benchmark, strategies: as they are in their files.
        protocol: how settings are chosen.
        **where: ``data``, ``device`` and ``threads`` of :class:`fscl.runs.spec.RunSpec`.

    Raises:
        FsclError: a strategy has no grid, or there are two of a name, or a setting is tuned and given, or nothing is
            held out to judge by.

    Example:
        >>> from fscl.runs.recipe import load_benchmark, load_strategy
        >>> (trials,) = plan(load_benchmark("split_digits"), [load_strategy("ewc")], Protocol(trials=3))
        >>> len(trials), trials[0].own, trials[0].settings["args.ewc_lambda"]
        (3, True, 100.0)
    """
    if not 0 < protocol.validation < 1:
        raise FsclError(f"--validation is {protocol.validation}; a share above 0 and below 1 is needed to judge by")
    names = [strategy.name for strategy in strategies]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FsclError(f"two strategies are named {twice[0]!r}; give one of them another name in its file")
    return [_plan(benchmark, strategy, protocol, where) for strategy in strategies]


def tuned(strategy: StrategyRecipe, trials: Sequence[Trial], out: Path) -> Tuned:
    """Reads how the trials ended and chooses; one that failed is worse than any other.

    Raises:
        FsclError: all failed, or a record cannot be read.
    """
    read = []
    for trial in trials:
        result = load_run(trial.spec.folder(out) / "run.json")
        read.append(replace(trial, result=result if result.finished else None))
    done = [trial for trial in read if trial.accuracy is not None]
    if not done:
        raise FsclError(f"all {len(trials)} trials of {strategy.name} failed, so nothing is chosen")
    candidates = len(_grid(_grid_of(strategy))) + (read[0].place < 0)
    return Tuned(strategy, read, candidates, min(done, key=_rank))


def write_record(file: Path, benchmark: BenchmarkRecipe, protocol: Protocol, found: Sequence[Tuned]) -> None:
    """Writes every trial as JSON: settings, accuracy, and all that they came about by."""
    record = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "protocol": vars(protocol),
        "strategies": {
            one.strategy.name: {
                "grid": _grid_of(one.strategy),
                "candidates": one.candidates,
                "best": dict(one.best.settings),
                "accuracy": one.best.accuracy,
                "own": dict(one.own.settings),
                "own_accuracy": one.own.accuracy,
                "trials": [_describe(trial) for trial in one.trials],
            }
            for one in found
        },
    }
    text = json.dumps(record, indent=1)
    write_text_atomically(file, text)


def _rank(trial: Trial) -> tuple[float, bool, int]:
    """The least is the best; the settings that a strategy has already need not be better to be kept."""
    return -(trial.accuracy or 0.0), not trial.own, trial.place


def _plan(
    benchmark: BenchmarkRecipe, strategy: StrategyRecipe, protocol: Protocol, where: Mapping[str, Any]
) -> list[Trial]:
    values = _grid_of(strategy)
    if (size := math.prod(map(len, values.values()))) > MOST_SETTINGS:
        raise FsclError(f"{strategy.name} has a grid of {size} settings; at most {MOST_SETTINGS} would do")
    if not values:
        raise FsclError(f"{strategy.name} has no grid to search; its file wants a table [tune], as strategies/ewc.toml")
    if given := {setting.partition("=")[0].strip() for setting in protocol.settings} & set(values):
        raise FsclError(f"--set {min(given)}: it is in the grid of {strategy.name}, which is to choose it")
    grid = _grid(values)
    mine = _own(benchmark, strategy, protocol.settings, values)
    place = grid.index(mine) if mine in grid else -1
    count = min(protocol.trials, len(grid) + (place < 0))
    others = _draw(values, grid, count - 1, place, protocol.seed)
    trials: list[Trial] = []
    for number, tried in [(place, mine), *((i, grid[i]) for i in others)]:
        own = not trials
        changed = benchmark if own else _changed(benchmark, strategy.name, tried)
        pair = with_overrides(changed, strategy, protocol.settings)
        spec = RunSpec(*pair, protocol.seed, validation=protocol.validation, first=protocol.tasks, **where)
        trials.append(Trial(tried, number, own, spec))
    return trials


def _grid_of(strategy: StrategyRecipe) -> dict[str, list[Any]]:
    """Values by dotted setting."""
    sections = {"args": strategy.tune.args, "training": strategy.tune.training}
    return {f"{section}.{key}": values for section, keys in sections.items() for key, values in keys.items()}


def _grid(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for choice in itertools.product(*values.values()):
        settings = dict(zip(values, choice, strict=True))
        if settings not in found:
            found.append(settings)
    return found


def _own(
    benchmark: BenchmarkRecipe, strategy: StrategyRecipe, settings: Sequence[str], keys: Mapping[str, Any]
) -> dict[str, Any]:
    """What the tuned settings are as things stand."""
    b, s = with_overrides(benchmark, strategy, settings)
    found: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        found[key] = s.args[name] if section == "args" else getattr(b.training, name)
        if found[key] is None and key in FALL_BACK:
            found[key] = getattr(b.training, FALL_BACK[key])
    return found


def _draw(
    values: Mapping[str, list[Any]], grid: Sequence[Mapping[str, Any]], count: int, but: int, seed: int
) -> list[int]:
    """Places in the grid, ``count`` of them and none twice, in the order in which Optuna visits it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each study that it begins
    places = {key: list(range(len(some))) for key, some in values.items()}
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(places, seed))
    found: list[int] = []
    while len(found) < count:
        asked = study.ask({key: optuna.distributions.IntDistribution(0, len(some) - 1) for key, some in values.items()})
        number = grid.index({key: values[key][i] for key, i in asked.params.items()})
        if number != but and number not in found:
            found.append(number)
    return found


def _changed(benchmark: BenchmarkRecipe, strategy: str, settings: Mapping[str, Any]) -> BenchmarkRecipe:
    """The benchmark with these settings as its words on the strategy, in which they are written in the end."""
    before = benchmark.strategies.get(strategy, Override())
    sections = {"args": dict(before.args), "training": dict(before.training)}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return benchmark.model_copy(update={"strategies": {**benchmark.strategies, strategy: Override(**sections)}})


def _describe(trial: Trial) -> dict[str, Any]:
    found = {
        "settings": dict(trial.settings),
        "own": trial.own,
        "accuracy": trial.accuracy,
        "seed": trial.spec.seed,
        "recipe_hash": trial.spec.hash,
        "budget": trial.spec.benchmark.training.model_dump(),
    }
    if trial.result is not None:
        ended = trial.result
        found |= {"seconds": ended.seconds.total, "versions": ended.versions, "machine": ended.machine}
    return found
