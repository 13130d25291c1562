"""The state of a strategy's plugins as plain data: no pickled code in, none executed when it is read."""

import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.optim import SGD

from fscl.atoms.bank import AtomBank
from fscl.errors import FsclError

__all__ = ["SAFE_CLASSES", "plugin_state", "restore_plugins", "strategy_state", "tensor_bytes"]

# classes whose instances hold tensors and plain values only; a checkpoint may name no others
SAFE_CLASSES: list[Any] = [AtomBank, set]
PARAM = "fscl: name of ParamData"  # an Avalanche class that holds a function, so that it is written in parts
CODE = (type, FunctionType, BuiltinFunctionType, MethodType)
TRANSIENT = (
    "_before",
    "_random",
    "_heads",
    "_shown",
    "_scheduler",
    "_progress",
    "_tasks",
    "_device",
    "_scaler",
    "_kept",
    "_tap",
)


def plugin_state(strategy: Any) -> list[dict[str, Any]]:
    """The attributes of each plugin that are data: tensors, numbers, text, containers of them, banks.

    Raises:
        FsclError: a plugin holds anything else, so that it cannot be resumed.
    """
    return [_attributes(plugin) for plugin in strategy.plugins]


def strategy_state(strategy: Any) -> dict[str, Any]:
    """The data that a strategy's own class keeps on it, beside what every Avalanche strategy has.

    Raises:
        FsclError: it is a buffer or a data set, say, so that it cannot be resumed.
    """
    found = {}
    for name, value in vars(strategy).items():
        if name in _common_attributes() or value in strategy.plugins or isinstance(value, CODE):
            continue
        if not _is_data(value):
            raise FsclError(
                f"{type(strategy).__name__}.{name} is a {type(value).__name__}: no plain data to resume from"
            )
        found[name] = _plain(value)
    return found


@functools.cache
def _common_attributes() -> frozenset[str]:
    model = nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = SupervisedTemplate(model=model, optimizer=SGD(model.parameters(), 0.1), evaluator=None)
    return frozenset(vars(plain))


def restore_plugins(strategy: Any, state: list[dict[str, Any]], device: Any) -> None:
    """Gives each plugin the attributes that :func:`plugin_state` found in it."""
    for plugin, attributes in zip(strategy.plugins, state, strict=True):
        for name, value in attributes.items():
            revived, own = _revived(value, device), getattr(plugin, name, None)
            if isinstance(own, defaultdict):
                revived = defaultdict(own.default_factory, revived)
            setattr(plugin, name, revived)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested data."""
    if isinstance(value, Tensor):
        return value.nbytes
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
        if name in TRANSIENT or isinstance(value, CODE):
            continue
        if not _is_data(value):
            raise FsclError(f"{type(plugin).__name__}.{name} is a {type(value).__name__}: no plain data to resume from")
        found[name] = _plain(value)
    return found


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_data(k) and _is_data(v) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return all(map(_is_data, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str | AtomBank | ParamData | torch.device)


def _plain(value: Any) -> Any:
    if isinstance(value, ParamData):
        return {PARAM: value.name, "data": value.data}
    return _mapped(value, _plain)


def _revived(value: Any, device: Any) -> Any:
    if isinstance(value, Tensor | AtomBank):
        return value.to(device)
    if isinstance(value, dict) and PARAM in value:
        return ParamData(value[PARAM], init_tensor=value["data"].to(device), device=device)
    return _mapped(value, lambda item: _revived(item, device))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers around changed values."""
    if isinstance(value, dict):
        return {k: change(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([change(item) for item in value])
    return value
