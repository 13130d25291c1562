"""The entries of a network's state: which of them belong to a task, and how they are put back."""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fscl.atoms.layers import AtomConv2d
from fscl.errors import FsclError

__all__ = [
    "bytes_of",
    "copied",
    "entry_kinds",
    "fingerprint_of",
    "head_owners",
    "live_state",
    "point_entries",
    "put_entries",
    "unkept_values",
    "when_head_grows",
    "within",
]

NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def within(name: str, owners: Collection[str]) -> bool:
    """Whether an entry or module is one of the owners, or lies below one of them."""
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def entry_kinds(model: nn.Module, heads: Sequence[str] | None = None, own: Collection[str] = ()) -> dict[str, str]:
    """The entries of a network that belong to each task, with their kinds. All other entries are shared.

    Most parameters are shared, because they can be frozen. Buffers, and tensors that a module holds as plain
    attributes, belong to each task in any module: like the statistics of a normalisation, they may change in every
    forward pass in training.

    Args:
        model: a network with atom layers.
        heads: modules or entries that are heads; None takes the last ``nn.Linear``.
        own: further modules or entries that belong to each task. Their kind is "other", if no other kind applies.

    Raises:
        FsclError: a name is neither a module nor an entry of the network, or ``own`` names coefficients.
    """
    modules = dict(model.named_modules())
    state = live_state(model)
    heads = head_owners(model, heads)
    kinds: dict[str, str] = {}
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        if within(name, heads):
            if isinstance(module, AtomConv2d):
                raise FsclError(f"{owner} cannot be part of a head: its coefficients are what tasks share")
            kinds[name] = "head"
        elif isinstance(module, AtomConv2d) and leaf == "atoms":
            kinds[name] = "atoms"
        elif isinstance(module, NORMALISATION):
            kinds[name] = "normalisation"
        elif (isinstance(module, AtomConv2d | nn.Conv2d) and leaf == "bias") or not isinstance(tensor, nn.Parameter):
            kinds[name] = "other"
        elif within(name, own):
            if isinstance(module, AtomConv2d):
                raise FsclError(f"{name} cannot be a task's own: coefficients are what tasks share")
            kinds[name] = "other"
    for role, owners in (("head", heads), ("own entry", own)):
        for owner in owners:
            if not any(within(name, [owner]) for name in state):
                raise FsclError(f"{role} {owner!r} is no module or entry of {type(model).__name__}")
    return kinds


def head_owners(model: nn.Module, heads: Sequence[str] | None = None) -> list[str]:
    """The modules or entries that are heads: ``heads``, or the last ``nn.Linear`` if that is None."""
    if heads is not None:
        return list(heads)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]


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


def point_entries(model: nn.Module, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes a network use other tensors, without a copy, and returns the tensors that it used before.

    A second call with the returned tensors undoes the first. The network's own parameters keep their identity, so an
    optimizer that holds them is not disturbed.

    Raises:
        FsclError: the network lacks an entry.
    """
    steps, groups = _route(tuple(entries))
    before: dict[str, Tensor] = {}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    try:  # all places are looked up before any is changed, and in every call: modules may have been replaced
        modules = [model]
        for above, key in steps:
            modules.append(modules[above]._modules[key])  # type: ignore[arg-type]  # None raises AttributeError below
        for number, leaves in groups:
            module = modules[number]
            for leaf, name in leaves:
                table = _table(module, leaf)
                old, tensor = table[leaf], entries[name]
                if tensor.device != old.device:
                    tensor = tensor.to(old.device)
                if table is module._parameters and type(tensor) is Tensor:
                    tensor = nn.Parameter(tensor, requires_grad=False)
                before[name] = old
                places.append((table, leaf, tensor))
    except (KeyError, AttributeError):
        name = next(name for name in entries if not _has_entry(model, name))
        raise FsclError(
            f"{type(model).__name__} has no entry {name!r}; is it the network that the task was stored from?"
        ) from None
    for table, leaf, tensor in places:
        table[leaf] = tensor
    return before


@lru_cache(maxsize=64)
def _route(names: tuple[str, ...]) -> tuple[list[tuple[int, str]], list[tuple[int, list[tuple[str, str]]]]]:
    """How to walk from a network to its entries. Modules are numbered as they are reached; the network is number 0.

    Returns:
        The steps (number of a module, name of its child), each to the next module; and, for each module that has
        entries, (number, [(leaf, entry)]).
    """
    numbers = {"": 0}
    steps: list[tuple[int, str]] = []
    groups: dict[int, list[tuple[str, str]]] = {}
    for name in names:
        *path, leaf = name.split(".")
        for depth, key in enumerate(path):
            if (module := ".".join(path[: depth + 1])) not in numbers:
                steps.append((numbers[".".join(path[:depth])], key))
                numbers[module] = len(steps)
        groups.setdefault(numbers[".".join(path)], []).append((leaf, name))
    return steps, list(groups.items())


def _has_entry(model: nn.Module, name: str) -> bool:
    module: nn.Module | None = model
    *path, leaf = name.split(".")
    for key in path:
        module = None if module is None else module._modules.get(key)
    return module is not None and isinstance(_table(module, leaf).get(leaf), Tensor)


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
            raise FsclError(
                f"{type(model).__name__} has no entry {name!r}; is it the network that the task was stored from?"
            )
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


def _table(module: nn.Module, leaf: str) -> dict[str, Any]:
    """The dict in which a module keeps the tensor of this name."""
    if leaf in module._parameters:
        return module._parameters
    return module._buffers if leaf in module._buffers else vars(module)


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


def unkept_values(model: nn.Module) -> dict[str, str]:
    """Digests of values that may decide what a network computes but are not among its entries, by dotted name.

    These are floating-point numbers, NumPy arrays, and containers of them or of tensors, where a module holds them as
    plain attributes; and what ``get_extra_state`` returns. Integers are left out, because they are nearly always
    counters or sizes and do not change outputs.
    """
    values: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, AtomConv2d):  # its plain values are filters composed from entries
            continue
        attributes = {name: value for name, value in vars(module).items() if name not in _TORCH_ATTRIBUTES}
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            attributes["get_extra_state()"] = module.get_extra_state()
        for name, value in attributes.items():
            if not isinstance(value, Tensor) and (parts := list(_numbers_in(value))):
                digest = hashlib.sha256()
                for part in parts:
                    digest.update(part)
                values[f"{path}.{name}" if path else name] = digest.hexdigest()
    return values


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))


def _numbers_in(value: Any, depth: int = 0) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        computed = isinstance(value, nn.Parameter) or value.grad_fn is not None
        if not computed and value.layout is torch.strided and not value.is_quantized:
            yield bytes_of(value)
    elif isinstance(value, float | complex):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc":
        yield value.tobytes()
    elif isinstance(value, Mapping | list | tuple | set | deque) and depth < 4:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers_in(item, depth + 1)


def copied(tensor: Tensor) -> Tensor:
    """A frozen copy. The copy of a parameter is a parameter, so that a network can use it without conversion."""
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def fingerprint_of(coefficients: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in coefficients.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
