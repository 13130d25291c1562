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
        self.differences: dict[int, Tensor] = {}  # of each client's atoms from those of others, added up over rounds

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
        """Notes by how much each client's atoms differ from those of the round's other clients."""
        atoms = {update.client: update.parts["atoms"] for update in updates}
        total = torch.stack(list(atoms.values())).sum(0)
        for client, own in atoms.items():
            others = (total - own) / (len(atoms) - 1) if len(atoms) > 1 else own
            self.differences[client] = own - others + self.differences.get(client, 0)

    def _freeze(self) -> None:
        """Freezes the mean coefficients, over which the differences of atoms are expressed from now on."""
        mean = self.mean

        def frozen(atoms: Tensor) -> dict[str, Tensor]:
            self.packing.unpack(self.model, mean | {"atoms": atoms})
            freeze_coefficients(self.model, self.scale)
            return self.packing.packed(self.model)

        self.differences = {client: frozen(atoms)["atoms"] for client, atoms in self.differences.items()}
        self.mean = frozen(mean["atoms"])
        # each client receives them once; rounded as numbers travel, they need no more bits than other parts
        written = encoded(self.mean[SHARED], self.bits)
        self.mean[SHARED] = decoded(written).to(self.mean[SHARED].dtype)

    def forget(self, client: int) -> None:
        super().forget(client)
        self.holders.discard(client)

    def similarity(self) -> Tensor:
        """Similarity of the clients in :attr:`latest`, in their order, by their atoms: (n, n).

        The mean over layers of the cosine of their differences: a client's atoms less the mean of those that the other
        clients sent in the same round, added up over rounds. What all have in common tells none of them from the
        others, and makes the plain cosine of any two clients nearly 1.
        """
        layers = [self.packing.atoms(self.differences[client]) for client in self.latest]
        return similarity_matrix(
            {name: torch.stack([atoms[name] for atoms in layers]) for name in layers[0]}, aggregate="mean"
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

        def holding(parts: dict[str, Tensor]) -> nn.Module:
            self.packing.unpack(self.model, self.mean | parts)
            freeze_coefficients(self.model, self.scale)  # rounded ones are not quite orthogonal
            return self.model

        bank = AtomBank(holding({}))
        for client, update in sorted(self.latest.items()):
            bank.store(holding(update.parts), client, name=f"client {client}")
        return bank

    def state_dict(self) -> dict[str, Any]:
        kept = {"holders": sorted(self.holders), "differences": dict(self.differences)}
        return super().state_dict() | kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.holders, self.differences = set(state["holders"]), dict(state["differences"])

    # at a client

    def train(self, client: Client) -> float:
        if client.round <= self.coefficient_rounds:
            return client.fit(epochs=self.coefficient_epochs)
        return client.fit([part for part in client.packing.entries if part != SHARED], lr=self.lr)
