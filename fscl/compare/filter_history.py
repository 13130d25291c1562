"""Compares the filters of one network over time, without data."""

import torch
from torch import Tensor, nn

from fscl.atoms.layers import AtomConv2d
from fscl.errors import FsclError
from fscl.similarity.filters import atoms_of_filters
from fscl.similarity.subspace import similarity_matrix

__all__ = ["FilterHistory"]


class FilterHistory:
    """The filters of a network after each task, stored as atoms over coefficients that span the first task's filters.

    Filters outside that span are not compared. So if coefficients change, the similarity is about a part of the filters
    only. :attr:`explained` gives, for each task and layer, this part as a share of the filters' energy.

    Example:
        >>> history = FilterHistory()
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> history.add(net), history.add(net)
        (None, None)
        >>> history.similarity()
        tensor([[1., 1.],
                [1., 1.]])
    """

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.atoms: list[dict[str, Tensor]] = []
        self.explained: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self.atoms)

    def add(self, model: nn.Module) -> None:
        """Stores the present filters of a network.

        Raises:
            FsclError: the network has no spatial convolutions.
        """
        filters = {
            name: module.weight.detach().cpu()
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | AtomConv2d) and module.kernel_size != (1, 1)
        }
        if not filters:
            raise FsclError(f"{type(model).__name__} has no spatial convolutions whose filters could be compared")
        if not self.first:
            self.first = {name: w.clone() for name, w in filters.items()}
        pairs = {name: atoms_of_filters(torch.stack([self.first[name], w])) for name, w in filters.items()}
        self.atoms.append({name: pair.atoms[1] for name, pair in pairs.items()})
        self.explained.append({name: float(pair.explained[1]) for name, pair in pairs.items()})

    def similarity(self, metric: str = "cosine", aggregate: str = "product", per_layer: bool = False) -> Tensor:
        """Similarity of the stored filters: (T, T), or (L, T, T) with ``per_layer``."""
        stacks = {name: torch.stack([atoms[name] for atoms in self.atoms]) for name in self.first}
        grams = {name: torch.eye(stack.shape[1], dtype=stack.dtype) for name, stack in stacks.items()}  # orthonormal
        return similarity_matrix(stacks, metric, aggregate, grams=grams, per_layer=per_layer)
