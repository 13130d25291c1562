"""Copies networks and replaces modules in them, also where lists, attributes or functions hold these modules."""

import copy
import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from fscl.atoms.layers import AtomConv2d
from fscl.errors import FsclError

__all__ = ["Reference", "copied_network", "copy_with_replaced", "references"]

REGISTERED = ("_parameters", "_buffers", "_modules")
DEPTH = 8  # of nested containers


class Reference(NamedTuple):
    """A module or parameter that is held in a second place, besides the one where it is registered.

    Attributes:
        path: this second place, as a reader would write it: ``blocks.order[0]``.
        target: the module or parameter.
        holder: the list or dict in which it can be replaced; None if it cannot be, as in a tuple or a function.
        key: its index or key in ``holder``.
    """

    path: str
    target: nn.Module | nn.Parameter
    holder: list[Any] | dict[Any, Any] | None
    key: Any


def references(model: nn.Module) -> Iterator[Reference]:
    """All references from the plain attributes and hooks of a network's modules.

    >>> net = nn.Sequential(nn.Conv2d(1, 1, 3))
    >>> net.order = [net[0]]
    >>> [(reference.path, reference.target is net[0]) for reference in references(net)]
    [('order[0]', True)]
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        attributes = vars(module)
        for name in [name for name in attributes if name not in REGISTERED]:
            where = f"{path}.{name}" if path else name
            yield from _within(attributes[name], where, attributes, name, seen, DEPTH)


def _within(value: Any, path: str, holder: Any, key: Any, seen: set[int], depth: int) -> Iterator[Reference]:
    if isinstance(value, nn.Module | nn.Parameter):
        yield Reference(path, value, holder, key)
        return
    if isinstance(value, str | bytes | int | float | complex | type | ModuleType) or value is None:
        return
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    items: Iterator[tuple[Any, str, Any, Any]]
    if isinstance(value, list | deque):
        items = ((item, f"{path}[{i}]", value, i) for i, item in enumerate(value))
    elif isinstance(value, dict):
        items = ((item, f"{path}[{k!r:.40}]", value, k) for k, item in value.items())
    elif isinstance(value, Mapping):
        items = ((item, f"{path}[{k!r:.40}]", None, None) for k, item in value.items())
    else:
        items = ((item, f"{path}{place}", None, None) for item, place in _fixed(value))
    for item in list(items):
        yield from _within(*item, seen, depth - 1)
    if isinstance(value, Mapping):
        for k in value:
            yield from _within(k, f"a key of {path}", None, None, seen, depth - 1)


def _fixed(value: Any) -> Iterator[tuple[Any, str]]:
    """What an object holds but cannot have replaced, each with its place in the object."""
    if isinstance(value, tuple):
        yield from ((item, f"[{i}]") for i, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((item, "") for item in value)
    elif isinstance(value, functools.partial):
        yield value.func, ""
        yield value.args, ""
        yield value.keywords, ""
    elif isinstance(value, MethodType):
        yield value.__self__, f".{value.__name__}"
        yield value.__func__, ""
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield cell.cell_contents, f" (its variable {name!r})"
            except ValueError:  # not yet assigned
                continue
        yield value.__defaults__, ""
        yield value.__kwdefaults__, ""
    elif isinstance(value, weakref.ref):
        yield value(), ""
    elif type(value).__module__.partition(".")[0] not in ("torch", "builtins"):
        yield from ((item, f".{name}") for name, item in getattr(value, "__dict__", {}).items())


def copied_network(model: nn.Module, parts: Mapping[str, nn.Module | nn.Parameter], advice: str) -> nn.Module:
    """A copy of a network. ``deepcopy`` does not copy functions, so a hook may still hold a part of the original.

    Args:
        model: the network.
        parts: the parts that the copy must not share with the original, by name.
        advice: the end of the message if it does.

    Raises:
        FsclError: a tensor cannot be copied, or a function in the copy still holds one of the parts.
    """
    try:
        result = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise FsclError(f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]})") from error
    names = {id(part): name for name, part in parts.items()}
    for reference in references(result):
        if (name := names.get(id(reference.target))) is not None:
            raise FsclError(
                f"{reference.path} of {type(model).__name__} holds a part of the network, which a copy would share "
                f"with it: {name or 'the network itself'!r}; {advice}"
            )
    return result


def copy_with_replaced(model: nn.Module, new: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """A copy in which ``new(name, module)`` replaces each module of the copy, unless it is None.

    A module that is used twice gets one replacement. Replacements keep the hooks, attributes and children that were
    attached to their modules.

    Raises:
        FsclError: the network cannot be copied, or a module is also held where it cannot be replaced.
    """
    result = copied_network(
        model,
        dict(model.named_modules()),
        "add this function or hook after the copy, or use a method of the module instead",
    )
    replaced: dict[int, nn.Module | None] = {}
    parameters: dict[int, str] = {}  # of modules that are replaced, with the names of these modules
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for path, parent in result.named_modules():
        for key, child in parent._modules.items():  # named_children() leaves out second names
            if child is None:
                continue
            if id(child) not in replaced:
                name = f"{path}.{key}" if path else key
                replaced[id(child)] = replacement = new(name, child)
                if replacement is not None:
                    _carry_over(name, child, replacement)
                    gone = set(child.parameters(recurse=False)) - set(replacement.parameters(recurse=False))
                    parameters |= {id(parameter): name for parameter in gone}
            if (replacement := replaced[id(child)]) is not None:
                places.append((parent, key, replacement))
    for reference in list(references(result)):
        target = replaced.get(id(reference.target))
        name = parameters.get(id(reference.target))
        if target is not None and reference.holder is not None:
            reference.holder[reference.key] = target
        elif target is not None or name is not None:
            part = "a convolution" if target is not None else f"the weight of {name}"
            raise FsclError(
                f"{reference.path} of {type(model).__name__} holds {part}, where it cannot be replaced; hold "
                "the module in a list or a dict, or add it to skip"
            )
    for parent, key, replacement in places:  # last, so that the ids above stay those of living modules
        setattr(parent, key, replacement)
    return result


HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
STATE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"
)  # fmt: skip
ORDINARY_CONV = frozenset(vars(nn.Conv2d(1, 1, 1)))
ORDINARY_LAYER = frozenset(vars(AtomConv2d(1, 1, 1))) | {"_composed", "_may_change"}
PARAMETERS = ("weight", "bias", "coefficients", "atoms")


def _carry_over(name: str, source: nn.Module, target: nn.Module) -> None:
    """Gives the replacement of a module the hooks, attributes and children that were attached to the module."""
    if hooked := next((hooks for hooks in STATE_HOOKS if getattr(source, hooks, None)), None):
        raise FsclError(
            f"{name}: has {hooked}, which refer to entries by their old names; remove them, or add it to skip"
        )
    for attribute in HOOKS:
        if attribute in vars(source):
            vars(target)[attribute] = vars(source)[attribute]
    ordinary = ORDINARY_LAYER if isinstance(source, AtomConv2d) else ORDINARY_CONV
    attributes = {n: v for n, v in vars(source).items() if n not in ordinary}
    tables = ("_parameters", "_buffers", "_modules")
    additions = {t: {n: v for n, v in vars(source)[t].items() if n not in PARAMETERS} for t in tables}
    for attribute in [*attributes, *(n for table in additions.values() for n in table)]:
        if hasattr(target, attribute):
            raise FsclError(f"{name}: has an attribute {attribute!r}, which an atom layer needs; add it to skip")
    vars(target).update(attributes)
    for table, values in additions.items():
        vars(target)[table].update(values)
    target._non_persistent_buffers_set |= source._non_persistent_buffers_set
