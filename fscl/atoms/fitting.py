"""Whether a network is built as it was when a task was stored, so that the task can be put back into it."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fscl.atoms.entries import live_state, within
from fscl.errors import FsclError

__all__ = ["fitting_entries"]


def fitting_entries(
    model: nn.Module, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: Sequence[str]
) -> dict[str, Tensor]:
    """All entries of a task, shared and own, held against the network that is to have them.

    What the network lacks is left to whoever puts them there: heads can be made.

    Args:
        heads: the modules or entries that hold the heads of all tasks.

    Raises:
        FsclError: the network has another type of numbers, or a parameter or saved buffer that the task did not have.
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
            raise FsclError(f"{name} is {tensor.dtype} in this network and {stored.dtype} in the bank; make both one")
        if stored is not None or name not in saved:
            continue
        if not within(name, heads) or not (missing or _beside(name, own, modules, heads)):
            raise FsclError(
                f"{name} of this network was not there when the task was stored, and would change what it computes; "
                "give a network that is built as it was then"
            )
    return entries


def _beside(name: str, own: Mapping[str, Tensor], modules: Mapping[str, nn.Module], heads: Sequence[str]) -> bool:
    """Whether an entry of a head that a task lacks is of another task's head, and not of one with the task's own."""
    owner, _, leaf = name.rpartition(".")
    if leaf in modules[owner]._parameters and any(within(entry, [owner]) for entry in own):
        return False
    chains = [path for path, module in modules.items() if isinstance(module, nn.Sequential) and within(path, heads)]
    return not any(within(name, [path]) and any(within(entry, [path]) for entry in own) for path in chains)


def _saved(module: nn.Module) -> list[str]:
    """The tensors of a module's own that its ``state_dict`` has, but for counters, which decide no output."""
    buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    return [name for name in (*module._parameters, *buffers) if name != "num_batches_tracked"]
