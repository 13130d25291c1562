"""The specification of one run: a stream, a learner, a seed, and where it runs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fscl.choices import LOGS, Log
from fscl.errors import FsclError
from fscl.plain import check_size, name_fault
from fscl.runs.recipe import BenchmarkRecipe, FederationRecipe, StrategyRecipe, recipe_hash
from fscl.runs.records.record import Record
from fscl.text import brief

__all__ = ["WEIGHTS", "Progress", "RunSpec", "digest_of_start", "file_of_start", "spec_of_record"]

MOST_BYTES = 8 * 2**30  # of a start; the networks of federations take megabytes
WEIGHTS = "weights.safetensors"  # the networks of a finished run on a stream

Progress = Callable[[int, int, int], None]  # called with the experience, the epoch and the number of epochs


@dataclass(frozen=True)
class RunSpec:
    """The specification of one run. Two runs with equal specs give equal numbers on the same machine.

    Attributes:
        benchmark, strategy: recipes with all overrides applied.
        seed: seed of class order, weights and batches.
        data: data folder; None for the default.
        device: ``cpu``, ``cuda``, ...
        threads: CPU threads. They decide the order of sums, and so the last digits of results.
        validation: share of the training images on which the run is tested in place of the test images; 0 tests on the
            test images.
        loader: where images are kept, see ``fscl.continual.InMemoryLoader``. Results do not depend on it.
        first: how many tasks of the stream are learned; None for all. A run with this set is a trial of settings, and
            its folder is named by its hash.
        weights: whether the finished run keeps what :func:`fscl.load_network` needs.
        log: where the run is logged while it trains, names of :data:`fscl.choices.Log`. Results do not depend on it.
        workers: processes in which clients of a federation train at a time. Results do not depend on it.
        simulated: whether these processes are those of Flower's simulation, on Ray. Results do not depend on it.
    """

    benchmark: BenchmarkRecipe | FederationRecipe
    strategy: StrategyRecipe
    seed: int
    data: str | None = None
    device: str = "cpu"
    threads: int = 1
    validation: float = 0.0
    loader: str = "auto"
    first: int | None = None
    weights: bool = True
    log: tuple[Log, ...] = ()
    workers: int = 1
    simulated: bool = False

    def __post_init__(self) -> None:
        for log in self.log:
            if log not in LOGS:
                raise FsclError(f"log is {log!r}; known: {', '.join(LOGS)}")
        for name in (self.benchmark.name, self.strategy.name):
            if fault := name_fault(name):
                raise FsclError(
                    f"a run cannot be kept in a folder {brief(name)}: {fault}; give the recipe another name"
                )
        if isinstance(self.benchmark, FederationRecipe) and self.benchmark.federation.start:
            object.__setattr__(self, "benchmark", _with_digest(self.benchmark))

    @property
    def hash(self) -> str:
        """Hash of everything that decides the numbers, except the seed."""
        part = {} if self.first is None else {"first": self.first}
        return recipe_hash(self.benchmark, self.strategy, validation=self.validation, **part)

    def folder(self, out: Path) -> Path:
        """The run's folder below an output folder."""
        strategy = out / self.benchmark.name / self.strategy.name
        return (strategy if self.first is None else strategy / f"trial_{self.hash}") / f"seed_{self.seed}"


def file_of_start(start: str) -> Path:
    """The file with the weights from which a federation starts: a checkpoint, or that of a finished run on a stream.

    Raises:
        FsclError: there is no such file.
    """
    path = Path(start)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FsclError(
            f"federation.start = {brief(start)}: there is no file {brief(str(file))}; a checkpoint or the folder of a "
            "finished run would do, such as that of fscl run pretrain_tinyimagenet32 -s naive --seeds 1"
        )
    return file


def digest_of_start(start: str) -> str:
    """What ``federation.start_digest`` says of this start.

    Raises:
        FsclError: there is no such file, or it cannot be read, or is too large.
    """
    path = file_of_start(start)
    check_size(path, MOST_BYTES)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise FsclError(f"federation.start = {brief(start)}: {path} cannot be read ({error.strerror})") from error


def _with_digest(benchmark: FederationRecipe) -> FederationRecipe:
    """The recipe with the digest of its start, so that runs from another start have another hash."""
    federation = benchmark.federation
    if federation.start_digest:
        return benchmark
    digest = digest_of_start(federation.start)
    named = benchmark.model_copy(update={"federation": federation.model_copy(update={"start_digest": digest})})
    named._stranger = benchmark._stranger
    return named


def spec_of_record(record: Record, trust: bool, data: str | None = None) -> RunSpec:
    """The specification of a recorded run.

    Args:
        record: the record.
        trust: whether its recipes may name a network or a class of any module, see
            :func:`fscl.runs.recipe.load_benchmark`.
        data: the data folder; None for the default.

    Raises:
        FsclError: with the record's recipes, this version of fscl would do another run.
    """
    kind = FederationRecipe if record.benchmark.federation else BenchmarkRecipe
    try:
        # a record of the other kind has the other table as an empty default
        content = record.benchmark.model_dump(by_alias=True, exclude_unset=True)
        benchmark = kind.model_validate(content)
        strategy = StrategyRecipe.model_validate(record.strategy.model_dump(by_alias=True))
    except ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise FsclError(f"{record.path}: its recipe does not fit this fscl: {reason}") from error
    for recipe in (benchmark, strategy):
        recipe._stranger = "" if trust else str(record.path)
    first = getattr(record, "first", None)
    spec = RunSpec(benchmark, strategy, record.seed, data=data, validation=record.validation, first=first)
    if spec.hash != record.recipe_hash:
        raise FsclError(
            f"{record.path}: its recipes have hash {spec.hash}, and the run had {record.recipe_hash}; it was changed, "
            "or made by another fscl"
        )
    return spec
