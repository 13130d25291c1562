"""The results of federations as tables of plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, fields

from fscl.report.federation.measures import FederatedMeasures, federated_measures
from fscl.report.results_table import RUN, ResultsTable, Row, of_run
from fscl.runs.records.federated import FederatedRecord

__all__ = ["FEDERATION_TABLES"]


def _federations(run: FederatedRecord) -> Iterator[Row]:
    numbers = (math.nan if number is None else number for number in astuple(federated_measures(run)))
    groups = len(set(run.groups)) if run.groups else math.nan
    yield *of_run(run), run.strategy.title, run.clients, groups, len(run.rounds), len(run.evaluated), *numbers


def _clients(run: FederatedRecord) -> Iterator[Row]:
    images = run.counts.sum(1).astype(int).tolist()
    for evaluation, accuracies in zip(run.evaluated, run.accuracy.tolist(), strict=True):
        for client, accuracy in enumerate(accuracies):
            found = evaluation.groups[client] if evaluation.groups else -1
            groups = (run.groups[client] if run.groups else math.nan, found if found >= 0 else math.nan)
            yield *of_run(run), evaluation.round, client, accuracy, *groups, images[client], run.tested[client]


def _rounds(run: FederatedRecord) -> Iterator[Row]:
    for r in run.rounds:
        reasons = "; ".join(f"client {client}: {reason}" for client, reason in r.left_out.items())
        counts = len(r.chosen), len(r.answered), len(r.left_out)
        loss = math.nan if r.loss is None else r.loss
        yield *of_run(run), r.number, r.sent, r.received, *counts, loss, r.seconds, reasons


FEDERATION_TABLES = {
    "federations": ResultsTable(
        "a row for each federation: accuracy of its clients, bytes sent, groups found and seconds",
        FederatedRecord,
        (
            *(*RUN, "title", "clients", "groups", "rounds", "evaluations"),
            *(field.name for field in fields(FederatedMeasures)),
        ),
        _federations,
    ),
    "clients": ResultsTable(
        "a row for each federation, evaluation and client: accuracy, known and found group, numbers of images",
        FederatedRecord,
        (*RUN, "round", "client", "accuracy", "group", "group_found", "images", "images_tested"),
        _clients,
    ),
    "rounds": ResultsTable(
        "a row for each federation and round: bytes from the server and back, clients, loss and seconds",
        FederatedRecord,
        (*RUN, "round", "sent", "received", "chosen", "answered", "left_out", "loss", "seconds", "reasons"),
        _rounds,
    ),
}
