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

BATCH = ("replay_loader", "mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out", "batch_logits")
# attributes that are made anew for each experience, or by whoever builds the strategy, by the class that has them
TRANSIENT = {
    "fscl.continual.acceleration.Acceleration": ("_scaler",),
    "fscl.continual.evaluate.FeatureRecorder": ("_kept", "_tap"),
    "fscl.continual.evaluate.StartRecorder": ("_tasks", "_device"),
    "fscl.continual.masks.MaskPlugin": ("_kept",),
    "fscl.continual.repaired._EWCPlugin": ("_anchors",),
    "fscl.continual.schedule.LearningRateSchedule": ("_scheduler",),
    "fscl.continual.switching.TaskSwitchPlugin": ("_before", "_random", "_heads", "_shown"),
    "fscl.continual.trainer._ProgressPlugin": ("_progress",),
    "avalanche.training.plugins.agem.AGEMPlugin": ("buffer_dataloader", "buffer_dliter", "reference_gradients"),
    "avalanche.training.plugins.gem.GEMPlugin": ("G",),
    "avalanche.training.plugins.mir.MIRPlugin": BATCH,
    "avalanche.training.plugins.rar.RARPlugin": BATCH,
    "avalanche.training.supervised.der.DER": BATCH,
    "avalanche.training.supervised.er_ace.ER_ACE": BATCH,
    "avalanche.training.supervised.er_aml.ER_AML": BATCH,
    "avalanche.training.supervised.feature_replay.FeatureReplay": BATCH,
}


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
    classes = (f"{one.__module__}.{one.__qualname__}" for one in type(owner).__mro__)
    left_out |= {name for one in classes for name in TRANSIENT.get(one, ())}
    return {
        name: codec.encode(value, f"{type(owner).__name__}.{name}")
        for name, value in vars(owner).items()
        if name not in left_out and not is_code(value)
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
