"""PackNet: packs tasks into one network by pruning; each task trains the weights that are still free."""

from typing import Any

import torch
from torch import Tensor

from fscl.continual.learner import PluginStrategy
from fscl.continual.learners.masks import MaskPlugin, top_share
from fscl.errors import FsclError

__all__ = ["PackNet", "PackNetPlugin"]


class PackNetPlugin(MaskPlugin):
    """Trains all free weights, prunes the smallest of each layer, trains the rest further and freezes them.

    A task's network consists of its own weights and of all weights that earlier tasks have frozen. Pruned weights are
    free for the next task, and keep the values that they had when they were pruned. A task is pruned within its epochs,
    so that it has as many training steps as with any other learner; the schedule of the learning rate is not
    interrupted. ``avalanche.models.PackNetModel`` does not accept networks with batch normalisation.

    Args:
        prune_proportion: share of the free weights of each layer that is pruned. For the last of T tasks
            ``prune_proportion ** (T - 1)`` of all weights are free: for 20 tasks, 14 % with 0.9 and 0.4 % with 0.75. A
            large share costs a small network accuracy, because its first task keeps few weights.
        post_prune_share: share of a task's steps that come after pruning.

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
        # of the experience in training, by name of the weight
        self._free: dict[str, Tensor] = {}  # 1 for weights that may change, else 0
        self._fixed: dict[str, Tensor] = {}  # the values of weights that may not change, else 0
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
        # momentum and weight decay have changed frozen weights, too
        for name, weight in self.weights(strategy.model).items():
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
        """The frozen weights that the task uses: all of them, or those in its own mask if it is trained again."""
        known = [task for task in strategy.experience.task_labels if task in self.masks]
        return self.mask(known[0], name) if known else self.used(name)

    def _prune(self, strategy: Any) -> None:
        """Prunes the smallest free weights of each layer."""
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
        plugins: more plugins. They run after a task's network is stored.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> strategy = PackNet(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.packnet.prune_proportion
        0.75
    """

    packnet: PackNetPlugin
