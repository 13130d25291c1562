"""What the page begins with: what is compared, by which measures, and how each goal of the page came out."""

from collections.abc import Sequence

from benchmarks.similarity.blocks import Goal, Part, Table, Tally
from benchmarks.similarity.measures import LIKE, MEASURES
from benchmarks.similarity.prose import section

__all__ = ["opening"]


def opening(parts: Sequence[Part]) -> Part:
    """The first section: definitions, and the goals of all parts in one table."""
    goals = [goal for part in parts for goal in part.goals]
    return section("templates/opening.j2", table_of_goals=_table(goals) if goals else None)


def _table(goals: Sequence[Goal]) -> Table:
    columns = [measure.title for measure in MEASURES]
    if any(LIKE in goal.reached for goal in goals):
        columns.append(LIKE)
    return Table(
        ["goal", *columns],
        [[goal.statement, *(_cell(goal.reached.get(column)) for column in columns)] for goal in goals],
    )


def _cell(tally: Tally | None) -> str:
    if tally is None:
        return "–"
    return f"{tally.met} of {tally.cases}" + (f", {tally.undecided} undecided" if tally.undecided else "")
