"""How much of every client's atoms each client receives, from the similarity of their atoms alone."""

import torch
from torch import Tensor

from fscl.choices import MIXES
from fscl.errors import FsclError

__all__ = ["NEAREST", "SHARPNESS", "mixing_weights", "onto_simplex"]

# defaults wherever parts are mixed
NEAREST = 5
SHARPNESS = 5.0


def mixing_weights(
    similarity: Tensor, images: Tensor, mix: str, *, nearest: int = NEAREST, sharpness: float = SHARPNESS
) -> Tensor:
    """The weights with which atoms of all clients are mixed for each client: (clients, clients), rows sum to 1.

    Args:
        similarity: (clients, clients), symmetric, 1 on the diagonal.
        images: (clients), training images of each client.
        mix: ``mean``: by images, equal for all clients. ``nearest``: by images, over the most similar clients and the
            client itself. ``soft``: by images times ``exp(sharpness * similarity)``. ``graph``: the row ``w`` that
            minimises ``|w - p|^2 - sharpness * w . similarity / clients`` over all weights, with ``p`` the shares of
            images. It is pFedGraph's program with ``alpha = clients / sharpness``; with a constant ``alpha`` a
            smaller share of the clients would have weight the more clients there are.
        nearest: clients that are mixed, the client itself included.
        sharpness: how strongly similarity counts.

    Raises:
        FsclError: the mix is unknown, or there are fewer than one nearest clients.

    References:
        Ye, Ni, Wu, Chen, Wang. Personalized federated learning with inferred collaboration graphs. ICML 2023.

    Example:
        >>> similarity = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
        >>> mixing_weights(similarity, torch.ones(3), "nearest", nearest=2)
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.5000, 0.0000, 0.5000]])
    """
    if mix not in MIXES:
        raise FsclError(f"mix is {mix!r}; known: {', '.join(MIXES)}")
    if nearest < 1:
        raise FsclError(f"nearest is {nearest}; it must be at least 1")
    if mix == "graph":
        shares = (images / images.sum()).expand_as(similarity)
        return onto_simplex(shares + sharpness / (2 * len(images)) * similarity)
    weights = images.expand_as(similarity)
    if mix == "nearest":
        # itself first, whatever rounding says
        order = (similarity + 2 * torch.eye(len(similarity))).argsort(dim=1, descending=True, stable=True)
        weights = torch.zeros_like(similarity).scatter(1, order[:, :nearest], 1.0) * weights
    if mix == "soft":
        weights = weights * (sharpness * (similarity - 1)).exp()
    return weights / weights.sum(1, keepdim=True)


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest weights, at least 0 and with sum 1, to each row of (n, k).

    References:
        Duchi et al. Efficient projections onto the l1-ball. ICML 2008.

    Example:
        >>> onto_simplex(torch.tensor([[0.5, 0.5, 0.3]]))
        tensor([[0.4000, 0.4000, 0.2000]])
    """
    ordered = rows.sort(1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, rows.shape[1] + 1)
    kept = (ordered > excess).sum(1, keepdim=True)
    return (rows - excess.gather(1, kept - 1)).clamp(min=0)
