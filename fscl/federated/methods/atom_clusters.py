"""One set of atoms for each cluster of clients, over coefficients that all clients share."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.federated.groups import groups_of
from fscl.federated.method import Update
from fscl.federated.methods.atoms import COEFFICIENT_ROUNDS, NUM_ATOMS, Atoms

__all__ = ["AtomClusters"]


class AtomClusters(Atoms):
    """:class:`Atoms` that are averaged within clusters of clients. The server finds the clusters from atoms alone.

    Clusters are found anew after each round, from :meth:`Atoms.similarity`. Their number stays unless another is
    clearly better, see :func:`fscl.federated.groups_of`.

    Args:
        clusters: number of clusters; None takes the number with the largest silhouette, see
            :func:`fscl.federated.groups_of`.
        num_atoms, coefficient_rounds, also, lr, coefficient_epochs: as for :class:`Atoms`.

    Raises:
        FsclError: an argument has an unknown value.

    Example:
        >>> AtomClusters(clusters=3).stays
        ('normalisation', 'head')
    """

    def __init__(
        self,
        clusters: int | None = None,
        num_atoms: int = NUM_ATOMS,
        coefficient_rounds: int = COEFFICIENT_ROUNDS,
        also: Collection[str] = (),
        lr: float | None = None,
        coefficient_epochs: int | None = None,
    ) -> None:
        super().__init__(num_atoms, coefficient_rounds, also, lr=lr, coefficient_epochs=coefficient_epochs)
        if clusters is not None and clusters < 1:
            raise FsclError(f"clusters is {clusters}; it must be at least 1")
        self.clusters = clusters

    def begin(self, model: nn.Module, clients: int) -> None:
        super().begin(model, clients)
        self.cluster_of: dict[int, int] = {}

    def combine(self, round: int, updates: Sequence[Update]) -> None:
        super().combine(round, updates)
        if self.latest:
            before = len(set(self.cluster_of.values())) or None
            found = groups_of(self.similarity(), self.clusters, before=before)
            self.cluster_of = dict(zip(self.latest, found, strict=True))

    def weights(self) -> Tensor:
        clusters = torch.tensor(list(self.cluster_of.values()))
        weights = (clusters[:, None] == clusters) * self.images()
        return weights / weights.sum(1, keepdim=True)

    def groups(self) -> dict[int, int]:
        return dict(self.cluster_of)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"cluster_of": dict(self.cluster_of)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.cluster_of = dict(state["cluster_of"])
