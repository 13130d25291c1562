"""Independent networks: the upper bound of what a learner that keeps tasks apart can reach without transfer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.entries import copied, live_state, within
from fscl.continual.learner import PluginStrategy
from fscl.continual.task_switch import LabelSwitchPlugin, head_names

__all__ = ["FromScratch", "FromScratchPlugin"]


class FromScratchPlugin(LabelSwitchPlugin):
    """Trains a network of its own for each task, all from the same initial weights, and keeps every one.

    Unlike ``avalanche.training.FromScratchTraining``, which keeps the last network only, each task is evaluated with
    its own. Beside ``Naive`` it is the upper bound for methods that isolate tasks.

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
            self._initial = _network(strategy.model, None)

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        known = [self.networks[t] for t in strategy.experience.task_labels if t in self.networks]
        state = live_state(strategy.model)
        for name, tensor in (known[0] if known else self._initial).items():
            state[name].copy_(tensor)
        strategy.optimizer.state.clear()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for task in strategy.experience.task_labels:
            self.networks[task] = _network(strategy.model, task)
        super().after_training_exp(strategy, **kwargs)

    def memory(self) -> dict[str, int]:
        sizes = [sum(t.nbytes for t in network.values()) for network in self.networks.values()]
        return {"other": round(sum(sizes) / max(len(sizes), 1))}

    def shared_memory(self) -> dict[str, int]:
        return {}


class FromScratch(PluginStrategy, from_scratch=FromScratchPlugin):
    """An independent network a task: an Avalanche strategy with :class:`FromScratchPlugin` built in.

    Args:
        plugins: more plugins; they run after the networks are kept.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> strategy = FromScratch(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.from_scratch.networks
        {}
    """

    from_scratch: FromScratchPlugin


def _network(model: nn.Module, task: int | None) -> dict[str, Tensor]:
    """Everything but other tasks' heads; without a task, nothing of any head."""
    heads = head_names(model) or []
    mine = head_names(model, task) or [] if task is not None else []
    return {n: copied(t) for n, t in live_state(model).items() if within(n, mine) or not within(n, heads)}
