"""What learners declare of themselves, ours and users' by class attributes, Avalanche's in the tables here.

Each is looked up on a strategy and on its plugins:

- ``transient``: names of attributes that are made anew for each experience, or by whoever builds the strategy.
- ``own_loss``: whether the criterion that a strategy is given is not, or not always, its loss.
- ``scenarios``: the scenarios whose streams it can learn, see :class:`fscl.continual.Stream`; all if it says nothing.
"""

from collections.abc import Mapping
from typing import Any, get_args

from avalanche.training import DER, ER_ACE, ER_AML, FeatureReplay
from avalanche.training.plugins import AGEMPlugin, GEMPlugin, MIRPlugin, RARPlugin

from fscl.continual.stream import Scenario

__all__ = ["AVALANCHE_OWN_LOSS", "AVALANCHE_TRANSIENT", "has_own_loss", "scenarios_of", "transient_names"]

# replayed mini-batches, and the loader that makes them
REPLAYED = ("replay_loader", "mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out", "batch_logits")
AVALANCHE_TRANSIENT: Mapping[type, tuple[str, ...]] = {
    AGEMPlugin: ("buffer_dataloader", "buffer_dliter", "reference_gradients"),
    GEMPlugin: ("G",),
    **dict.fromkeys((MIRPlugin, RARPlugin, DER, ER_ACE, ER_AML, FeatureReplay), REPLAYED),
}
AVALANCHE_OWN_LOSS = (DER, ER_ACE)


def transient_names(owner: Any) -> frozenset[str]:
    """The attributes of a plugin or strategy that its class, and those it is derived from, declare transient."""
    return frozenset(
        name
        for kind in type(owner).__mro__
        for name in (*vars(kind).get("transient", ()), *AVALANCHE_TRANSIENT.get(kind, ()))
    )


def has_own_loss(strategy: Any) -> bool:
    """Whether a strategy, or a plugin of it, has a loss that is not the criterion."""
    declared = any(getattr(part, "own_loss", False) for part in _parts(strategy))
    return declared or isinstance(strategy, AVALANCHE_OWN_LOSS)


def scenarios_of(strategy: Any) -> list[Scenario]:
    """The scenarios that fit a strategy and all its plugins."""
    every = get_args(Scenario)
    return [name for name in every if all(name in getattr(part, "scenarios", every) for part in _parts(strategy))]


def _parts(strategy: Any) -> tuple[Any, ...]:
    return strategy, *strategy.plugins
