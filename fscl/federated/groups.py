"""Finds groups of clients from their similarity."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["groups_of"]

NO_STRUCTURE = 0.25  # largest silhouette of a division that says nothing


def groups_of(similarity: Tensor, number: int | None = None, linkage: str = "average") -> list[int]:
    """The group of each client, by agglomerative clustering of ``1 - similarity``.

    Args:
        similarity: (n, n), symmetric, 1 on the diagonal.
        number: number of groups, of which there are at most n. None takes the number from 2 to n - 1 with the largest
            silhouette, or one group if no silhouette is above 0.25.
        linkage: of the clustering, see :func:`scipy.cluster.hierarchy.linkage`.

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
    from sklearn.metrics import silhouette_score  # takes a second to import

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
    divisions = hierarchy.cut_tree(tree, range(2, clients)).T
    silhouettes = [silhouette_score(distances, groups, metric="precomputed") for groups in divisions]
    # on digits: at most 0.11 for clients with images of all classes, 0.55 for those of three known groups
    return _counted(divisions[np.argmax(silhouettes)]) if max(silhouettes) > NO_STRUCTURE else [0] * clients


def _counted(labels: NDArray[np.integer]) -> list[int]:
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]
