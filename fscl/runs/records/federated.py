"""The record of a federation: accuracy of the clients by round, and the bytes that were sent for it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from fscl.runs.records.parts import Array, Label, Part, ShareRows, Words, array_field, check_shape
from fscl.runs.records.record import Record
from fscl.text import brief, points

__all__ = ["ARRAYS", "Evaluated", "FederatedRecord", "RoundRecord"]

ARRAYS = ("accuracy", "counts", "similarity")  # large, and checked as they are read
MOST_IMAGES = 1e12

Number = Annotated[int, Field(ge=0)]
Counts = Annotated[Array, *array_field(2, high=MOST_IMAGES)]
Cosines = Annotated[Array, *array_field(2, low=-1.01, high=1.01)]  # rounding may pass 1


class RoundRecord(Part):
    """One round of training, see :class:`fscl.federated.history.Round`."""

    number: Number
    chosen: list[Number]
    answered: list[Number]
    left_out: dict[Label, Words] = {}
    sent: Number
    received: Number
    loss: float | None = None
    seconds: Annotated[float, Field(ge=0)]


class Evaluated(Part):
    """What was measured after a round.

    Attributes:
        round: its number.
        sent, received: bytes from the server to clients and back, with Flower's headers.
        seconds: that the evaluation took.
        groups: the group that the method finds for each client, -1 if it knows none; empty if it looks for none.
        failed: why clients were not tested.
    """

    round: Number
    sent: Number
    received: Number
    seconds: Annotated[float, Field(ge=0)]
    groups: list[Annotated[int, Field(ge=-1)]] = []
    failed: dict[Label, Words] = {}


class FederatedRecord(Record):
    """One federation x method x seed.

    Attributes:
        classes: names of the classes.
        counts: training images, (clients, classes).
        tested: the number of images on which each client is tested.
        groups: the known group of each client; empty if there are none.
        rounds: all rounds so far.
        evaluated: the evaluations so far.
        accuracy: [e, c] is the accuracy of client c in evaluation e, a fraction; NaN if it was not tested.
        sizes: bytes of each part of the network.
        stays: the parts that stay at clients.
        travels: the parts that travel in the last round.
        similarity: of the clients at the end, by what they changed; no rows if the method does not compare them.
    """

    classes: list[Label]
    counts: Counts
    tested: list[Number]
    groups: list[Number] = []
    rounds: list[RoundRecord] = []
    evaluated: list[Evaluated] = []
    accuracy: ShareRows = np.empty((0, 0))
    sizes: dict[Label, Number] = {}
    stays: list[Label] = []
    travels: list[Label] = []
    similarity: Cosines = np.empty((0, 0))

    @model_validator(mode="after")
    def _fits(self) -> FederatedRecord:
        """Checks that the shapes of arrays match the numbers of clients and evaluations."""
        clients = len(self.tested)
        rounds = self.benchmark.federation.get("rounds")
        if type(rounds) is not int or rounds < 1:
            raise ValueError(f"benchmark.federation.rounds is {brief(rounds)}; a number of at least 1 would do")
        if not clients or len(self.counts) != clients:
            raise ValueError(f"counts has {len(self.counts)} rows for {clients} clients; there must be a client")
        check_shape("counts", self.counts, (clients, len(self.classes)))
        if len(self.accuracy) != len(self.evaluated):
            raise ValueError(f"accuracy has {len(self.accuracy)} rows for {len(self.evaluated)} evaluations")
        check_shape("accuracy", self.accuracy, (len(self.evaluated), clients))
        check_shape("similarity", self.similarity, (clients, clients))
        for key, groups in [("groups", self.groups), *(("evaluated.groups", e.groups) for e in self.evaluated)]:
            if groups and len(groups) != clients:
                raise ValueError(f"{key} has {len(groups)} numbers for {clients} clients")
        if self.finished and not len(self.accuracy):
            raise ValueError("the run is finished but has no accuracies")
        return self

    @property
    def clients(self) -> int:
        return len(self.tested)

    @property
    def steps_in_all(self) -> int:
        return int(self.benchmark.federation["rounds"])

    @property
    def step_seconds(self) -> list[float]:
        evaluated = {evaluation.round: evaluation.seconds for evaluation in self.evaluated}
        return [r.seconds + evaluated.get(r.number, 0.0) for r in self.rounds]

    @property
    def last_accuracies(self) -> list[float]:
        return self.accuracy[-1].tolist() if len(self.accuracy) else []

    def bytes_until(self, round: int) -> int:
        """Bytes sent in both directions up to a round, for training, with Flower's headers."""
        return sum(r.sent + r.received for r in self.rounds if r.number <= round)

    @property
    def evaluation_bytes(self) -> int:
        """Bytes sent in both directions for all evaluations, with Flower's headers."""
        return sum(evaluation.sent + evaluation.received for evaluation in self.evaluated)

    @property
    def train_seconds(self) -> float:
        return float(sum(r.seconds for r in self.rounds))

    def __repr__(self) -> str:
        last = self.accuracy[-1][np.isfinite(self.accuracy[-1])] if self.finished else np.empty(0)
        accuracy = f", accuracy {points(float(last.mean()), 1)} %" if len(last) else ""
        return (
            f"FederatedRecord({self.stream}, {self.strategy.name}, seed {self.seed}: {self.status}, "
            f"{len(self.rounds)} rounds{accuracy})"
        )

    __str__ = __repr__
