"""How the similarities of layers become one number: for NumPy arrays and for tensors. Imports no PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from fscl.choices import AGGREGATES
from fscl.errors import FsclError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["aggregate_layers"]


Values = TypeVar("Values", NDArray[np.float64], "Tensor")


def aggregate_layers(per_layer: Values, how: str = "product") -> Values:
    """Combines the similarities of all layers into one: (L, ...) -> (...). Takes an array or a tensor, and returns one.

    `mean` is the plain mean. `product` is the product of squares. It approximates CKA, which is quadratic in the
    features and composes over depth: the product down to a layer approximates the CKA of that layer's features. `depth`
    is the mean, over layers, of the product down to each layer, as the CKA of a network is the mean of its layers' CKA.
    It takes the layers in the given order, from input to output.

    Raises `FsclError` if `how` is unknown or there are no layers.

    >>> layers = np.array([0.5, -1.0, 0.0])
    >>> [round(float(aggregate_layers(layers, how)), 4) for how in ("mean", "product", "depth")]
    [-0.1667, 0.0, 0.1667]
    """
    if how not in AGGREGATES:
        raise FsclError(f"unknown aggregate {how!r}; known: {', '.join(AGGREGATES)}")
    if per_layer.ndim == 0 or len(per_layer) == 0:
        raise FsclError(f"no layers to aggregate in shape {tuple(per_layer.shape)}; it takes (layers, tasks, tasks)")
    if how == "mean":
        return per_layer.mean(0)
    squares = per_layer * per_layer
    return squares.prod(0) if how == "product" else squares.cumprod(0).mean(0)
