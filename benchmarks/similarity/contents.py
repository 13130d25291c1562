"""What the evidence is made of: units of work with results as plain data, and what a page shows of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fscl.report.sections import Picture

__all__ = ["RUNGS", "Block", "Context", "Goal", "Part", "Picture", "Table", "Unit"]

# the ways to compare without data, from the cheapest to the dearest
RUNGS = {
    "atoms": "cosine of atoms, over depth",
    "moments": "moments through the layers",
    "tangent": "tangent on recalled images",
    "response": "response to recalled images",
    "readings": "three readings of recalled images",
}  # and "like": CKA or CCA themselves, of recalled images


@dataclass(frozen=True)
class Context:
    """Where units find data and keep what took long."""

    data: str | None  # the data folder, see fscl.continual.load_images
    work: Path  # trained networks and results of units, so that an interrupted run goes on
    quick: bool  # minutes instead of hours: smaller populations, fewer repetitions


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done once and kept: JSON-able results by the name of the unit."""

    name: str  # also a file name; unique among all parts
    call: Callable[[Context], dict[str, Any]]  # a module's function or a partial of one, so that it can be pickled
    version: int = 1  # raised when what is measured changes: results of another version are measured anew


@dataclass(frozen=True)
class Table:
    """Cells are text; numbers are formatted by whoever makes the table."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    folded: str = ""  # what to open it by, of a table that only some readers want

    @property
    def words(self) -> list[bool]:
        """For each column whether it holds words, not numbers."""
        columns = [[row[place] for row in self.rows if row[place]] for place in range(len(self.header))]
        return [any(cell[0].isalpha() or cell[:2] == "**" for cell in column) for column in columns]


Block = str | Table | Picture  # a paragraph, a table or a figure


@dataclass(frozen=True)
class Part:
    """One section of the page."""

    title: str
    lead: str  # what was found, in one or two sentences with numbers
    blocks: list[Block]
    goals: list["Goal"] = field(default_factory=list)
    points: list[str] = field(default_factory=list)  # what else was found, a line each


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and how each way of comparing without data did."""

    what: str
    reached: dict[str, str]  # by the key of RUNGS, or "like"
