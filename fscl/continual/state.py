"""The state of a strategy's plugins as plain data: no pickled code in, none executed when it is read."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.utils import ParamData
from torch import Tensor

from fscl.atoms.bank import AtomBank
from fscl.errors import FsclError

__all__ = ["SAFE_CLASSES", "plugin_state", "restore_plugins", "tensor_bytes"]

# classes whose instances hold tensors and plain values only; a checkpoint may name no others
SAFE_CLASSES: list[Any] = [AtomBank, ParamData, defaultdict, dict, set]
TRANSIENT = ("_before", "_random", "_heads", "_shown", "_scheduler", "_progress", "_stream", "_device")


def plugin_state(strategy: Any) -> list[dict[str, Any]]:
    """The attributes of each plugin that are data: tensors, numbers, text, containers of them, banks.

    Raises:
        FsclError: a plugin holds anything else, so that it cannot be resumed.
    """
    return [_attributes(plugin) for plugin in strategy.plugins]


def restore_plugins(strategy: Any, state: list[dict[str, Any]], device: Any) -> None:
    """Gives each plugin the attributes that :func:`plugin_state` found in it."""
    for plugin, attributes in zip(strategy.plugins, state, strict=True):
        for name, value in attributes.items():
            setattr(plugin, name, _moved(value, device))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested data."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, ParamData):
        return value.data.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple | set):
        return sum(map(tensor_bytes, value))
    return 0


def _attributes(plugin: Any) -> dict[str, Any]:
    if isinstance(plugin, EvaluationPlugin):
        return {}
    found = {}
    for name, value in vars(plugin).items():
        if name in TRANSIENT or callable(value):
            continue
        if not _is_data(value):
            raise FsclError(f"{type(plugin).__name__}.{name} is a {type(value).__name__}: no plain data to resume from")
        found[name] = value
    return found


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_data(k) and _is_data(v) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return all(map(_is_data, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str | AtomBank | ParamData | torch.device)


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, ParamData):
        value.data = value.data.to(device)
        return value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _moved(item, device)
        return value
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value
