"""Finds modules and parameters that a network also holds outside its registry: in lists, attributes, functions."""

import functools
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Reference", "references"]

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
