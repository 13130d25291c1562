"""What a page is made of: sections of paragraphs, tables and figures, and the goals that a section reports."""

from dataclasses import dataclass, field

from fscl.report.sections import Picture

__all__ = ["Block", "Goal", "Part", "Picture", "Table", "Tally"]


@dataclass(frozen=True)
class Table:
    """Cells are text."""

    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    folded: str = ""  # the words to open it by, of a table that only some readers want

    @property
    def words(self) -> list[bool]:
        """For each column whether it holds words, not numbers."""
        columns = [[row[place] for row in self.rows if row[place]] for place in range(len(self.header))]
        return [any(cell[0].isalpha() or cell[:2] == "**" for cell in column) for column in columns]


Block = str | Table | Picture  # a string is a paragraph


@dataclass(frozen=True)
class Tally:
    """In how many cases a measure met a goal."""

    met: int
    cases: int
    undecided: int = 0  # below CKA, but by less than the interval of the difference


@dataclass(frozen=True)
class Goal:
    """A goal, and how each measure did."""

    statement: str
    reached: dict[str, Tally]  # by the title of a measure, or LIKE of measures.py


@dataclass(frozen=True)
class Part:
    """One section of the page."""

    title: str
    lead: str  # the finding, in one or two sentences with numbers
    blocks: list[Block]
    goals: list[Goal] = field(default_factory=list)
    points: list[str] = field(default_factory=list)  # further findings, a line each
