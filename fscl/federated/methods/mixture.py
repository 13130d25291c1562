"""Methods that send each client a mixture of all clients' parts."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.federated.method import Method, Update, mixed

__all__ = ["Mixture"]


class Mixture(Method):
    """Base class of methods that mix, for each client, the parts that all clients sent last.

    A client that has not sent anything yet receives the mean.

    Attributes:
        latest: the last update of each client.
    """

    latest: dict[int, Update]

    def mixes(self, round: int) -> bool:
        """Whether what clients send in a round, from 1, is mixed later."""
        return True

    def compared(self) -> list[int]:
        return list(self.latest)

    @abstractmethod
    def similarity(self) -> Tensor:
        """Similarity of the clients in :attr:`latest`, in their order: (n, n)."""

    @abstractmethod
    def weights(self) -> Tensor | None:
        """For each client in :attr:`latest` the weights of all of them, in their order: (n, n), rows sum to 1.

        None sends the mean of the last round to all clients.
        """

    def images(self) -> Tensor:
        """Training images of the clients in :attr:`latest`, in their order."""
        return torch.tensor([float(update.images) for update in self.latest.values()])

    def begin(self, model: nn.Module, clients: int) -> None:
        super().begin(model, clients)
        self.latest = {}
        self._mixed: dict[int, dict[str, Tensor]] | None = None

    def parts_for(self, client: int, round: int) -> dict[str, Tensor]:
        parts = super().parts_for(client, round)
        if self._mixed is None:  # once for all clients of a round
            self._mixed = self._mixtures()
        return parts | self._mixed.get(client, {})

    def combine(self, round: int, updates: Sequence[Update]) -> None:
        super().combine(round, updates)
        if self.mixes(round):
            self.latest |= {u.client: Update(u.client, u.parts, u.images, rows=u.rows) for u in updates}
            self._mixed = None

    def state_dict(self) -> dict[str, Any]:
        latest = {
            client: {"parts": update.parts, "images": update.images, "rows": update.rows}
            for client, update in self.latest.items()
        }
        return super().state_dict() | {"latest": latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.latest = {client: Update(client, **update) for client, update in state["latest"].items()}
        self._mixed = None

    def _mixtures(self) -> dict[int, dict[str, Tensor]]:
        weights = self.weights() if self.latest else None
        if weights is None:
            return {}
        updates = list(self.latest.values())
        mixtures = {part: mixed(updates, part, weights) for part in updates[0].parts}
        return {client: {part: rows[row] for part, rows in mixtures.items()} for row, client in enumerate(self.latest)}
