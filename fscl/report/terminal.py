"""The tables of results as terminals show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.table import Table

from fscl.report.summary import SummaryRow
from fscl.report.table import COLUMNS, Column, SeedRow

__all__ = ["rich_table", "terminal_table"]

NARROW = 140  # terminals of fewer columns show spreads below their means, and one decimal
LEGEND = {"against_best": "difference from the best learner", "p": "of being the best learner (paired t-tests)"}


def rich_table(rows: Sequence[SummaryRow], title: str | None = None, width: int = 80) -> Table:
    """The summary table for a terminal of 80 columns or more.

    Rows of several benchmarks get a benchmark column. A narrow table shows spreads below their means, and one decimal.
    """
    return terminal_table(rows, COLUMNS, LEGEND, title, width, wide_only=("bytes_per_task",))


def terminal_table(
    rows: Sequence[SeedRow],
    columns: Mapping[str, Column[SeedRow]],
    legend: Mapping[str, str],
    title: str | None = None,
    width: int = 80,
    wide_only: Collection[str] = (),
) -> Table:
    """A table of means over seeds for a terminal; see :func:`rich_table`.

    Args:
        rows: the rows.
        columns: the columns by key; the first two, strategy and number of seeds, need no explanation.
        legend: explanations by key; by default a column is explained by its title.
        title: of the table.
        width: of the terminal.
        wide_only: keys of columns that a narrow terminal has no room for.
    """
    several = len({row.benchmark for row in rows}) > 1
    narrow = width < NARROW
    columns = {name: column for name, column in columns.items() if not (narrow and name in wide_only)}
    explained = "; ".join(
        f"{column.short}: {legend.get(name, column.title.lower())}" for name, column in list(columns.items())[2:]
    )
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 0 if narrow else 1),
        header_style="bold",
        caption=f"in % and points; mean ± sample standard deviation over n seeds; {explained}",
        caption_justify="left",
    )
    if several:
        table.add_column("Benchmark", no_wrap=True)
    for position, column in enumerate(columns.values()):
        table.add_column(
            column.short,
            justify="left" if position == 0 else "right",
            no_wrap=position > 0,
            min_width=11 if position == 0 else None,
        )
    for row in rows:
        cells = [column.terminal_cell(row, narrow) for column in columns.values()]
        # labels come from recipes, so their square brackets must not be read as markup
        texts = [text.replace("[", r"\[") for text in ([row.benchmark] if several else []) + cells]
        table.add_row(*texts)
    return table
