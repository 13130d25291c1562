"""Checks that a network is still built as it was when a task was stored, before the task is put back."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fscl.atoms.entries import live_state, within
from fscl.errors import FsclError

__all__ = ["fitting_entries"]


def fitting_entries(
    model: nn.Module, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: Sequence[str]
) -> dict[str, Tensor]:
    """All entries of a task, shared and own, checked against the network that they are for.

    Entries that the network lacks are no error here, because a head can be made when the task is restored.

    Args:
        heads: the modules or entries that hold the heads of all tasks.

    Raises:
        FsclError: the network's numbers are of another type, or it has a parameter or saved buffer that the task did
            not have.
    """
    entries = {**shared, **own}
    state, modules = live_state(model), dict(model.named_modules())
    missing = [name for name in entries if name not in state]
    if any(not within(name, heads) for name in missing):
        return entries
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
    return entries


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
