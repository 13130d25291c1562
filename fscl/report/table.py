"""The tables of results: their columns, and how pages and terminals write their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from fscl.report.prediction import Prediction, PredictionRow
from fscl.report.summary import SummaryRow
from fscl.similarity.estimate import Estimate
from fscl.text import DASH, human_bytes, human_seconds, interval, points, signed, small_p

if TYPE_CHECKING:
    from fscl.similarity.pooled import PooledCorrelation

__all__ = [
    "ANSWERS",
    "ANSWERS_BY_SEED",
    "COLUMNS",
    "Amount",
    "Bytes",
    "Column",
    "OverSeeds",
    "PValue",
    "PairedDifference",
    "Points",
    "PooledRho",
    "SeedRow",
    "seed_count",
    "whole_minutes",
]


class OverSeeds(Protocol):
    """A row with means over the seeds of one strategy on one benchmark."""

    @property
    def benchmark(self) -> str: ...

    @property
    def seeds(self) -> Sequence[int]: ...


Row = TypeVar("Row")
SeedRow = TypeVar("SeedRow", bound=OverSeeds)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of text or counts. Its subclasses are columns of other numbers.

    Attributes:
        title: heading on a page.
        unit: small text below the heading.
        short: heading on a terminal; empty in a table that terminals do not show.
        value: the value of a row in this column; None if it is undefined.
        line: how title and unit are written on one line.
    """

    title: str
    unit: str
    short: str
    value: Callable[[Row], object]
    line: str = field(default="{} ({})", kw_only=True)

    @property
    def heading(self) -> str:
        return self.line.format(self.title, self.unit) if self.unit else self.title

    def number(self, row: Row) -> str:
        """The main text of a cell."""
        return str(self.value(row))

    def spread(self, row: Row) -> str:
        """How much the number varies over seeds, shown small in a cell; may be empty."""
        return ""

    def cell(self, row: Row) -> str:
        """The whole cell on one line."""
        return f"{self.number(row)} {self.spread(row)}".rstrip()

    def exact(self, row: Row) -> float | None:
        """The number of a cell before it is rounded, by which rows are sorted; None for text and if undefined."""
        value = self.value(row)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def exact_text(self, row: Row) -> str:
        """The number with all its digits and its unit; empty if there is none."""
        value = self.exact(row)
        return "" if value is None else f"{value:.12g} {self.exact_unit}".rstrip()

    @property
    def exact_unit(self) -> str:
        return ""

    def terminal_cell(self, row: Row, narrow: bool) -> str:
        return self.number(row)


@dataclass(frozen=True)
class Points(Column[SeedRow]):
    """Accuracies in %, or their differences in points, with their standard deviation."""

    value: Callable[[SeedRow], Estimate | None]
    sign: bool = False

    def number(self, row: SeedRow, places: int = 2) -> str:
        value = self.value(row)
        return points(None if value is None else value.mean, places, self.sign)

    def exact(self, row: SeedRow) -> float | None:
        value = self.value(row)
        return None if value is None else 100 * value.mean

    @property
    def exact_unit(self) -> str:
        return self.unit

    def spread(self, row: SeedRow) -> str:
        value = self.value(row)
        return "" if value is None else f"{self.variation(value)} {seed_count(value, row)}".strip()

    def variation(self, value: Estimate) -> str:
        return f"± {points(value.std)}" if value.n > 1 else ""

    def terminal_cell(self, row: SeedRow, narrow: bool) -> str:
        value = self.value(row)
        if not narrow or value is None:
            return self.cell(row)
        below = f"\n±{points(value.std, 1)}" if value.n > 1 else ""
        return f"{self.number(row, 1)}{below} {seed_count(value, row)}".rstrip()


@dataclass(frozen=True)
class PairedDifference(Points[SeedRow]):
    """A difference from the best learner in points, with its interval. A terminal has no room for the interval."""

    def variation(self, value: Estimate) -> str:
        return interval(100 * value.low, 100 * value.high)

    def terminal_cell(self, row: SeedRow, narrow: bool) -> str:
        return self.number(row, 1 if narrow else 2)


@dataclass(frozen=True)
class PValue(Column[Row]):
    value: Callable[[Row], float | None]

    def number(self, row: Row) -> str:
        value = self.value(row)
        return DASH if value is None else small_p(value)

    def terminal_cell(self, row: Row, narrow: bool) -> str:
        value = self.value(row)
        return "<.001" if narrow and value is not None and value < 0.001 else self.number(row)


@dataclass(frozen=True)
class Rho(Column[Row]):
    """A correlation. In place of a number that is not defined there is the word."""

    value: Callable[[Row], float]

    def number(self, row: Row) -> str:
        value = self.value(row)
        return signed(value) if math.isfinite(value) else "undefined"


@dataclass(frozen=True)
class Tau(Rho[Row]):
    """A further correlation of a row, whose first one says that it is undefined."""

    def number(self, row: Row) -> str:
        return signed(self.value(row))


@dataclass(frozen=True)
class PooledRho(Column[Row]):
    """A mean correlation with its interval over seeds."""

    value: Callable[[Row], PooledCorrelation]

    def exact(self, row: Row) -> float | None:
        rho = self.value(row).statistic
        return rho if math.isfinite(rho) else None

    def number(self, row: Row) -> str:
        rho = self.exact(row)
        return "undefined" if rho is None else signed(rho)

    def spread(self, row: Row) -> str:
        return interval(self.value(row).low, self.value(row).high)


