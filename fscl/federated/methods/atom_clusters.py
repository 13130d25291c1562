"""One set of atoms for each cluster of clients, over coefficients that all clients share."""

from collections.abc import Collection

import torch
from torch import Tensor

from fscl.errors import FsclError
from fscl.federated.methods.atoms import COEFFICIENT_ROUNDS, NUM_ATOMS, Atoms

__all__ = ["AtomClusters"]


class AtomClusters(Atoms):
    """:class:`Atoms` that are averaged within clusters of clients. The server finds the clusters from atoms alone.

    Clusters are found anew in each round, from :meth:`Atoms.similarity`.

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

    def weights(self) -> Tensor:
        groups = torch.tensor(list(self.groups(self.clusters).values()))
        weights = (groups[:, None] == groups) * self.images()
        return weights / weights.sum(1, keepdim=True)

    def groups(self, number: int | None = None) -> dict[int, int]:
        return super().groups(number or self.clusters)
