"""The state of a strategy and its plugins as plain data, and back."""

import functools
import warnings
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import SGD

from fscl.continual.codec import Codec, is_code

__all__ = ["plugin_state", "restore_plugins", "restore_strategy", "strategy_state"]

# made anew for each experience, or by whoever builds the strategy
TRANSIENT = (
    "_anchors",
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
    "buffer_dataloader",
    "buffer_dliter",
    "replay_loader",
    "reference_gradients",
    "G",
    "mb_buffer_x",
    "mb_buffer_y",
    "mb_buffer_tid",
    "mb_buffer_out",
    "batch_logits",
)


def plugin_state(strategy: Any, codec: Codec) -> list[dict[str, Any]]:
    """The attributes of each plugin that are data.

    Raises:
        FsclError: a plugin holds anything else, so that it cannot be resumed.
    """
    return [
        {} if isinstance(plugin, EvaluationPlugin) else _attributes(plugin, frozenset(), codec)
        for plugin in strategy.plugins
    ]


def strategy_state(strategy: Any, codec: Codec) -> dict[str, Any]:
    """The data that a strategy's own class keeps on it, beside what every Avalanche strategy has.

    Raises:
        FsclError: it cannot be written as plain data, so that it cannot be resumed.
    """
    others = {name for name, value in vars(strategy).items() if any(value is plugin for plugin in strategy.plugins)}
    return _attributes(strategy, _common_attributes() | others, codec)


def restore_plugins(strategy: Any, state: list[dict[str, Any]], codec: Codec, device: Any) -> None:
    """Gives each plugin the attributes that :func:`plugin_state` found in it."""
    for plugin, attributes in zip(strategy.plugins, state, strict=True):
        _restore(plugin, attributes, codec, device)


def restore_strategy(strategy: Any, state: dict[str, Any], codec: Codec, device: Any) -> None:
    """Gives the strategy the attributes that :func:`strategy_state` found on it."""
    _restore(strategy, state, codec, device)


def _attributes(owner: Any, left_out: frozenset[str], codec: Codec) -> dict[str, Any]:
    return {
        name: codec.encode(value, f"{type(owner).__name__}.{name}")
        for name, value in vars(owner).items()
        if name not in left_out and name not in TRANSIENT and not is_code(value)
    }


def _restore(owner: Any, attributes: dict[str, Any], codec: Codec, device: Any) -> None:
    for name, value in attributes.items():
        setattr(owner, name, codec.decode(value, device, getattr(owner, name, None)))


@functools.cache
def _common_attributes() -> frozenset[str]:
    model = nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = SupervisedTemplate(model=model, optimizer=SGD(model.parameters(), 0.1), evaluator=None)
    return frozenset(vars(plain))
