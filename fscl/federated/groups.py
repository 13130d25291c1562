"""Finds groups of clients from their similarity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["groups_of"]

NO_STRUCTURE = 0.25  # largest silhouette of a division that says nothing
# by how much the silhouette of a new division must be larger to replace the one before. Clients of one group receive
# the same, so that a division holds itself up. On federated Fashion-MNIST two of four known groups became one with a
# silhouette 0.04 above that of four, and stayed so for 16 rounds; it was 0.05 to 0.08 above by then
CLEARLY_BETTER = 0.05


def groups_of(
    similarity: Tensor, number: int | None = None, linkage: str = "average", before: Sequence[int] | None = None
) -> list[int]:
    """The group of each client, by agglomerative clustering of ``1 - similarity``.

    Args:
        similarity: (n, n), symmetric, 1 on the diagonal.
        number: number of groups, of which there are at most n. None takes the number from 2 to n - 1 with the largest
            silhouette, or one group if no silhouette is above 0.25.
        linkage: of the clustering, see :func:`scipy.cluster.hierarchy.linkage`.
        before: the groups that the clients are in so far, -1 for new clients. A new client joins the group to which it
            is most similar on average. These groups stay, unless the silhouette of new ones is larger by 0.05.

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
    counts = range(2, clients) if number is None else [min(number, clients)]
    divisions = list(hierarchy.cut_tree(tree, counts).T)
    if number is None:
        divisions.append(np.zeros(clients, dtype=int))
    silhouettes = [_silhouette(distances, groups) for groups in divisions]
    best = int(np.argmax(silhouettes))
    if before is not None and max(before, default=-1) >= 0:
        joined = _joined(distances, np.array(before))
        if silhouettes[best] < _silhouette(distances, joined) + CLEARLY_BETTER:
            return _counted(joined)
    return _counted(divisions[best])


def _silhouette(distances: NDArray[np.float64], groups: NDArray[np.integer]) -> float:
    """The mean silhouette; of a single group, or of groups of one client each, the value that says nothing."""
    from sklearn.metrics import silhouette_score  # takes a second to import

    if not 1 < len(np.unique(groups)) < len(groups):
        return NO_STRUCTURE
    # on digits: at most 0.11 for clients with images of all classes, 0.55 for those of three known groups
    return float(silhouette_score(distances, groups, metric="precomputed"))


def _joined(distances: NDArray[np.float64], groups: NDArray[np.integer]) -> NDArray[np.integer]:
    """The groups, with each client that has none in the nearest one on average."""
    known = np.unique(groups[groups >= 0])
    to_groups = np.stack([distances[:, groups == group].mean(1) for group in known], 1)
    return np.where(groups >= 0, groups, known[to_groups.argmin(1)])


def _counted(labels: NDArray[np.integer]) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]
