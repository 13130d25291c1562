"""Groups records of runs that may be averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fscl.errors import FsclError
from fscl.runs.records.record import Record
from fscl.similarity.estimate import Estimate, seed_interval

__all__ = ["RunGroup", "grouped", "over_seeds"]

R = TypeVar("R", bound=Record)
G = TypeVar("G", bound="RunGroup")
M = TypeVar("M")


@dataclass(frozen=True, eq=False)
class RunGroup(Generic[R]):
    """Finished runs that may be averaged: one stream, one strategy, one recipe hash, different seeds."""

    benchmark: str
    name: str
    label: str
    recipe_hash: str
    runs: tuple[R, ...]

    @property
    def bound(self) -> str | None:
        return self.runs[0].strategy.bound

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


def over_seeds(measured: Sequence[M], number: Callable[[M], float | None]) -> Estimate | None:
    """A number over seeds, from what was measured in each; seeds in which it is undefined are left out.

    Returns:
        None if it is undefined in all seeds.
    """
    values = [value for value in map(number, measured) if value is not None]
    return seed_interval(values) if values else None


def grouped(runs: Iterable[R], make: Callable[[str, str, str, str, tuple[R, ...]], G]) -> list[G]:
    """Groups finished runs by stream, strategy and recipe hash. Other runs are left out.

    Runs of one strategy with different recipes are different groups, with a short hash in their labels.

    Args:
        runs: the runs.
        make: makes a group from stream, name, label, recipe hash and runs.

    Raises:
        FsclError: a group has the same seed twice. Counted twice, it would make the spread too small.
    """
    groups: dict[tuple[str, str, str], dict[int, R]] = {}
    for run in runs:
        if not run.finished:
            continue
        group = groups.setdefault((run.stream, run.strategy.name, run.recipe_hash), {})
        if run.seed in group:
            raise FsclError(
                f"seed {run.seed} of {run.strategy.name} on {run.benchmark.name} occurs twice: "
                f"{group[run.seed].path} and {run.path}; give only one of them"
            )
        group[run.seed] = run
    titles = {key: next(iter(by_seed.values())).strategy.title or key[1] for key, by_seed in groups.items()}
    made = []
    for (benchmark, name, recipe_hash), by_seed in groups.items():
        title = titles[benchmark, name, recipe_hash]
        if len({key[1] for key, other in titles.items() if key[0] == benchmark and other == title}) > 1:
            title = f"{title} [{name}]"
        variants = sum(key[:2] == (benchmark, name) for key in groups)
        label = f"{title} ({recipe_hash[:7]})" if variants > 1 else title
        made.append(make(benchmark, name, label, recipe_hash, tuple(by_seed[seed] for seed in sorted(by_seed))))
    return made
