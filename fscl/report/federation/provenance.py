"""The parts of a report on how federations were made: clients, rounds, what travels and what stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fscl.report.federation.summary import MethodRuns
from fscl.report.grouping import RunGroup
from fscl.report.provenance import how_made, optimizer_words, runs_described, settings_columns
from fscl.report.table import Bytes, Column
from fscl.runs.records.federated import FederatedRecord
from fscl.text import DASH, human_bytes

__all__ = ["METHOD_SETTINGS", "TRAVEL", "federated_budget", "federated_provenance"]


def federated_provenance(
    name: str, runs: Sequence[FederatedRecord], groups: Sequence[RunGroup[FederatedRecord]]
) -> list[tuple[str, str]]:
    """Terms and texts that describe all runs of a federation.

    Args:
        name: the federation's name.
        runs: all its runs. They are described if none is finished.
        groups: its finished runs by method.
    """
    described = runs_described(runs, groups)
    first = described[0]
    facts = [
        ("Federation", f"{name}, {first.clients} client{'s' * (first.clients != 1)}"),
        ("Clients", _clients(described)),
    ]
    return how_made(facts, described, groups, federated_budget, "methods")


def federated_budget(run: FederatedRecord) -> str:
    """How many rounds a federation had, and how its clients trained in each."""
    federation, training = run.benchmark.federation, run.benchmark.training
    rounds = f"{run.steps_in_all} round{'s' * (run.steps_in_all != 1)}"
    if run.rounds:
        rounds += f" with {_range([len(r.chosen) for r in run.rounds])} of {run.clients} clients"
    epochs = training.get("epochs")
    parts = [rounds, f"{epochs} local epoch{'s' * (epochs != 1)} a round" if epochs is not None else ""]
    if every := federation.get("evaluate_every"):
        parts.append(f"all clients tested {f'every {every} rounds' if every != 1 else 'after each round'}")
    falls = [("lr", "falling over the rounds along a cosine")] if federation.get("schedule") == "cosine" else []
    return ", ".join(part for part in (*parts, *optimizer_words(training, falls)) if part)


def _clients(runs: Sequence[FederatedRecord]) -> str:
    """How images are divided among the clients, over all seeds."""
    images = [number for run in runs for number in run.counts.sum(1).astype(int).tolist()]
    held = [number for run in runs for number in np.count_nonzero(run.counts, axis=1).tolist()]
    tested = [number for run in runs for number in run.tested]
    split = "; ".join(dict.fromkeys(map(_split, runs)))
    return (
        f"{split}; a client has {_range(held)} of {len(runs[0].classes)} classes, "
        f"{_range(images)} training and {_range(tested)} test images"
    )


def _split(run: FederatedRecord) -> str:
    federation = run.benchmark.federation
    if run.groups:
        return f"{len(set(run.groups))} groups of clients, each with its own classes"
    if federation.get("dirichlet") is not None:
        return f"classes by Dirichlet's distribution with concentration {federation['dirichlet']}"
    if federation.get("classes_per_client") is not None:
        return f"{federation['classes_per_client']} classes a client"
    return "split in an unknown way"


def _range(numbers: Sequence[int]) -> str:
    ends = dict.fromkeys((min(numbers), max(numbers)))
    return " to ".join(f"{end:,}" for end in ends)


def _parts(run: FederatedRecord, names: Iterable[str]) -> str:
    sizes = (f"{name} {human_bytes(run.sizes.get(name, 0))}".replace(" ", "\u00a0") for name in names)  # one line each
    return ", ".join(sizes) or DASH


def _fixed(run: FederatedRecord) -> list[str]:
    """The parts that travel no more in the last round and do not stay at clients: frozen, and equal everywhere."""
    return [part for part in run.sizes if part not in (*run.travels, *run.stays)]


METHOD_SETTINGS = settings_columns("Method", federated_budget)
TRAVEL: tuple[Column[MethodRuns], ...] = (
    Column("Method", "", "", lambda group: group.label),
    Column("Travels", "in the last round", "", lambda group: _parts(group.runs[0], group.runs[0].travels)),
    Bytes(
        "Values that travel",
        "one way, 32 bits",
        "",
        lambda group: float(sum(group.runs[0].sizes.get(part, 0) for part in group.runs[0].travels)),
    ),
    Column("Stays at each client", "", "", lambda group: _parts(group.runs[0], group.runs[0].stays)),
    Column("Shared, travels no more", "", "", lambda group: _parts(group.runs[0], _fixed(group.runs[0]))),
)
