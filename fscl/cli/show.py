"""``fscl show`` prints what is recorded of one run."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["show"]


def show(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/split_digits/ewc/seed_0.")],
) -> None:
    """Print a run's recipe, tasks, accuracies, storage and how it was made."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fscl.errors import printable
    from fscl.report.provenance import provenance
    from fscl.report.summary import group_runs, summary_rows
    from fscl.report.table import COLUMNS
    from fscl.runs.results import load_stream_run, run_in
    from fscl.text import points

    run_in(run)
    record = load_stream_run(run / "run.json")
    groups = group_runs([record])
    rows = [(row, column) for row in summary_rows(groups) for column in COLUMNS.values()]
    facts = Table(show_header=False, box=None)
    title = record.strategy.title or record.strategy.name
    status = record.status + (f": {record.error}" if record.error else "")
    for term, text in (
        ("Strategy", f"{title} ({record.strategy.class_path})"),
        ("Status", f"{status}, {len(record.accuracy)} of {len(record.tasks)} tasks"),
        ("Recipe", record.recipe_hash),
        *provenance(record.stream, [record], groups),
        *((column.heading, column.number(row)) for row, column in rows[2:] if column.value(row) is not None),
        ("Files", ", ".join(sorted(p.name for p in run.iterdir() if not p.name.startswith(".")))),
    ):
        facts.add_row(term, escape(printable(text)))
    tasks = Table("task", "classes", box=None)
    tasks.add_column("after learning", justify="right")
    tasks.add_column("at the end", justify="right")
    for number, task in enumerate(record.tasks):
        is_measured = number < len(record.accuracy) and not record.at_once
        learned = record.accuracy[number, number] if is_measured else None
        last = record.accuracy[-1, number] if len(record.accuracy) else None
        classes = ", ".join(map(str, task.classes))
        tasks.add_row(str(number), escape(printable(classes)), points(learned), points(last))
    console = Console()
    console.print(facts)
    console.print()
    console.print(tasks)
