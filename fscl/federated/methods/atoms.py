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
from fscl.federated.wire import decoded, encoded
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
        coefficient_epochs: local epochs of these rounds; by default those of all rounds. These rounds are few, and most
            of the bytes are theirs, so that more epochs of them are cheap.
        also: parts that travel beside the atoms, of ``normalisation`` and ``head``.
        mix: how atoms are mixed for each client, see :func:`fscl.federated.mixing.mixing_weights`: ``mean``,
            ``nearest``, ``soft`` or ``graph``; see :meth:`similarity`. No client's data is needed.
        nearest, sharpness: of the mix.
        lr: learning rate of the rounds in which only atoms travel; by default that of all rounds.

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
        coefficient_epochs: int | None = None,
    ) -> None:
        if coefficient_rounds < 0:
            raise FsclError(f"coefficient_rounds is {coefficient_rounds}; it must be at least 0")
        if coefficient_epochs is not None and coefficient_epochs < 1:
            raise FsclError(f"coefficient_epochs is {coefficient_epochs}; it must be at least 1")
        if isinstance(also, str) or (unknown := sorted(set(also) - {"normalisation", "head"})):
            raise FsclError(f"also is {also if isinstance(also, str) else unknown[0]!r}; "
                            "a list of parts of normalisation, head would do")  # fmt: skip
        mixing_weights(torch.ones(1, 1), torch.ones(1), mix, nearest=nearest)
        self.num_atoms, self.lr = num_atoms, lr
        self.coefficient_rounds, self.coefficient_epochs = coefficient_rounds, coefficient_epochs
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
        # of each client, less the mean of the others of its round, see similarity
        self.received: dict[int, Tensor] = {}
        self.changes: dict[int, Tensor] = {}
        self.trained: dict[int, int] = {}  # in how many rounds

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
        self.compare(updates)
        if self.mixes(round):
            self.holders.update(update.client for update in updates)
        elif round == self.coefficient_rounds:
            self._freeze()

    def compare(self, updates: Sequence[Update]) -> None:
        """Notes the atoms that clients received and how they changed them, less what the round's others did."""
        received = _less_others([update.sent["atoms"] for update in updates])
        changes = _less_others([update.change("atoms") for update in updates])
        for update, own, change in zip(updates, received, changes, strict=True):
            client = update.client
            number = self.trained[client] = self.trained.get(client, 0) + 1
            self.received[client] = own
            self.changes[client] = change / number**0.5 + self.changes.get(client, 0)

    def _freeze(self) -> None:
        """Freezes the mean coefficients, over which changes of atoms are expressed from now on."""
        mean = self.mean

        def frozen(atoms: Tensor) -> dict[str, Tensor]:
            self.packing.unpack(self.model, mean | {"atoms": atoms})
            freeze_coefficients(self.model, self.scale)
            return self.packing.packed(self.model)

        self.changes = {client: frozen(change)["atoms"] for client, change in self.changes.items()}
        self.mean = frozen(mean["atoms"])
        # each client receives them once; rounded as numbers travel, they need no more bits than other parts
        written = encoded(self.mean[SHARED], self.bits)
        self.mean[SHARED] = decoded(written).to(self.mean[SHARED].dtype)

    def forget(self, client: int) -> None:
        super().forget(client)
        self.holders.discard(client)

    def similarity(self) -> Tensor:
        """Similarity of the clients in :attr:`latest`, in their order, by their atoms: (n, n).

        The mean over layers of the cosine. Of a client count the atoms that it received last and the sum of its changes
        of what it received, the k-th divided by the root of k. From both the mean of the round's other clients is
        subtracted: what all have in common tells none of them from the others.

        Once what a client receives suits it, its changes are mostly noise; a plain sum of them loses the groups again.
        What it received would keep a wrong group for ever.
        """
        layers = [self.packing.atoms(self.received[client] + self.changes[client]) for client in self.latest]
        return similarity_matrix(
            {name: torch.stack([atoms[name] for atoms in layers]) for name in layers[0]}, aggregate="mean"
        )

    def weights(self) -> Tensor | None:
        if self.mix == "mean":
            return None
        return mixing_weights(
            self.similarity(), self.images(), self.mix, nearest=self.nearest, sharpness=self.sharpness
        )

    def groups(self) -> dict[int, int]:
        """The group of each client that has sent atoms, from the similarity, see :func:`fscl.federated.groups_of`."""
        return dict(zip(self.latest, groups_of(self.similarity()), strict=True)) if self.latest else {}

    def bank(self) -> AtomBank:
        """A bank with a task for each client that has sent atoms; what it did not send is the server's."""

        def holding(parts: dict[str, Tensor]) -> nn.Module:
            self.packing.unpack(self.model, self.mean | parts)
            freeze_coefficients(self.model, self.scale)  # rounded ones are not quite orthogonal
            return self.model

        bank = AtomBank(holding({}))
        for client, update in sorted(self.latest.items()):
            bank.store(holding(update.parts), client, name=f"client {client}")
        return bank

    def state_dict(self) -> dict[str, Any]:
        kept = {
            "holders": sorted(self.holders), "received": dict(self.received), "changes": dict(self.changes),
            "trained": dict(self.trained),
        }  # fmt: skip
        return super().state_dict() | kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.holders, self.trained = set(state["holders"]), dict(state["trained"])
        self.received, self.changes = dict(state["received"]), dict(state["changes"])

    # at a client

    def train(self, client: Client) -> float:
        if client.round <= self.coefficient_rounds:
            return client.fit(epochs=self.coefficient_epochs)
        return client.fit([part for part in client.packing.entries if part != SHARED], lr=self.lr)


def _less_others(rows: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor less the mean of the others; zero if there are none."""
    total = torch.stack(list(rows)).sum(0)
    return [row - (total - row) / (len(rows) - 1) if len(rows) > 1 else torch.zeros_like(row) for row in rows]
