"""What a federated method does at the server and at a client. It knows nothing of how messages travel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.atoms.entries import fingerprint_of
from fscl.atoms.packing import PARTS, Packing
from fscl.errors import FsclError
from fscl.federated.client import Client
from fscl.federated.wire import HEAD

__all__ = ["Method", "Update", "mixed", "weighted_mean"]


@dataclass(frozen=True)
class Update:
    """What one client sent back.

    Attributes:
        client: its number.
        parts: the parts that travel, packed.
        images: the number of images that it trained on.
        sent: the parts that it had received before, packed.
        rows: (values of the head), which of them it sent; None if it sent all. The others are as they were sent to it.
    """

    client: int
    parts: dict[str, Tensor]
    images: int
    sent: dict[str, Tensor] = field(default_factory=dict)
    rows: Tensor | None = None

    def change(self, part: str) -> Tensor:
        """By how much the client changed a part."""
        return self.parts[part] - self.sent[part]


class Method:
    """Base class of federated methods: the server sends parts of a network, clients train and return them.

    A network has the parts ``atoms``, ``normalisation``, ``head``, ``other`` and ``shared``, see
    :class:`fscl.atoms.packing.Packing`. A method declares in :attr:`stays` and :attr:`travels_until` what becomes of
    each; what it does not name travels in both directions in every round. By itself this class sends the mean of what
    clients returned, weighted by their images.

    One object lives at the server, from :meth:`begin` on. Each client makes one of its own, calls :meth:`train` and
    :meth:`prepare_answers`, and never sees another client's parts.

    Attributes:
        stays: the parts that each client keeps to itself.
        travels_until: the last round in which a part travels. From then on it is frozen, and equal everywhere.
        bits: of a number that travels, 32, 16 or 8, see :class:`fscl.federated.wire.Wire`. A recipe sets it by
            ``args.bits``.
        packing, model: of the server's network, from :meth:`begin` on.
        mean: the server's packed parts.
    """

    stays: tuple[str, ...] = ("normalisation",)
    travels_until: Mapping[str, int] = MappingProxyType({})

    bits: int = 32

    packing: Packing
    model: nn.Module
    mean: dict[str, Tensor]

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network that server and clients use, made from the recipe's: itself, or decomposed into atoms."""
        return model

    # at the server

    def begin(self, model: nn.Module, clients: int) -> None:
        """Starts with a network, the same at the server and at all clients.

        Args:
            model: the network.
            clients: number of clients.
        """
        self.model, self.packing = model, Packing(model)
        self.mean = self.packing.packed(model)

    def introduced(self, client: int, fingerprint: str) -> None:
        """Notes that a client is there, with a network whose part ``shared`` has this fingerprint."""

    def travels(self, round: int) -> tuple[str, ...]:
        """The parts that a client returns in a round, from 1. The server sends at least these."""
        return tuple(
            part
            for part in PARTS
            if part in self.packing.entries and part not in self.stays and round <= self.travels_until.get(part, inf)
        )

    def parts_for(self, client: int, round: int) -> dict[str, Tensor]:
        """The parts that the server sends to a client before a round. Calling it changes nothing."""
        return {part: self.mean[part] for part in self.travels(round)}

    def combine(self, round: int, updates: Sequence[Update]) -> None:
        """Takes what clients returned, in the order of their numbers. There is at least one update."""
        self.mean |= weighted_mean(updates)

    def fingerprint(self, round: int) -> str:
        """Tells the server's frozen part from others; empty if no part is frozen in this round."""
        if "shared" not in self.packing.entries or "shared" in (*self.travels(round), *self.stays):
            return ""
        return fingerprint_of(self.packing.entries_of({"shared": self.mean["shared"]}))

    def forget(self, client: int) -> None:
        """Notes that a client has lost what it kept, and begins anew."""

    # what a method knows of its clients; by default it knows nothing

    def groups(self) -> dict[int, int]:
        """The group that the method finds for each client, as far as it knows one; empty if it looks for none."""
        return {}

    def compared(self) -> list[int]:
        """The clients that the method compares, in the order of :meth:`similarity`; none by default."""
        return []

    def similarity(self) -> Tensor:
        """Similarity of the clients that are :meth:`compared`: (n, n), 1 on the diagonal."""
        return torch.empty(0, 0)

    def bank(self) -> AtomBank | None:
        """A bank with a task for each client that has sent atoms; None if the method has no atoms for each client."""
        return None

    # to go on later

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which :meth:`load_state_dict` goes on after a round."""
        return {"mean": dict(self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = dict(state["mean"])

    # at a client

    def train(self, client: Client) -> float:
        """Trains a client's network for one round, and returns the mean loss."""
        return client.fit()

    def prepare_answers(self, client: Client) -> None:
        """Makes the network that answers for a client from what the server sent and the client kept."""


def weighted_mean(updates: Sequence[Update]) -> dict[str, Tensor]:
    """The mean of each part over clients, weighted by their images. It is summed in double precision.

    Raises:
        FsclError: there is no update, or no image.

    Example:
        >>> first, second = {"head": torch.tensor([0.0, 1.0])}, {"head": torch.tensor([4.0, 1.0])}
        >>> weighted_mean([Update(client=0, parts=first, images=1), Update(client=1, parts=second, images=3)])["head"]
        tensor([3., 1.])
    """
    images = sum(update.images for update in updates)
    if not images:
        raise FsclError(f"{len(updates)} updates with {images} images have no mean")
    weights = torch.tensor([[update.images / images for update in updates]], dtype=torch.float64)
    return {part: mixed(updates, part, weights)[0].to(values.dtype) for part, values in updates[0].parts.items()}


def mixed(updates: Sequence[Update], part: str, weights: Tensor) -> Tensor:
    """Mixtures of a part of several clients. A row of a head is mixed over the clients that sent it.

    Args:
        updates: of n clients.
        part: its name.
        weights: (k, n).

    Returns:
        (k, values), of the type of the weights.
    """
    values = torch.stack([update.parts[part] for update in updates]).to(weights.dtype)
    if part != HEAD or all(update.rows is None for update in updates):
        return weights @ values
    sent = torch.stack([torch.ones(values.shape[1], dtype=torch.bool) if u.rows is None else u.rows for u in updates])
    weight = weights @ sent.to(weights.dtype)
    # a row that none of them sent is as it was sent to them
    return torch.where(weight > 0, weights @ (values * sent) / weight, weights @ values)
