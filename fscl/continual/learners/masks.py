"""What learners with a binary mask a task over one set of weights have in common, and the masks as packed bits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.entries import copied, entry_kinds, live_state, put_entries, within
from fscl.continual.task_switch import LabelSwitchPlugin, head_names

__all__ = ["MaskPlugin", "pack_bits", "top_share", "unpack_bits"]


def pack_bits(mask: Tensor) -> Tensor:
    """A mask of n values in ceil(n / 8) bytes.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    bits = mask.flatten().to(torch.uint8)
    bits = torch.cat([bits, bits.new_zeros(-len(bits) % 8)]).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of a shape that :func:`pack_bits` was given.

    Example:
        >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[: math.prod(shape)].view(*shape).bool()


def top_share(values: Tensor, share: float) -> Tensor:
    """Where the largest values are: a share of them, one at least, and all that equal the least of those.

    Example:
        >>> top_share(torch.tensor([0.3, -1.0, 0.7, 0.1]), 0.5)
        tensor([ True, False,  True, False])
    """
    count = max(round(share * values.numel()), 1)
    return values >= values.flatten().kthvalue(values.numel() - count + 1).values


class MaskPlugin(LabelSwitchPlugin):
    """Base of plugins whose tasks share one set of weights, of which each uses those that its mask lets through.

    Weights are the parameters with two dimensions or more, heads and normalisation apart. A task's network is the
    shared weights times its mask, with the task's own normalisation (statistics too), biases, whatever else is no
    weight, and head. A weight that is in a mask is never changed again. Between experiences the model holds the network
    of the task learned last, and a new task starts from its normalisation.

    What evaluation needs of a task, a whole network, is composed when first asked for and kept until the task is
    trained again; it counts in no memory, for the bits and the shared weights tell it.

    Attributes:
        shared: weights by name, of all tasks together.
        masks: by task and weight, the packed bits.
        own: by task, the entries of its network that are its own.
    """

    transient = ("_kept",)

    def __init__(self) -> None:
        super().__init__()
        self.shared: dict[str, Tensor] = {}
        self.masks: dict[int, dict[str, Tensor]] = {}
        self.own: dict[int, dict[str, Tensor]] = {}
        self._kinds: dict[str, str] = {}  # of the entries in ``own``
        self._kept: dict[int, dict[str, Tensor]] = {}

    def stored(self, task: int) -> Mapping[str, Tensor] | None:
        if task in self.masks and task not in self._kept:
            weights = {n: self.shared[n].where(self.mask(task, n), 0) for n in self.shared}
            frozen = {n: nn.Parameter(weight, requires_grad=False) for n, weight in weights.items()}
            self._kept[task] = {**frozen, **self.own[task]}
        return self._kept.get(task)

    def mask(self, task: int, name: str) -> Tensor:
        """Which values of a weight a task uses."""
        return unpack_bits(self.masks[task][name], self.shared[name].shape)

    def used(self, name: str) -> Tensor:
        """Which values of a weight any task uses."""
        used = torch.zeros_like(self.shared[name], dtype=torch.bool)
        for task in self.masks:
            used |= self.mask(task, name)
        return used

    def weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's own parameters that are shared."""
        return {name: model.get_parameter(name) for name in self.shared}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        model = strategy.model
        if not self.shared:
            apart = entry_kinds(model, head_names(model))
            weights = {n: p for n, p in model.named_parameters() if p.ndim > 1 and n not in apart}
            self.shared = {n: p.detach().clone() for n, p in weights.items()}
        known = [task for task in strategy.experience.task_labels if task in self.own]
        if known:
            put_entries(model, self.own[known[0]])
        strategy.optimizer.state.clear()  # momentum of another task's weights

    def keep(self, strategy: Any, masks: Mapping[str, Tensor]) -> None:
        """Stores the network of the experience's tasks, whose weights are in ``shared`` already."""
        model = strategy.model
        heads = head_names(model)
        state = {n: t for n, t in live_state(model).items() if n not in self.shared}
        self._kinds |= entry_kinds(model, heads, state)
        packed = {name: pack_bits(mask) for name, mask in masks.items()}
        for task in strategy.experience.task_labels:
            mine = head_names(model, task) or []
            own = {n: t for n, t in state.items() if within(n, mine) or not within(n, heads or [])}
            self.own[task] = {n: copied(t) for n, t in own.items()}
            self.masks[task] = packed
            self._kept.pop(task, None)

    def memory(self) -> dict[str, int]:
        kinds = {"masks": 0, "normalisation": 0, "head": 0, "other": 0}
        for task, own in self.own.items():
            kinds["masks"] += sum(bits.nbytes for bits in self.masks[task].values())
            for name, tensor in own.items():
                kinds[self._kinds[name]] += tensor.nbytes
        return {kind: round(size / max(len(self.own), 1)) for kind, size in kinds.items() if size}

    def shared_memory(self) -> dict[str, int]:
        return {"network": sum(weight.nbytes for weight in self.shared.values())}
