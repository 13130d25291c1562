"""PackNet: tasks packed into one network by pruning, each trained in the weights that earlier ones left free."""

from typing import Any

import torch
from torch import Tensor

from fscl.continual.learner import PluginStrategy
from fscl.continual.learners.masks import MaskPlugin, top_share
from fscl.errors import FsclError

__all__ = ["PackNet", "PackNetPlugin"]


class PackNetPlugin(MaskPlugin):
    """Trains all free weights, prunes the smallest of each layer, trains the others on and freezes them.

    A task's network is made of its own weights and of all that earlier tasks have frozen. Pruned weights are free for
    the next task, which finds them as they were when they were pruned. Pruning comes within a task's epochs, so that
    the budget of training is that of any other learner, and the learning rate's schedule goes on through it.
    ``avalanche.models.PackNetModel`` takes no network with batch normalisation.

    Args:
        prune_proportion: share of the free weights of each layer that is pruned. To the last of T tasks
            ``prune_proportion ** (T - 1)`` of all weights are free: of 20 tasks 14 % with 0.9 and 0.4 % with 0.75. A
            small network cannot spare as many: its first task has to do with what is left.
        post_prune_share: share of a task's steps that comes after pruning.

    Raises:
        FsclError: an argument is out of its range.

    References:
        Mallya, Lazebnik. PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning. CVPR 2018.

    Example:
        >>> plugin = PackNetPlugin(prune_proportion=0.75)
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.masks
        {}
    """

    def __init__(self, prune_proportion: float = 0.75, post_prune_share: float = 0.3) -> None:
        super().__init__()
        if not 0 < prune_proportion < 1:
            raise FsclError(f"prune_proportion is {prune_proportion}; it must be above 0 and below 1")
        if not 0 <= post_prune_share < 1:
            raise FsclError(f"post_prune_share is {post_prune_share}; it must be at least 0 and below 1")
        self.prune_proportion = prune_proportion
        self.post_prune_share = post_prune_share
        # of the experience in training: 1 where weights may change; what they are elsewhere
        self._free: dict[str, Tensor] = {}
        self._fixed: dict[str, Tensor] = {}
        self._pruned = False
        self._steps = 0

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        self._pruned, self._steps = False, 0
        for name, weight in self.weights(strategy.model).items():
            free = ~self.used(name)
            self._free[name] = free.to(weight.dtype)
            self._fixed[name] = self.shared[name].where(self._visible(strategy, name), 0)
            weight.copy_(self.shared[name].where(free, self._fixed[name]))

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        for name, weight in self.weights(strategy.model).items():  # momentum and decay have moved all of them
            weight.mul_(self._free[name]).add_(self._fixed[name])
        self._steps += 1
        steps = strategy.train_epochs * len(strategy.dataloader)
        if not self._pruned and self._steps >= (1 - self.post_prune_share) * steps:
            self._prune(strategy)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if not self._pruned:  # the training was stopped early
            self._prune(strategy)
        masks = {}
        for name, weight in self.weights(strategy.model).items():
            new = self._free[name].bool()
            masks[name] = self._visible(strategy, name) | new
            self.shared[name] = weight.detach().where(new, self.shared[name])
        self.keep(strategy, masks)
        self._free, self._fixed = {}, {}
        super().after_training_exp(strategy, **kwargs)

    def _visible(self, strategy: Any, name: str) -> Tensor:
        """What the task uses of earlier training: all that is frozen, or its own mask if it is trained again."""
        known = [task for task in strategy.experience.task_labels if task in self.masks]
        return self.mask(known[0], name) if known else self.used(name)

    def _prune(self, strategy: Any) -> None:
        """Gives up all but the largest of the free weights, layer by layer."""
        for name, weight in self.weights(strategy.model).items():
            free = self._free[name].bool()
            self.shared[name] = weight.detach().where(free, self.shared[name])
            keep = torch.zeros_like(free)
            if bool(free.any()):
                keep[free] = top_share(weight[free].abs(), 1 - self.prune_proportion)
            self._free[name] = keep.to(weight.dtype)
            weight.mul_(self._free[name]).add_(self._fixed[name])
        self._pruned = True


class PackNet(PluginStrategy, packnet=PackNetPlugin):
    """PackNet: an Avalanche strategy with :class:`PackNetPlugin` built in.

    Args:
        prune_proportion, post_prune_share: as in :class:`PackNetPlugin`.
        plugins: more plugins; they run after a task's network is kept.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> strategy = PackNet(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.packnet.prune_proportion
        0.75
    """

    packnet: PackNetPlugin
