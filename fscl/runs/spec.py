"""What one run is: a stream, a learner, a seed, and where it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fscl.errors import FsclError
from fscl.plain import name_fault
from fscl.runs.recipe import BenchmarkRecipe, StrategyRecipe, recipe_hash
from fscl.text import brief

__all__ = ["Progress", "RunSpec"]

Progress = Callable[[int, int, int], None]  # called with the experience, the epoch, and how many epochs there are


@dataclass(frozen=True)
class RunSpec:
    """What one run is; two runs with equal specs give equal numbers on the same machine.

    Attributes:
        benchmark, strategy: recipes with all overrides applied.
        seed: of class order, weights and batches.
        data: data folder, or None for the default.
        device: ``cpu``, ``cuda``, ...
        threads: CPU threads; sums are made in another order with another number, so it is recorded.
        validation: share of the training images that takes the place of the test images; 0 for real runs.
        loader: where images are kept, see ``fscl.continual.InMemoryLoader``; of no effect on the numbers.
        first: how many of the stream's tasks are learned, as if there were no others; None for all. Such runs are
            trials of several settings of one strategy, so each has a folder by its hash.
    """

    benchmark: BenchmarkRecipe
    strategy: StrategyRecipe
    seed: int
    data: str | None = None
    device: str = "cpu"
    threads: int = 1
    validation: float = 0.0
    loader: str = "auto"
    first: int | None = None

    def __post_init__(self) -> None:
        for name in (self.benchmark.name, self.strategy.name):
            if fault := name_fault(name):
                raise FsclError(
                    f"a run cannot be kept in a folder {brief(name)}: {fault}; give the recipe another name"
                )

    @property
    def hash(self) -> str:
        """Of everything that decides the numbers but the seed."""
        part = {} if self.first is None else {"first": self.first}
        return recipe_hash(self.benchmark, self.strategy, validation=self.validation, **part)

    def folder(self, out: Path) -> Path:
        """Where the run is kept below an output folder."""
        strategy = out / self.benchmark.name / self.strategy.name
        return (strategy if self.first is None else strategy / f"trial_{self.hash}") / f"seed_{self.seed}"
