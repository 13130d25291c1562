"""pFedGraph: each client receives a mixture of all networks, by a graph that the server infers."""

import torch
from torch import Tensor, nn

from fscl.errors import FsclError
from fscl.federated.methods.mixture import Mixture
from fscl.federated.mixing import mixing_weights

__all__ = ["PFedGraph"]


class PFedGraph(Mixture):
    """Mixes whole networks for each client. Similar are clients whose networks moved in the same direction.

    The weights ``w`` of a client minimise ``alpha * |w - p|^2 - w . s`` over all weights, with ``p`` the shares of
    images and ``s`` the cosines of all networks' changes since the start with the client's. As in the authors' code a
    cosine above 0.9 counts as 1. Their term in the clients' loss, of weight 0.01, is left out. Normalisation stays at
    each client.

    Args:
        alpha: how close the weights stay to the shares of images.

    Raises:
        FsclError: ``alpha`` is not positive.

    References:
        Ye, Ni, Wu, Chen, Wang. Personalized federated learning with inferred collaboration graphs. ICML 2023.

    Example:
        >>> PFedGraph(alpha=0.5).stays
        ('normalisation',)
    """

    def __init__(self, alpha: float = 0.8) -> None:
        if not alpha > 0:
            raise FsclError(f"alpha is {alpha}; a positive number would do, such as 0.8")
        self.alpha = alpha

    def begin(self, model: nn.Module, clients: int) -> None:
        super().begin(model, clients)
        self.start = dict(self.mean)

    def similarity(self) -> Tensor:
        """Cosines of the clients' changes since the start, in the order of :attr:`latest`: (n, n)."""
        changes = [
            torch.cat([values - self.start[part] for part, values in update.parts.items()]).double()
            for update in self.latest.values()
        ]
        directions = torch.nn.functional.normalize(torch.stack(changes), dim=1)
        cosines = (directions @ directions.T).fill_diagonal_(1)
        return torch.where(cosines > 0.9, 1.0, cosines).float()

    def weights(self) -> Tensor:
        clients = len(self.latest)
        return mixing_weights(self.similarity(), self.images(), "graph", sharpness=clients / self.alpha)
