"""A network in the place of a stored task for a while: checked first, then pointed at the bank's tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fscl.atoms.entries import live_state, point_entries, within
from fscl.atoms.layers import Mark
from fscl.atoms.learning import freeze
from fscl.atoms.ownership import Ownership
from fscl.errors import FsclError

__all__ = ["check_built_alike", "pointed_at"]


def check_built_alike(model: nn.Module, ownership: Ownership, own: Mapping[str, Tensor]) -> None:
    """Refuses a network that is not built as it was when a task was stored, the task's tensors being ``own``.

    Entries that the network lacks are no error here, because a head can be made when the task is restored.

    Raises:
        FsclError: the network's numbers are of another type, or it has a parameter or saved buffer that the task did
            not have.
    """
    entries, heads = {**ownership.shared, **own}, ownership.heads
    state, modules = live_state(model), dict(model.named_modules())
    missing = [name for name in entries if name not in state]
    if any(not within(name, heads) for name in missing):
        return  # putting the task back is refused then, with the name of the entry
    saved = {f"{path}.{leaf}" if path else leaf for path, module in modules.items() for leaf in _saved(module)}
    for name, tensor in state.items():
        stored = entries.get(name)
        if stored is not None and stored.dtype != tensor.dtype:
            raise FsclError(
                f"{name} is {tensor.dtype} in this network and {stored.dtype} in the bank; convert one of them"
            )
        if stored is not None or name not in saved:
            continue
        if not within(name, heads) or not (missing or _beside(name, own, modules, heads)):
            raise FsclError(
                f"{name} of this network was not there when the task was stored, and would change what it computes; "
                "give a network that is built as it was when the task was stored"
            )


def _beside(name: str, own: Mapping[str, Tensor], modules: Mapping[str, nn.Module], heads: Sequence[str]) -> bool:
    """Whether an entry that the task lacks belongs to another task's head, and not to the task's own head."""
    owner, _, leaf = name.rpartition(".")
    if leaf in modules[owner]._parameters and any(within(entry, [owner]) for entry in own):
        return False
    sequences_of_heads = [
        path for path, module in modules.items() if isinstance(module, nn.Sequential) and within(path, heads)
    ]
    return not any(within(name, [path]) and any(within(entry, [path]) for entry in own) for path in sequences_of_heads)


def _saved(module: nn.Module) -> list[str]:
    """Names of the module's own tensors in its ``state_dict``, without counters, which decide no output."""
    buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return [name for name in (*module._parameters, *buffers) if name != "num_batches_tracked"]


@contextmanager
def pointed_at(model: nn.Module, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the network uses a task's tensors; after it, its own tensors again. Nothing is copied.

    Args:
        model: the network.
        shared: the tensors that all tasks share. Writing to them is an error, as the old values are then lost.
        own: the tensors of the task. What the block writes to them is undone.

    Raises:
        FsclError: the network lacks an entry, or the block wrote to a shared tensor.
    """
    own_before = [(Mark.of(tensor), tensor.detach().clone()) for tensor in own.values()]
    shared_before = {name: Mark.of(tensor) for name, tensor in shared.items()}
    network_before = point_entries(model, {**shared, **own})
    try:
        yield
    finally:
        point_entries(model, network_before)
        for mark, values in own_before:
            tensor = mark.tensor
            # normalisation updates its statistics without raising their version
            is_statistic = not isinstance(tensor, nn.Parameter)
            if not mark.holds_for(tensor) or (is_statistic and not torch.equal(tensor, values)):
                tensor.data = values
            if isinstance(tensor, nn.Parameter):
                freeze(tensor)
    if damaged := next((name for name, mark in shared_before.items() if not mark.holds_for(shared[name])), None):
        raise FsclError(
            f"{damaged} was written to while the network was swapped. It belongs to the bank and all tasks share it, "
            "so they may be damaged; load the bank again, and use `restore` to change a network"
        )
