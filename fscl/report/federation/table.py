"""The columns of the table of federated methods, and the table on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fscl.report.federation.summary import FederationRow
from fscl.report.table import Amount, Column, PairedDifference, Points, PValue, SeedRow, seed_count, whole_minutes
from fscl.report.terminal import terminal_table
from fscl.similarity.estimate import Estimate
from fscl.text import DASH, decimal, human_bytes, human_seconds

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FEDERATION_COLUMNS", "federation_table"]


@dataclass(frozen=True)
class Index(Column[SeedRow]):
    """A number without a unit, with its standard deviation."""

    value: Callable[[SeedRow], Estimate | None]

    def exact(self, row: SeedRow) -> float | None:
        value = self.value(row)
        return None if value is None else value.mean

    def number(self, row: SeedRow) -> str:
        return decimal(self.exact(row))

    def spread(self, row: SeedRow) -> str:
        value = self.value(row)
        if value is None:
            return ""
        return f"{f'± {decimal(value.std)}' if value.n > 1 else ''} {seed_count(value, row)}".strip()

    def terminal_cell(self, row: SeedRow, narrow: bool) -> str:
        return self.number(row) if narrow else self.cell(row)


@dataclass(frozen=True)
class ReachedBytes(Column[FederationRow]):
    """Bytes until the reference's accuracy was reached; if some seeds did not reach it, how many did."""

    def exact(self, row: FederationRow) -> float | None:
        return None if row.reached.bytes is None else row.reached.bytes.mean

    @property
    def exact_unit(self) -> str:
        return "bytes"

    def number(self, row: FederationRow) -> str:
        reached = row.reached
        if reached.bytes is not None:
            return human_bytes(reached.bytes.mean)
        if not reached.asked:
            return DASH
        return f"in {reached.seeds} of {reached.asked}" if reached.seeds else "not reached"

    def spread(self, row: FederationRow) -> str:
        reached = row.reached
        if reached.bytes is None:
            return "seeds" if reached.seeds else ""
        spread = f"± {human_bytes(reached.bytes.std)}" if reached.bytes.std > 0 else ""
        return f"{spread} {seed_count(reached.bytes, row)}".strip()

    def terminal_cell(self, row: FederationRow, narrow: bool) -> str:
        text = self.number(row)
        return {"not reached": "never"}.get(text, text.removeprefix("in ")) if narrow else self.cell(row)


def _bytes(
    title: str, unit: str, short: str, value: Callable[[FederationRow], Estimate | None]
) -> Column[FederationRow]:
    return Amount(title, unit, short, value, "bytes", human_bytes, human_bytes)


FEDERATION_COLUMNS: dict[str, Column[FederationRow]] = {
    "strategy": Column("Method", "", "Method", lambda row: row.label),
    "seeds": Column("Seeds", "", "n", lambda row: len(row.seeds)),
    "accuracy": Points("Accuracy", "%", "ACC", lambda row: row.accuracy),
    "against_best": PairedDifference("Against the best", "points", "best", lambda row: row.against_best, sign=True),
    "p": PValue("p", "is the best", "p", lambda row: row.p_value),
    "worst_tenth": Points("Worst tenth of clients", "%", "worst", lambda row: row.worst_tenth),
    "client_spread": Points("Spread over clients", "points", "spread", lambda row: row.client_spread),
    "bytes_in_all": _bytes("Sent in all", "", "sent", lambda row: row.bytes_in_all),
    "bytes_per_client_round": _bytes(
        "A client and round", "the last round", "a round", lambda row: row.bytes_per_client_round
    ),
    "reached": ReachedBytes("Sent to match", "the reference", "to match", lambda row: row.reached),
    "rand_index": Index("Groups found", "adjusted Rand", "ARI", lambda row: row.rand_index),
    "seconds": Amount(
        "Training per run", "", "time", lambda row: row.train_seconds, "seconds", human_seconds, whole_minutes
    ),
}

LEGEND = {
    "accuracy": "mean over clients, on their own test images",
    "against_best": "difference from the best method",
    "p": "of being the best method (paired t-tests)",
    "client_spread": "standard deviation over clients",
    "bytes_in_all": "both ways, with headers",
    "bytes_per_client_round": "sent for a client in the last round",
    "reached": "sent until as accurate as the best method at its end (one without atoms, if there is one)",
    "rand_index": "groups found, adjusted Rand index",
}


def federation_table(rows: Sequence[FederationRow], title: str | None = None, width: int = 80) -> Table:
    """The summary table of federations for a terminal; see :func:`fscl.report.terminal.rich_table`."""
    wide_only = ("client_spread", "bytes_per_client_round")
    return terminal_table(rows, FEDERATION_COLUMNS, LEGEND, title, width, wide_only)
