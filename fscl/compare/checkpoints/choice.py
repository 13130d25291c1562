"""Which network of a file is read: files hold averages, several networks, optimizers and options side by side."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fscl.compare.checkpoints.stand_ins import NumberArray
from fscl.errors import FsclError, printable

__all__ = ["ChosenNetwork", "choose_network"]

NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
SHOWN = 8  # names of networks in a message


class ChosenNetwork(NamedTuple):
    """A network in a file, and the keys of other networks in the file, if none was asked for."""

    state: Mapping[Any, Any]
    unread: list[str]


def choose_network(file: str, content: Any, key: str | None) -> ChosenNetwork:
    """The network in the content of a file that ``key`` names, or that is the obvious one.

    The obvious one is under a usual key, such as ``state_dict``, or is the only one.

    Args:
        file: the file's name, for messages.
        content: what the file holds.
        key: the key that holds the network, keys joined by dots, or what the names of its entries begin with.

    Raises:
        FsclError: there are several and none is obvious, there is none of this name, or a mapping holds itself.

    Example:
        >>> import torch
        >>> nets = {"generator": {"0.weight": torch.ones(2, 2)}, "critic": {"0.weight": torch.zeros(2, 2)}}
        >>> choose_network("a.pt", nets, "critic").state["0.weight"].sum()
        tensor(0.)
    """
    if not isinstance(content, Mapping):
        return ChosenNetwork({}, [])
    holding = _holding_networks(content)
    mapping, rest, passed = content, key, {0}
    while True:
        if id(mapping) in passed:
            raise FsclError(f"{file}: not the state of a network, but a mapping that holds itself")
        passed.add(id(mapping))
        if rest is not None and (name := _first_key(mapping, rest)) is not None:
            mapping, rest = mapping[name], rest[len(name) + 1 :] or None
            continue
        networks = {name: mapping[name] for name in mapping if isinstance(name, str) and id(mapping[name]) in holding}
        usual = [name for name in NESTED if name in networks]
        # an unknown name will do, if only one mapping holds tensors
        direct = [name for name, value in networks.items() if _is_state(value)]
        names = usual or ([] if _is_state(mapping) else direct or list(networks))
        if len({id(networks[name]) for name in names}) > 1:
            several = f"{len(networks)} networks" if rest is None else f"no network {printable(key or '')!r}"
            raise FsclError(f"{file}: holds {several}; --state takes {_listed(networks)}")
        if not names:
            break
        mapping = networks[names[0]]
    if rest is not None:
        names = [name for name in mapping if isinstance(name, str)]
        entries = {name.removeprefix(f"{rest}."): mapping[name] for name in names if name.startswith(f"{rest}.")}
        if not entries:
            options = [name for name in content if isinstance(name, str) and id(content[name]) in holding]
            options += dict.fromkeys(name.partition(".")[0] for name in names if "." in name)
            raise FsclError(f"{file}: holds no network {printable(key or '')!r}; --state takes {_listed(options)}")
        mapping = entries
    unread = [name for name in content if id(content[name]) in holding - passed and isinstance(name, str)]
    return ChosenNetwork(mapping, unread if key is None else [])


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(repr(printable(name)) for name in list(names)[:SHOWN])
    return f"{shown or 'nothing here'}{f' and {len(names) - SHOWN} more' * (len(names) > SHOWN)}"


def _first_key(mapping: Mapping[Any, Any], path: str) -> str | None:
    """The key of an inner mapping that is this path, or that it begins with: ``a.b`` may be ``b`` within ``a``."""
    if isinstance(mapping.get(path), Mapping):
        return path
    keys = (key for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Mapping))
    return next((key for key in keys if path.startswith(f"{key}.")), None)


def _holding_networks(content: Mapping[Any, Any]) -> set[int]:
    """The ids of all mappings that are the state of a network, or hold one at any depth; without optimizers."""
    holders: dict[int, list[int]] = {}  # by id, the mappings that hold it, as one mapping may be held by many
    states, todo = [], [content]
    holders[id(content)] = []
    while todo:
        mapping = todo.pop()
        if _is_state(mapping):
            states.append(id(mapping))
        for name, value in mapping.items():
            if isinstance(name, str) and isinstance(value, Mapping) and "param_groups" not in value:
                if id(value) not in holders:
                    todo.append(value)
                holders.setdefault(id(value), []).append(id(mapping))
    holding, reached = set(states), set(states)
    while reached:
        reached = {holder for held in reached for holder in holders[held]} - holding
        holding.update(reached)
    return holding


def _is_state(mapping: Any) -> bool:
    """Whether a mapping holds weights itself: tensors of two dimensions or more."""
    return isinstance(mapping, Mapping) and any(
        isinstance(name, str) and isinstance(value, Tensor | NumberArray) and value.ndim > 1
        for name, value in mapping.items()
    )
