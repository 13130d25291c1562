"""Sections from templates: a template holds a section's words in the order of the page, and says where tables stand.

A template begins with ``# Title`` and the lead. Empty lines separate paragraphs; points begin with ``- ``.
``{% call table(t) %}caption{% endcall %}`` and ``{% call picture(slug, figure, title) %}caption{% endcall %}`` place a
table or a figure. The words may hold ``**strong**`` and backticks for code.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader
from matplotlib.figure import Figure

from benchmarks.similarity import formats
from benchmarks.similarity.blocks import Block, Goal, Part, Picture, Table
from fscl.report.page import environment
from fscl.text import decimal

__all__ = ["TEMPLATES", "section"]

TEMPLATES = FileSystemLoader(Path(__file__).parent)
FILTERS = {
    "count": formats.count,
    "decimal": decimal,
    "fixed": formats.text,
    "interval": formats.interval,
    "listed": formats.listed,
    "ranged": formats.ranged,
    "seconds": formats.seconds,
    "times": formats.times,
}


def section(template: str, goals: Sequence[Goal] = (), **values: Any) -> Part:
    """The section that a template makes of the values: numbers, tables and figures.

    Args:
        template: its path below ``benchmarks/similarity/``.
        goals: what the section reports to the opening of the page.
        values: by the names that the template uses.
    """
    placed: dict[str, Block] = {}

    def place(block: Block) -> str:
        mark = f"\0{len(placed)}"
        placed[mark] = block
        return f"\n\n{mark}\n\n"

    def table(table: Table, caller: Callable[[], str], folded: str = "") -> str:
        return place(replace(table, caption=_one_line(caller()), folded=folded))

    def picture(slug: str, figure: Figure, title: str, caller: Callable[[], str]) -> str:
        return place(Picture(slug, figure, title, _one_line(caller())))

    made = environment(False, TEMPLATES)
    made.filters.update(FILTERS)
    text = made.get_template(template).render(table=table, picture=picture, **values)
    title, lead, *rest = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    blocks: list[Block] = []
    points: list[str] = []
    for paragraph in rest:
        if paragraph.startswith("- "):
            points += [_one_line(point) for point in f"\n{paragraph}".split("\n- ")[1:]]
        else:
            blocks.append(placed.get(paragraph, _one_line(paragraph)))
    return Part(title.removeprefix("# "), _one_line(lead), blocks, list(goals), points)


def _one_line(text: str) -> str:
    return " ".join(text.split())
