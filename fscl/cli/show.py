"""``fscl show`` prints what is recorded of one run."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fscl.runs.records.federated import FederatedRecord
    from fscl.runs.records.record import RunRecord

__all__ = ["show"]

Facts = list[tuple[str, str]]


def show(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/split_digits/ewc/seed_0.")],
) -> None:
    """Print a run's recipe, tasks or clients, accuracies, bytes and how it was made."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fscl.errors import printable
    from fscl.runs.results import federations_of, run_in, streams_of

    record = run_in(run)
    title = record.strategy.title or record.strategy.name
    status = record.status + (f": {record.error}" if record.error else "")
    first = [("Strategy", f"{title} ({record.strategy.class_path})")]
    (facts, below), *_ = [
        *(_of_stream(stream, status) for stream in streams_of([record])),
        *(_of_federation(federation, status) for federation in federations_of([record])),
    ]
    files = ", ".join(sorted(p.name for p in run.iterdir() if not p.name.startswith(".")))
    shown = Table(show_header=False, box=None)
    for term, text in (*first, *facts, ("Files", files)):
        shown.add_row(term, escape(printable(text)))
    console = Console()
    console.print(shown)
    console.print()
    console.print(below)


def _of_stream(record: "RunRecord", status: str) -> "tuple[Facts, Table]":
    from rich.table import Table

    from fscl.report.provenance import provenance
    from fscl.report.summary import group_runs, summary_rows
    from fscl.report.table import COLUMNS
    from fscl.text import points

    groups = group_runs([record])
    rows = [(row, column) for row in summary_rows(groups) for column in COLUMNS.values()]
    facts = [
        ("Status", f"{status}, {len(record.accuracy)} of {len(record.tasks)} tasks"),
        ("Recipe", record.recipe_hash),
        *provenance(record.stream, [record], groups),
        *((column.heading, column.number(row)) for row, column in rows[2:] if column.value(row) is not None),
    ]
    tasks = Table("task", "classes", box=None)
    tasks.add_column("after learning", justify="right")
    tasks.add_column("at the end", justify="right")
    for number, task in enumerate(record.tasks):
        is_measured = number < len(record.accuracy) and not record.at_once
        learned = record.accuracy[number, number] if is_measured else None
        last = record.accuracy[-1, number] if len(record.accuracy) else None
        tasks.add_row(str(number), *_safe([", ".join(map(str, task.classes))]), points(learned), points(last))
    return facts, tasks


def _of_federation(record: "FederatedRecord", status: str) -> "tuple[Facts, Table]":
    import numpy as np
    from rich.table import Table

    from fscl.report.federation.provenance import TRAVEL, federated_provenance
    from fscl.report.federation.summary import federation_rows, group_federations
    from fscl.report.federation.table import FEDERATION_COLUMNS
    from fscl.text import DASH, points

    groups = group_federations([record])
    # compared with no other method, a run has nothing to match
    alone = [column for name, column in FEDERATION_COLUMNS.items() if name not in ("strategy", "seeds", "reached")]
    facts = [
        ("Status", f"{status}, {len(record.rounds)} of {record.steps_in_all} rounds"),
        ("Recipe", record.recipe_hash),
        *federated_provenance(record.stream, [record], groups),
        *(
            (column.heading, column.number(row))
            for row in federation_rows(groups)
            for column in alone
            if column.value(row) is not None
        ),
        *((column.heading, column.number(group)) for group in groups for column in TRAVEL[1:]),
    ]
    if left_out := sum(len(r.left_out) for r in record.rounds):
        answers = "1 answer of a client" if left_out == 1 else f"{left_out} answers of clients"
        facts.append(("Left out", f"{answers}; the report has the reasons"))
    clients = Table("client", "group", "classes", box=None)
    for heading in ("images", "tested on", f"after round {record.evaluated[-1].round}" if record.evaluated else "last"):
        clients.add_column(heading, justify="right")
    last = record.accuracy[-1].tolist() if len(record.accuracy) else [None] * record.clients
    for client, counts in enumerate(record.counts):
        classes = ", ".join(record.classes[number] for number in np.flatnonzero(counts))
        group = str(record.groups[client]) if record.groups else DASH
        numbers = str(int(counts.sum())), str(record.tested[client]), points(last[client])
        clients.add_row(str(client), group, *_safe([classes]), *numbers)
    return facts, clients


def _safe(texts: Iterable[str]) -> list[str]:
    """Texts from records, which may hold anything, for a terminal."""
    from rich.markup import escape

    from fscl.errors import printable

    return [escape(printable(text)) for text in texts]