@dataclass(frozen=True)
class Defined(Column[Prediction]):
    """The number of seeds for which an answer is defined, out of all seeds."""

    value: Callable[[Prediction], int]

    def number(self, row: Prediction) -> str:
        return f"{self.value(row)} of {row.seeds}"


@dataclass(frozen=True)
class Bytes(Column[Row]):
    """A mean number of bytes, in a unit that suits its size."""

    value: Callable[[Row], float]

    def number(self, row: Row) -> str:
        return human_bytes(self.value(row))

    @property
    def exact_unit(self) -> str:
        return "bytes"


@dataclass(frozen=True)
class Amount(Column[SeedRow]):
    """Bytes or seconds, in a unit that suits their size. If all seeds agree to the byte, there is no spread."""

    value: Callable[[SeedRow], Estimate | None]
    measure: str
    write: Callable[[float], str]
    write_short: Callable[[float], str]

    def exact(self, row: SeedRow) -> float | None:
        value = self.value(row)
        return None if value is None else value.mean

    @property
    def exact_unit(self) -> str:
        return self.measure

    def number(self, row: SeedRow) -> str:
        value = self.value(row)
        return DASH if value is None else self.write(value.mean)

    def spread(self, row: SeedRow) -> str:
        value = self.value(row)
        return f"± {self.write(value.std)}" if value is not None and value.std > 0 else ""

    def terminal_cell(self, row: SeedRow, narrow: bool) -> str:
        value = self.value(row)
        if value is None:
            return DASH
        spread = f" ± {self.write_short(value.std)}" if value.std > 0 and not narrow else ""
        return self.write_short(value.mean) + spread


def seed_count(value: Estimate, row: OverSeeds) -> str:
    """The number of seeds, if some seeds lack the value: it must not look like a mean over all seeds."""
    return "" if value.n == len(row.seeds) else f"(n = {value.n})"


whole_minutes = partial(human_seconds, whole_minutes=True)
COLUMNS: dict[str, Column[SummaryRow]] = {
    "strategy": Column("Strategy", "", "Strategy", lambda row: row.label),
    "seeds": Column("Seeds", "", "n", lambda row: len(row.seeds)),
    "accuracy": Points("Accuracy", "%", "ACC", lambda row: row.accuracy),
    "against_best": PairedDifference("Against the best", "points", "best", lambda row: row.against_best, sign=True),
    "p": PValue("p", "is the best", "p", lambda row: row.p_value),
    "incremental_accuracy": Points("Incremental accuracy", "%", "AIA", lambda row: row.incremental_accuracy),
    "learning_accuracy": Points("Learning accuracy", "%", "LA", lambda row: row.learning_accuracy),
    "backward_transfer": Points("Backward transfer", "points", "BWT", lambda row: row.backward_transfer, sign=True),
    "forgetting": Points("Forgetting", "points", "Forg.", lambda row: row.forgetting),
    "forward_transfer": Points("Forward transfer", "points", "FWT", lambda row: row.forward_transfer, sign=True),
    "bytes_per_task": Amount(
        "Stored per task", "", "a task", lambda row: row.bytes_per_task, "bytes", human_bytes, human_bytes
    ),
    "bytes_in_all": Amount(
        "Stored in all", "", "in all", lambda row: row.bytes_in_all, "bytes", human_bytes, human_bytes
    ),
    "seconds": Amount(
        "Training per run", "", "time", lambda row: row.train_seconds, "seconds", human_seconds, whole_minutes
    ),
}


# the answers of fscl.report.prediction, over seeds and seed by seed
OVER_SEEDS, LATER = "mean over seeds [95 %]", "ρ, later tasks equally far apart [95 %]"
ANSWERS: tuple[Column[Prediction], ...] = (
    Column("Question", "", "", lambda row: row.words),
    Column("Strategy", "", "", lambda row: row.label),
    PooledRho("Spearman ρ", OVER_SEEDS, "", lambda row: row.all_pairs, line="{}, {}"),
    PValue("p", "Mantel, Holm", "", lambda row: row.p),
    PooledRho("ρ, later, equally far apart", OVER_SEEDS, "", lambda row: row.apart, line=LATER),
    PValue("p", "Mantel, Holm", "", lambda row: row.p_apart),
    Defined("Seeds", "where defined", "", lambda row: row.all_pairs.n_seeds, line="{} {}"),
    Column("Tasks", "", "", lambda row: row.all_pairs.n_tasks),
    Column("Note", "", "", lambda row: row.note),
)
ANSWERS_BY_SEED: tuple[Column[PredictionRow], ...] = (
    Column("Question", "", "", lambda row: row.words),
    Column("Strategy", "", "", lambda row: row.label),
    Column("Seed", "", "", lambda row: row.seed),
    Rho("ρ", "", "", lambda row: row.rho),
    Column("95 % interval", "over tasks", "", lambda row: interval(row.low, row.high) or DASH, line="{} {}"),
    Tau("τ", "", "", lambda row: row.tau),
    PValue("Mantel p", "", "", lambda row: row.p_value),
    Column("Tasks", "", "", lambda row: row.n_tasks),
    Column("Note", "", "", lambda row: row.note),
)
