"""Base class of learners with a binary mask for each task over shared weights, and masks as packed bits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.entries import copied, live_state, put_entries, within
from fscl.atoms.ownership import entry_kinds
from fscl.continual.task_switch import LabelSwitchPlugin, head_names

__all__ = ["MaskPlugin", "pack_bits", "top_share", "unpack_bits"]


def pack_bits(mask: Tensor) -> Tensor:
    """A mask of n values as ceil(n / 8) bytes.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    bits = mask.flatten().to(torch.uint8)
    bits = torch.cat([bits, bits.new_zeros(-len(bits) % 8)]).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask that :func:`pack_bits` was given, which had this shape.

    Example:
        >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[: math.prod(shape)].view(*shape).bool()


def top_share(values: Tensor, share: float) -> Tensor:
    """A mask of the largest values: a share of them, at least one, and all values equal to the smallest of these.

    Example:
        >>> top_share(torch.tensor([0.3, -1.0, 0.7, 0.1]), 0.5)
        tensor([ True, False,  True, False])
    """
    count = max(round(share * values.numel()), 1)
    return values >= values.flatten().kthvalue(values.numel() - count + 1).values


class MaskPlugin(LabelSwitchPlugin):
    """Base class of plugins whose tasks share one set of weights. Each task uses the weights in its mask.

    Weights are the parameters with two or more dimensions, except those of heads and normalisation. A task's network
    consists of the shared weights times the task's mask, and of the task's own entries: head, normalisation with its
    statistics, biases, and all else that is not a weight. A weight that is in a mask never changes again. Between
    experiences the model holds the network of the last task, and a new task starts from its normalisation.

    A task's network is put together when evaluation first needs it, and is kept until the task is trained again. It is
    not counted as memory, because it follows from the bits and the shared weights.

    Attributes:
        shared: name -> weight, for all tasks together.
        masks: task -> name of the weight -> packed bits.
        own_entries: task -> the entries of its network that belong to this task.
    """

    transient = ("_networks",)

    def __init__(self) -> None:
        super().__init__()
        self.shared: dict[str, Tensor] = {}
        self.masks: dict[int, dict[str, Tensor]] = {}
        self.own_entries: dict[int, dict[str, Tensor]] = {}
        self._kinds: dict[str, str] = {}  # of the entries in own_entries
        self._networks: dict[int, dict[str, Tensor]] = {}

    def stored(self, task: int) -> Mapping[str, Tensor] | None:
        if task in self.masks and task not in self._networks:
            weights = {n: self.shared[n].where(self.mask(task, n), 0) for n in self.shared}
            frozen = {n: nn.Parameter(weight, requires_grad=False) for n, weight in weights.items()}
            self._networks[task] = {**frozen, **self.own_entries[task]}
        return self._networks.get(task)

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
        """The parameters of the model that are shared weights."""
        return {name: model.get_parameter(name) for name in self.shared}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        model = strategy.model
        if not self.shared:
            task_kinds = entry_kinds(model, head_names(model))
            weights = {n: p for n, p in model.named_parameters() if p.ndim > 1 and n not in task_kinds}
            self.shared = {n: p.detach().clone() for n, p in weights.items()}
        former = self.former(strategy.experience)
        put_entries(model, {name: tensor for name, tensor in former.items() if name not in self.shared})
        strategy.optimizer.state.clear()  # it holds momentum of another task's weights

    def keep(self, strategy: Any, masks: Mapping[str, Tensor]) -> None:
        """Stores the masks and own entries of the experience's tasks. Their weights must be in ``shared`` already."""
        model = strategy.model
        heads = head_names(model)
        state = {n: t for n, t in live_state(model).items() if n not in self.shared}
        self._kinds |= entry_kinds(model, heads, state)
        packed = {name: pack_bits(mask) for name, mask in masks.items()}
        for task in strategy.experience.task_labels:
            task_heads = head_names(model, task) or []
            entries = {n: t for n, t in state.items() if within(n, task_heads) or not within(n, heads or [])}
            self.own_entries[task] = {n: copied(t) for n, t in entries.items()}
            self.masks[task] = packed
            self._networks.pop(task, None)

    def memory(self) -> dict[str, int]:
        sizes = {"masks": 0, "normalisation": 0, "head": 0, "other": 0}
        for task, entries in self.own_entries.items():
            sizes["masks"] += sum(bits.nbytes for bits in self.masks[task].values())
            for name, tensor in entries.items():
                sizes[self._kinds[name]] += tensor.nbytes
        return {kind: round(size / max(len(self.own_entries), 1)) for kind, size in sizes.items() if size}

    def shared_memory(self) -> dict[str, int]:
        return {"network": sum(weight.nbytes for weight in self.shared.values())}
