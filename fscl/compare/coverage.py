"""How much of a network a comparison is about: the layers with weights that it leaves out, and their share."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fscl.compare.convolutions import LeftOut, State
from fscl.compare.effective import effective_state

__all__ = ["Coverage", "coverage"]

# of normalisation: what a network has counted, not learned
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
WEIGHT = re.compile(r"\.(weight|weight_\w+|parametrizations\.weight\..+)$")


@dataclass(frozen=True)
class Coverage:
    """The part of the networks' parameters that was compared.

    Attributes:
        share: the compared share of the parameters, by number of values; the least of all networks.
        left_out: by layer with weights that was not compared, the number of its values, in order.
    """

    share: float
    left_out: dict[str, int]


def coverage(states: Sequence[State], compared: Mapping[str, int], not_compared: Mapping[str, LeftOut]) -> Coverage:
    """Counts the parameters of networks, and those in layers that were not compared.

    Weights are entries of two dimensions or more. Biases and normalisation count among the parameters, but are not
    listed. Entries of integers count only if they are known to be weights.

    Args:
        states: the networks.
        compared: by layer that was compared, the number of values.
        not_compared: layers that are known to be weights and could not be compared.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Linear(4, 3))
        >>> coverage([net], {"0": 36}, {})
        Coverage(share=0.7058823529411765, left_out={'1': 12})
    """
    most = 0
    left_out = {layer: why.values for layer, why in not_compared.items()}
    for state in states:
        others = {layer: why.values for layer, why in not_compared.items()}
        rest = 0
        for key, tensor in _entries(state).items():
            layer = WEIGHT.sub("", key)
            if layer in compared or layer in not_compared:
                continue
            if tensor.ndim > 1 and tensor.is_floating_point():
                others[layer] = others.get(layer, 0) + tensor.numel()
            elif tensor.is_floating_point() and not key.endswith(STATISTICS):
                rest += tensor.numel()
        most = max(most, sum(others.values()) + rest)
        left_out |= {layer: max(values, left_out.get(layer, 0)) for layer, values in others.items()}
    total = sum(compared.values()) + most
    return Coverage(sum(compared.values()) / total if total else 1.0, left_out)


def _entries(state: State) -> dict[str, Tensor]:
    entries = state.state_dict() if isinstance(state, nn.Module) else state
    return effective_state({key: t for key, t in entries.items() if isinstance(key, str) and isinstance(t, Tensor)})
