"""How much of a network a comparison is about: the layers with weights that it leaves out, and their share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fscl.compare.layers import LeftOut, State, comparable_layers

__all__ = ["Coverage", "coverage"]


@dataclass(frozen=True)
class Coverage:
    """The part of the networks' parameters that was compared.

    Attributes:
        share: the compared share of the parameters, by number of values; the least of all networks. Biases,
            normalisation and positions are parameters, and are not compared.
        left_out: by layer with weights that was not compared, the number of its values, in order; the head is one.
    """

    share: float
    left_out: dict[str, int]


def coverage(states: Sequence[State], compared: Mapping[str, int], not_compared: Mapping[str, LeftOut]) -> Coverage:
    """Counts the parameters of networks, and those in layers that were not compared.

    Args:
        states: the networks.
        compared: by layer that was compared, the number of values.
        not_compared: layers that are known to be weights and could not be compared.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Linear(4, 3))
        >>> coverage([net], {"0": 36}, {})
        Coverage(share=0.7058823529411765, left_out={'1': 12})
    """
    most = sum(compared.values()) + sum(why.values for why in not_compared.values())
    left_out = {layer: why.values for layer, why in not_compared.items()}
    for state in states:
        layers = comparable_layers("a network", state)
        most = max(most, layers.parameters)
        for layer, weight in {**layers.weights, **layers.head}.items():
            if layer not in compared:
                left_out[layer] = max(weight.numel(), left_out.get(layer, 0))
    return Coverage(sum(compared.values()) / most if most else 1.0, left_out)
