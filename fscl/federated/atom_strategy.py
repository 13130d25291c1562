"""The strategy for a Flower project of one's own: clients share coefficients and exchange atoms."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fscl.atoms import AtomBank
from fscl.errors import FsclError
from fscl.federated.method import Update, weighted_mean
from fscl.federated.methods.atoms import COEFFICIENT_ROUNDS, NUM_ATOMS, Atoms
from fscl.federated.mixing import NEAREST, SHARPNESS
from fscl.federated.strategy import FederatedStrategy

__all__ = ["AtomStrategy"]


class AtomStrategy(FederatedStrategy):
    """:class:`~fscl.federated.Atoms` as a Flower strategy, in the place of ``FedAvg``.

    Args:
        model: the network, built alike at the server and at all clients. It is decomposed into atoms if it was not.
        clients: number of clients; the server waits until so many are connected.
        bank: starts from the coefficients of this bank, which then never travel in training. Its tasks are the clients
            of these numbers, known already: the server starts from the mean of their atoms, and may mix them.
        images: training images of the bank's clients, in the order of its tasks, as weights; by default equal.
        num_atoms, coefficient_rounds, also, mix, nearest, sharpness: as for :class:`~fscl.federated.Atoms`.
        options: as for :class:`~fscl.federated.FederatedStrategy`.

    Raises:
        FsclError: an argument has an unknown value, or the bank does not fit.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> strategy = AtomStrategy(net, clients=3, num_atoms=4, coefficient_rounds=2, mix="nearest", nearest=2)
        >>> strategy.method.travels(round=2), strategy.method.travels(round=3)
        (('atoms', 'other', 'shared'), ('atoms', 'other'))
        >>> strategy.bank  # of the clients that have sent atoms
        AtomBank(0 tasks, 1 layers, 0 bytes a task)
    """

    method: Atoms

    def __init__(
        self,
        model: nn.Module,
        clients: int = 2,
        *,
        bank: AtomBank | None = None,
        images: Sequence[int] | None = None,
        num_atoms: int = NUM_ATOMS,
        coefficient_rounds: int = COEFFICIENT_ROUNDS,
        also: Collection[str] = (),
        mix: str = "mean",
        nearest: int = NEAREST,
        sharpness: float = SHARPNESS,
        **options: Any,
    ) -> None:
        rounds = coefficient_rounds if bank is None else 0
        method = Atoms(num_atoms, rounds, also, mix, nearest, sharpness)
        if bank is None:
            super().__init__(method, model, clients, **options)
            return
        if not len(bank) or not set(bank.tasks) <= set(range(clients)):
            raise FsclError(
                f"the bank has the tasks {bank.tasks}; numbers of clients, from 0 to {clients - 1}, would do"
            )
        if images is not None and len(images) != len(bank):
            raise FsclError(f"images are given for {len(images)} clients; the bank has {len(bank)} tasks")
        method.scale = None  # so that the bank's coefficients stay the same to the bit
        networks = {task: bank.network(model, task) for task in bank.tasks}
        super().__init__(method, networks[bank.tasks[0]], clients, **options)
        _know(method, networks, [1] * len(bank) if images is None else images)

    @property
    def bank(self) -> AtomBank:
        """A bank with a task for each client that has sent atoms, or that the given bank knew."""
        return self.method.bank()


def _know(method: Atoms, networks: dict[int, nn.Module], images: Sequence[int]) -> None:
    """Lets the method begin as if the clients of these numbers had sent their networks' parts."""
    known = [
        Update(task, method.packing.packed(network, method.travels(1)), int(number))
        for (task, network), number in zip(networks.items(), images, strict=True)
    ]
    method.mean |= weighted_mean(known)
    method.latest |= {update.client: update for update in known}
    method.compare([replace(update, sent=method.mean) for update in known])
