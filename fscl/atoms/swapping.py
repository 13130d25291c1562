"""A network that uses a bank's tensors for a while. Nothing is copied, so that writes to them must be noticed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fscl.atoms.entries import point_entries
from fscl.atoms.learning import freeze
from fscl.errors import FsclError

__all__ = ["pointed_at"]


@contextmanager
def pointed_at(
    model: nn.Module, entries: Mapping[str, Tensor], own: Mapping[str, Tensor], shared: Mapping[str, Tensor]
) -> Iterator[nn.Module]:
    """Within the block the network uses ``entries``; after it, its own tensors again.

    Args:
        model: the network.
        entries: the tensors to use, by entry.
        own: the tensors of the task. What the block writes to them is undone.
        shared: the tensors that all tasks share. Writing to them is an error, as the old values are then lost.

    Raises:
        FsclError: the network lacks an entry, or the block wrote to a shared tensor.
    """
    task_before = [(tensor, _mark(tensor), tensor.detach().clone()) for tensor in own.values()]
    shared_marks = {name: _mark(tensor) for name, tensor in shared.items()}
    network_before = point_entries(model, entries)
    try:
        yield model
    finally:
        point_entries(model, network_before)
        for tensor, mark, values in task_before:
            # normalisation updates its statistics without raising their version
            is_statistic = not isinstance(tensor, nn.Parameter)
            if _is_written(tensor, mark) or (is_statistic and not torch.equal(tensor, values)):
                tensor.data = values
            if isinstance(tensor, nn.Parameter):
                freeze(tensor)
    if damaged := next((name for name, tensor in shared.items() if _is_written(tensor, shared_marks[name])), None):
        raise FsclError(
            f"{damaged} was written to while the network was swapped. It belongs to the bank and all tasks share it, "
            "so they may be damaged; load the bank again, and use `restore` to change a network"
        )


def _mark(tensor: Tensor) -> tuple[Tensor, int]:
    """A mark for :func:`_is_written`. It holds the tensor's memory, so that no other tensor can get this address."""
    return tensor.detach(), 0 if tensor.is_inference() else tensor._version


def _is_written(tensor: Tensor, mark: tuple[Tensor, int]) -> bool:
    """Whether a tensor was written to, or was given other memory, since it was marked."""
    alias, version = mark
    return tensor.data_ptr() != alias.data_ptr() or (not tensor.is_inference() and tensor._version != version)
