"""Independent networks: the upper bound of a learner that keeps tasks apart and has no transfer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.entries import copied, live_state, within
from fscl.continual.learner import PluginStrategy
from fscl.continual.task_switch import LabelSwitchPlugin, head_names

__all__ = ["FromScratch", "FromScratchPlugin"]


class FromScratchPlugin(LabelSwitchPlugin):
    """Trains a separate network for each task, from equal initial weights, and stores all networks.

    Each task is evaluated with its own network. ``avalanche.training.FromScratchTraining`` keeps only the last network.
    This learner is the upper bound of methods that isolate tasks; ``Naive`` is their baseline.

    Example:
        >>> plugin = FromScratchPlugin()
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.networks
        {}
    """

    def __init__(self) -> None:
        super().__init__()
        self.networks: dict[int, dict[str, Tensor]] = {}
        self._initial: dict[str, Tensor] = {}

    def stored(self, task: int) -> Mapping[str, Tensor] | None:
        return self.networks.get(task)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training(strategy, **kwargs)
        if not self._initial:
            self._initial = _task_entries(strategy.model, None)

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        state = live_state(strategy.model)
        for name, tensor in (self.former(strategy.experience) or self._initial).items():
            state[name].copy_(tensor)
        strategy.optimizer.state.clear()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for task in strategy.experience.task_labels:
            self.networks[task] = _task_entries(strategy.model, task)
        super().after_training_exp(strategy, **kwargs)

    def memory(self) -> dict[str, int]:
        sizes = [sum(t.nbytes for t in network.values()) for network in self.networks.values()]
        return {"other": round(sum(sizes) / max(len(sizes), 1))}

    def shared_memory(self) -> dict[str, int]:
        return {}


class FromScratch(PluginStrategy, from_scratch=FromScratchPlugin):
    """An independent network for each task: an Avalanche strategy with :class:`FromScratchPlugin` built in.

    Args:
        plugins: more plugins. They run after the networks are stored.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> strategy = FromScratch(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.from_scratch.networks
        {}
    """

    from_scratch: FromScratchPlugin


def _task_entries(model: nn.Module, task: int | None) -> dict[str, Tensor]:
    """Copies of all entries except other tasks' heads. If ``task`` is None, all heads are left out."""
    heads = head_names(model) or []
    task_heads = head_names(model, task) or [] if task is not None else []
    return {n: copied(t) for n, t in live_state(model).items() if within(n, task_heads) or not within(n, heads)}
