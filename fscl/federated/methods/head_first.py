"""Rounds in which only the head is learned, before a method begins."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.errors import FsclError
from fscl.federated.client import Client
from fscl.federated.method import Method, Update, weighted_mean
from fscl.federated.wire import HEAD

__all__ = ["HeadFirst"]


class HeadFirst(Method):
    """Averages heads alone for some rounds, over the network that all start from; then another method goes on.

    A head that fits keeps a network that was trained before from being spoilt by the first steps of a fresh head. It is
    cheap: a few kilobytes a client and round. A recipe asks for it by ``args.head_rounds``, an argument of all methods.

    Args:
        method: what goes on afterwards. Its rounds count from 1.
        rounds: number of rounds of the head.

    Raises:
        FsclError: the method keeps heads at the clients, or there is no round.

    References:
        Kumar, Raghunathan, Jones, Ma, Liang. Fine-tuning can distort pretrained features and underperform
        out-of-distribution. ICLR 2022.

    Example:
        >>> from fscl.federated import Atoms
        >>> HeadFirst(Atoms(coefficient_rounds=0, also=["head"]), rounds=5).stays
        ('normalisation',)
    """

    def __init__(self, method: Method, rounds: int) -> None:
        if rounds < 1:
            raise FsclError(f"head_rounds is {rounds}; it must be at least 1")
        if HEAD in method.stays:
            raise FsclError(
                f"head_rounds is {rounds}, but {type(method).__name__} keeps heads at the clients; a method whose head "
                "travels would do"
            )
        self.method, self.rounds = method, rounds
        self.stays, self.bits = method.stays, method.bits

    @property
    def mean(self) -> dict[str, Tensor]:  # type: ignore[override]
        return self.method.mean

    def prepare(self, model: nn.Module) -> nn.Module:
        return self.method.prepare(model)

    def begin(self, model: nn.Module, clients: int) -> None:
        self.method.begin(model, clients)
        self.model, self.packing = self.method.model, self.method.packing
        if HEAD not in self.packing.entries:
            raise FsclError(f"head_rounds is {self.rounds}, but {type(model).__name__} has no head")

    def introduced(self, client: int, fingerprint: str) -> None:
        self.method.introduced(client, fingerprint)

    def travels(self, round: int) -> tuple[str, ...]:
        return (HEAD,) if round <= self.rounds else self.method.travels(round - self.rounds)

    def parts_for(self, client: int, round: int) -> dict[str, Tensor]:
        if round <= self.rounds:
            return {HEAD: self.mean[HEAD]}
        return self.method.parts_for(client, round - self.rounds)

    def combine(self, round: int, updates: Sequence[Update]) -> None:
        if round <= self.rounds:
            self.mean.update(weighted_mean(updates))
        else:
            self.method.combine(round - self.rounds, updates)

    def fingerprint(self, round: int) -> str:
        # while the head is learned, all else is frozen
        return super().fingerprint(round) if round <= self.rounds else self.method.fingerprint(round - self.rounds)

    def forget(self, client: int) -> None:
        self.method.forget(client)

    def groups(self) -> dict[int, int]:
        return self.method.groups()

    def compared(self) -> list[int]:
        return self.method.compared()

    def similarity(self) -> Tensor:
        return self.method.similarity()

    def bank(self) -> AtomBank | None:
        return self.method.bank()

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state)

    def train(self, client: Client) -> float:
        if client.round <= self.rounds:
            return client.fit([HEAD])
        client.round -= self.rounds
        return self.method.train(client)

    def prepare_answers(self, client: Client) -> None:
        client.round = max(client.round - self.rounds, 0)
        self.method.prepare_answers(client)
