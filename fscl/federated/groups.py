"""Finds groups of clients from their similarity."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["groups_of"]

NO_STRUCTURE = 0.25  # largest silhouette of a division that says nothing
# by how much the silhouette of another number of groups must be larger. Clients of one group receive the same, so that
# a division holds itself up. On federated Fashion-MNIST two of four known groups became one with a silhouette 0.04
# above that of four, and stayed so for 16 rounds; it was 0.05 to 0.08 above by then
CLEARLY_BETTER = 0.05


def groups_of(
    similarity: Tensor, number: int | None = None, linkage: str = "average", before: int | None = None
) -> list[int]:
    """The group of each client, by agglomerative clustering of ``1 - similarity``.

    Args:
        similarity: (n, n), symmetric, 1 on the diagonal.
        number: number of groups, of which there are at most n. None takes the number from 2 to n - 1 with the largest
            silhouette, or one group if no silhouette is above 0.25.
        linkage: of the clustering, see :func:`scipy.cluster.hierarchy.linkage`.
        before: the number of groups so far. It stays unless the silhouette of another number is larger by 0.05.

    Returns:
        Groups count from 0 in the order of their first clients.

    Raises:
        FsclError: fewer than one group is asked for.

    References:
        Rousseeuw. Silhouettes: a graphical aid to the interpretation and validation of cluster analysis. 1987;
        Kaufman, Rousseeuw. Finding groups in data. 1990 (up to 0.25: "no substantial structure has been found").

    Example:
        >>> import torch
        >>> groups_of(torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]]))
        [0, 1, 0]
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    if number is not None and number < 1:
        raise FsclError(f"the number of groups is {number}; it must be at least 1")
    clients = len(similarity)
    if (clients < 3 and number is None) or clients < 2:
        return [0] * clients
    distances = 1 - similarity.double().numpy()
    distances = np.clip((distances + distances.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    tree = hierarchy.linkage(squareform(distances), linkage)
    if number is not None:
        return _counted(hierarchy.cut_tree(tree, min(number, clients))[:, 0])
    divisions = dict(zip(range(1, clients), hierarchy.cut_tree(tree, range(1, clients)).T, strict=True))
    silhouettes = {count: _silhouette(distances, groups) for count, groups in divisions.items()}
    best = max(silhouettes, key=silhouettes.__getitem__)
    if before in silhouettes and silhouettes[best] < silhouettes[before] + CLEARLY_BETTER:
        best = before
    return _counted(divisions[best])


def _silhouette(distances: NDArray[np.float64], groups: NDArray[np.integer]) -> float:
    """The mean silhouette; of a single group the value that says nothing."""
    from sklearn.metrics import silhouette_score  # takes a second to import

    # on digits: at most 0.11 for clients with images of all classes, 0.55 for those of three known groups
    return float(silhouette_score(distances, groups, metric="precomputed")) if groups.any() else NO_STRUCTURE


def _counted(labels: NDArray[np.integer]) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]
