"""The live tensors of a network by name: copied, put back, exchanged, and told from damaged ones."""

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fscl.errors import FsclError

__all__ = [
    "DIGITS",
    "bytes_of",
    "copied",
    "digest_of",
    "fingerprint_of",
    "live_state",
    "moved_to",
    "point_entries",
    "put_entries",
    "when_head_grows",
    "within",
]

DIGITS = 16  # of a digest, hexadecimal


def within(name: str, owners: Collection[str]) -> bool:
    """Whether an entry or module is one of the owners, or lies below one of them."""
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def live_state(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors that decide what a network computes, by dotted name.

    These are the tensors of its ``state_dict``, in the same order; buffers that are not saved (``persistent=False``);
    and tensors that a module holds as plain attributes. If a module has two names, its entries are listed under the
    first; ``state_dict`` lists them under both.
    """
    state: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers, _plain_tensors(module)):
            state |= {f"{path}.{leaf}" if path else leaf: t for leaf, t in table.items() if t is not None}
    return state


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that a module holds as plain attributes, except for those that are computed from parameters.

    Pruning, weight norm and spectral norm compute ``weight`` anew in each pass, from ``weight_orig`` or ``weight_v``.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
        and value.grad_fn is None
        and not {f"{name}_orig", f"{name}_v"} & module._parameters.keys()
    }


# put back


@torch.no_grad()
def put_entries(model: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Copies entries into a network, in place. Heads that the network lacks are made.

    Raises:
        FsclError: the network has no place for an entry.
    """
    state = live_state(model)
    for name, tensor in entries.items():
        target = state.get(name)
        if target is None or target.shape != tensor.shape:
            _grow(model, name, tensor)
        elif target is not tensor:
            target.copy_(tensor)


def when_head_grows(kind: type[nn.Module], tell: Callable[[Any, int], None]) -> None:
    """Has a function told of each head that :func:`put_entries` makes or widens below a module of a class.

    For modules that note how wide their heads are, so that what is noted goes on to be right.

    Args:
        kind: the class of modules.
        tell: called with the module and the outputs of the head.
    """
    _WHEN_HEAD_GROWS.append((kind, tell))


_WHEN_HEAD_GROWS: list[tuple[type[nn.Module], Callable[[Any, int], None]]] = []


def _grow(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes a place for an entry of a head that was added, or grew, when a task arrived."""
    *path, leaf = name.split(".")
    owner: nn.Module = model
    above: list[Any] = [model]
    for key in path:
        child = owner._modules.get(key)
        if child is None and isinstance(owner, nn.ModuleDict) and len(owner):
            child = copy.deepcopy(next(iter(owner.values())))
            owner[key] = child
        if child is None:
            raise _no_entry(model, name)
        owner = child
        above.append(owner)
    device = next((t.device for t in live_state(model).values()), tensor.device)
    value = tensor.detach().to(device, copy=True)
    if isinstance(owner, nn.Linear) and leaf in ("weight", "bias"):
        owner.out_features = tensor.shape[0]
        setattr(owner, leaf, nn.Parameter(value))
        for module in above:
            for kind, tell in _WHEN_HEAD_GROWS:
                if isinstance(module, kind):
                    tell(module, owner.out_features)
    elif leaf in owner._buffers:
        owner._buffers[leaf] = value
    elif isinstance(vars(owner).get(leaf), Tensor):
        vars(owner)[leaf] = value
    elif not tensor.is_floating_point():
        owner.register_buffer(leaf, value)
    else:
        raise FsclError(
            f"{name} of {type(model).__name__} has no place for a tensor of shape {tuple(tensor.shape)}; "
            "is it the network that the task was stored from?"
        )


def point_entries(model: nn.Module, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes a network use other tensors, without a copy, and returns the tensors that it used before.

    A second call with the returned tensors undoes the first. The network's own parameters keep their identity, so an
    optimizer that holds them is not disturbed.

    Raises:
        FsclError: the network lacks an entry. It is then unchanged.
    """
    modules = {"": model}  # walked to along the names, as `named_modules` would take twice the time
    before: dict[str, Tensor] = {}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for name, tensor in entries.items():
        path, _, leaf = name.rpartition(".")
        try:
            if path not in modules:
                module = model
                for key in path.split("."):
                    module = module._modules[key]  # type: ignore[assignment]  # None raises AttributeError
                modules[path] = module
            table = _table(modules[path], leaf)
            old = table[leaf]
            if tensor.device != old.device:
                tensor = tensor.to(old.device)
        except (KeyError, AttributeError):
            raise _no_entry(model, name) from None
        if table is modules[path]._parameters and type(tensor) is Tensor:
            tensor = nn.Parameter(tensor, requires_grad=False)
        before[name] = old
        places.append((table, leaf, tensor))
    for table, leaf, tensor in places:
        table[leaf] = tensor
    return before


def _table(module: nn.Module, leaf: str) -> dict[str, Any]:
    """The dict in which a module keeps the tensor of this name."""
    if leaf in module._parameters:
        return module._parameters
    return module._buffers if leaf in module._buffers else vars(module)


def _no_entry(model: nn.Module, name: str) -> FsclError:
    return FsclError(f"{type(model).__name__} has no entry {name!r}; is it the network that the task was stored from?")


# copied


def copied(tensor: Tensor) -> Tensor:
    """A frozen copy. The copy of a parameter is a parameter, so that a network can use it without conversion."""
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def moved_to(tensor: Tensor, device: str | torch.device) -> Tensor:
    """The tensor on a device; itself if it is there already. What was a parameter is a frozen parameter there."""
    moved = tensor.to(device)
    is_copy = moved is not tensor
    return nn.Parameter(moved, requires_grad=False) if is_copy and isinstance(tensor, nn.Parameter) else moved


# told from damaged ones


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest_of(*parts: bytes | bytearray) -> str:
    """Hexadecimal digits that tell these bytes from damaged ones. They do not protect against forgery."""
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def fingerprint_of(entries: Mapping[str, Tensor]) -> str:
    """SHA-256 of entries, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in entries.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
