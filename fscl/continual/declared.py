"""What learners declare about themselves.

Learners of fscl and of users declare it by class attributes; the tables below declare it for Avalanche's learners. Each
attribute is looked up on the strategy and on its plugins:

- ``transient``: names of attributes that a checkpoint leaves out. They are made anew for each experience, or when the
  strategy is built.
- ``own_loss``: True if the learner's loss is not always the criterion that the strategy was given.
- ``scenarios``: the scenarios whose streams it can learn, see :class:`fscl.continual.Stream`; by default all.
"""

from collections.abc import Mapping
from typing import Any, get_args

from avalanche.training import DER, ER_ACE, ER_AML, FeatureReplay
from avalanche.training.plugins import AGEMPlugin, GEMPlugin, MIRPlugin, RARPlugin

from fscl.continual.stream import Scenario

__all__ = ["AVALANCHE_OWN_LOSS", "AVALANCHE_TRANSIENT", "has_own_loss", "scenarios_of", "transient_names"]

# the replayed part of a mini-batch, and the loader that makes it
REPLAY_ATTRIBUTES = ("replay_loader", "mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out", "batch_logits")
AVALANCHE_TRANSIENT: Mapping[type, tuple[str, ...]] = {
    AGEMPlugin: ("buffer_dataloader", "buffer_dliter", "reference_gradients"),
    GEMPlugin: ("G",),
    **dict.fromkeys((MIRPlugin, RARPlugin, DER, ER_ACE, ER_AML, FeatureReplay), REPLAY_ATTRIBUTES),
}
AVALANCHE_OWN_LOSS = (DER, ER_ACE)


def transient_names(owner: Any) -> frozenset[str]:
    """The attributes of a plugin or strategy that its class or a base class declares transient."""
    return frozenset(
        name
        for base in type(owner).__mro__
        for name in (*vars(base).get("transient", ()), *AVALANCHE_TRANSIENT.get(base, ()))
    )


def has_own_loss(strategy: Any) -> bool:
    """Whether a strategy or one of its plugins uses another loss than the criterion."""
    declared = any(getattr(part, "own_loss", False) for part in _strategy_and_plugins(strategy))
    return declared or isinstance(strategy, AVALANCHE_OWN_LOSS)


def scenarios_of(strategy: Any) -> list[Scenario]:
    """The scenarios that a strategy and all its plugins can learn."""
    known = get_args(Scenario)
    return [
        name
        for name in known
        if all(name in getattr(part, "scenarios", known) for part in _strategy_and_plugins(strategy))
    ]


def _strategy_and_plugins(strategy: Any) -> tuple[Any, ...]:
    return strategy, *strategy.plugins
