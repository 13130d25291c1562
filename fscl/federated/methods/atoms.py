"""Only atoms travel: a few hundred numbers a client, over coefficients that all clients share."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms import AtomBank, decompose
from fscl.atoms.learning import freeze_coefficients
from fscl.errors import FsclError
from fscl.federated.client import Client
from fscl.federated.groups import groups_of
from fscl.federated.method import Update
from fscl.federated.methods.mixture import Mixture
from fscl.federated.mixing import NEAREST, SHARPNESS, mixing_weights
from fscl.similarity import similarity_matrix

__all__ = ["COEFFICIENT_ROUNDS", "NUM_ATOMS", "Atoms"]

# defaults of all methods with atoms
NUM_ATOMS = 9
COEFFICIENT_ROUNDS = 5

SHARED = "shared"


class Atoms(Mixture):
    """Clients share coefficients, and each has atoms of its own. After a few rounds only atoms travel.

    In the first rounds coefficients and atoms are averaged as in FedAvg. Then coefficients are frozen. A client that
    lacks the frozen coefficients receives them once. From then on an update is the client's atoms: since filters are
    linear in the atoms, the average of atoms is the average of filters. Normalisation and head stay at each client.

    Coefficients are frozen in the gauge of scale 1 (:func:`fscl.atoms.freeze_coefficients`): a learning rate that suits
    filters then suits atoms.

    Args:
        num_atoms: atoms of each layer; for networks that have no atom layers yet.
        coefficient_rounds: rounds in which the coefficients travel, too; 0 keeps those of the network from the start.
        also: parts that travel beside the atoms, of ``normalisation`` and ``head``.
        mix: how atoms are mixed for each client, see :func:`fscl.federated.mixing.mixing_weights`: ``mean``,
            ``nearest``, ``soft`` or ``graph``. Two clients are similar if they change the atoms that they receive in
            the same direction; no client's data is needed.
        nearest, sharpness: of the mix.
        lr: learning rate of the rounds in which only atoms travel; by default that of all rounds.
        tuning_epochs: epochs in which a client trains all but the coefficients on its own images before it answers, as
            in :class:`~fscl.federated.FedAvgFineTuned`. The result is not kept.
        tuning_lr: their learning rate; by default that of all rounds.

    Raises:
        FsclError: an argument has an unknown value.

    References:
        Chen, Miao, Qiu. Exploring neural network representational similarity using filter subspaces. 2023.

    Example:
        >>> from torch import nn
        >>> method = Atoms(num_atoms=4, coefficient_rounds=0)
        >>> method.begin(method.prepare(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 2))), clients=3)
        >>> {part: len(values) for part, values in method.parts_for(client=0, round=1).items()}
        {'atoms': 36, 'other': 8, 'shared': 32}
        >>> method.introduced(client=0, fingerprint=method.fingerprint(round=1))  # its network has the coefficients
        >>> {part: len(values) for part, values in method.parts_for(client=0, round=1).items()}
        {'atoms': 36, 'other': 8}
    """

    scale: float | None = 1  # of the gauge; None keeps that of the network

    def __init__(
        self,
        num_atoms: int = NUM_ATOMS,
        coefficient_rounds: int = COEFFICIENT_ROUNDS,
        also: Collection[str] = (),
        mix: str = "mean",
        nearest: int = NEAREST,
        sharpness: float = SHARPNESS,
        lr: float | None = None,
        tuning_epochs: int = 0,
        tuning_lr: float | None = None,
    ) -> None:
        if coefficient_rounds < 0:
            raise FsclError(f"coefficient_rounds is {coefficient_rounds}; it must be at least 0")
        if tuning_epochs < 0:
            raise FsclError(f"tuning_epochs is {tuning_epochs}; it must be at least 0")
        if isinstance(also, str) or (unknown := sorted(set(also) - {"normalisation", "head"})):
            raise FsclError(f"also is {also if isinstance(also, str) else unknown[0]!r}; "
                            "a list of parts of normalisation, head would do")  # fmt: skip
        mixing_weights(torch.ones(1, 1), torch.ones(1), mix, nearest=nearest)
        self.num_atoms, self.coefficient_rounds, self.lr = num_atoms, coefficient_rounds, lr
        self.tuning_epochs, self.tuning_lr = tuning_epochs, tuning_lr
        self.mix, self.nearest, self.sharpness = mix, nearest, sharpness
        self.stays = tuple(part for part in ("normalisation", "head") if part not in also)
        self.travels_until = {SHARED: coefficient_rounds}

    def prepare(self, model: nn.Module) -> nn.Module:
        model = decompose(model, self.num_atoms).model
        if not self.coefficient_rounds:
            freeze_coefficients(model, self.scale)
        return model

    # at the server

    def begin(self, model: nn.Module, clients: int) -> None:
        super().begin(model, clients)
        self.holders: set[int] = set()  # clients that hold the frozen coefficients
        self.changes: dict[int, Tensor] = {}  # the sum of each client's changes of atoms, the k-th over k * k
        self.trained: dict[int, int] = {}  # how many changes that are

    def introduced(self, client: int, fingerprint: str) -> None:
        if not self.coefficient_rounds and fingerprint and self.fingerprint(1).startswith(fingerprint):
            self.holders.add(client)

    def mixes(self, round: int) -> bool:
        return round > self.coefficient_rounds

    def parts_for(self, client: int, round: int) -> dict[str, Tensor]:
        parts = super().parts_for(client, round)
        if self.mixes(round) and client not in self.holders:
            parts[SHARED] = self.mean[SHARED]
        return parts

    def combine(self, round: int, updates: Sequence[Update]) -> None:
        super().combine(round, updates)
        if self.mixes(round):
            for update in updates:
                self.holders.add(update.client)
                # once the atoms that a client receives suit it, its changes are mostly noise. With weights 1 / k, four
                # known groups of Fashion-MNIST fell apart after 20 rounds; with 1 / k^2 on one of three seeds
                number = self.trained[update.client] = self.trained.get(update.client, 0) + 1
                self.changes[update.client] = update.change("atoms") / number**2 + self.changes.get(update.client, 0)
        elif round == self.coefficient_rounds:
            self.packing.unpack(self.model, self.mean)
            freeze_coefficients(self.model, self.scale)
            self.mean = self.packing.packed(self.model)

    def forget(self, client: int) -> None:
        super().forget(client)
        self.holders.discard(client)

    def similarity(self) -> Tensor:
        """Similarity of the clients in :attr:`latest`, in their order, by their changes of atoms: (n, n).

        The mean over layers of the cosine. A client's k-th change counts 1 / k^2. The atoms themselves would tell less:
        a client's atoms are near those that it received, whoever it is.
        """
        layers = [self.packing.atoms(self.changes[client]) for client in self.latest]
        return similarity_matrix(
            {name: torch.stack([changes[name] for changes in layers]) for name in layers[0]}, aggregate="mean"
        )

    def weights(self) -> Tensor | None:
        if self.mix == "mean":
            return None
        return mixing_weights(
            self.similarity(), self.images(), self.mix, nearest=self.nearest, sharpness=self.sharpness
        )

    def groups(self, number: int | None = None) -> dict[int, int]:
        """The group of each client that has sent atoms, from the similarity, see :func:`fscl.federated.groups_of`."""
        return dict(zip(self.latest, groups_of(self.similarity(), number), strict=True)) if self.latest else {}

    def bank(self) -> AtomBank:
        """A bank with a task for each client that has sent atoms; what it did not send is the server's."""
        model = self.model
        self.packing.unpack(model, self.mean)
        bank = AtomBank(model)
        for client, update in sorted(self.latest.items()):
            self.packing.unpack(model, update.parts)
            bank.store(model, client, name=f"client {client}")
        return bank

    def state_dict(self) -> dict[str, Any]:
        kept = {"holders": sorted(self.holders), "changes": dict(self.changes), "trained": dict(self.trained)}
        return super().state_dict() | kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.holders, self.changes = set(state["holders"]), dict(state["changes"])
        self.trained = dict(state["trained"])

    # at a client

    def train(self, client: Client) -> float:
        if client.round <= self.coefficient_rounds:
            return client.fit()
        return client.fit(_own(client), lr=self.lr)

    def prepare_answers(self, client: Client) -> None:
        if self.tuning_epochs:
            client.fit(_own(client), epochs=self.tuning_epochs, lr=self.tuning_lr)


def _own(client: Client) -> list[str]:
    """The parts that are a client's own: all but the coefficients."""
    return [part for part in client.packing.entries if part != SHARED]
