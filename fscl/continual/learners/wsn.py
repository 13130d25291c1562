"""Winning subnetworks: a task learns which weights it uses, its own and earlier tasks', along with the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fscl.continual.learner import PluginStrategy
from fscl.continual.learners.masks import MaskPlugin, top_share
from fscl.errors import FsclError

__all__ = ["WSN", "WSNPlugin"]


class WSNPlugin(MaskPlugin):
    """Learns a score for each weight; in every layer a task uses those with the highest, whichever task trained them.

    Scores are trained with the weights, by an optimizer of the same kind at the same learning rate but without decay. A
    mask has no gradient, so a score gets that of the factor, one or zero, by which its weight is multiplied
    (straight-through), times the inverse of the layer's weights' root mean square: like that, scores, which start in
    the range of freshly made weights, move as fast as weights do. A weight is trained while it is in the present mask
    and was in no earlier task's. Scores and weights go on from task to task.

    Args:
        capacity: share of each layer's weights that a task uses.

    Attributes:
        scores: by weight; they are needed to learn another task.

    Raises:
        FsclError: the capacity is not above 0 and at most 1.

    References:
        Kang et al. Forget-free Continual Learning with Winning Subnetworks. ICML 2022.

    Example:
        >>> plugin = WSNPlugin(capacity=0.3)
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.masks
        {}
    """

    def __init__(self, capacity: float = 0.3) -> None:
        super().__init__()
        if not 0 < capacity <= 1:
            raise FsclError(f"capacity is {capacity}; it must be above 0 and at most 1")
        self.capacity = capacity
        self.scores: dict[str, Tensor] = {}
        # of the experience in training: weights without a mask, those of them that may not change, 1 where they may
        # change, and 1 where the present mask lets them through
        self._latent: dict[str, Tensor] = {}
        self._frozen: dict[str, Tensor] = {}
        self._free: dict[str, Tensor] = {}
        self._mask: dict[str, Tensor] = {}
        self._optimizer: Optimizer | None = None

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        if not self.scores:
            for name, weight in self.shared.items():
                self.scores[name] = torch.empty_like(weight).uniform_(-1, 1) / math.sqrt(weight[0].numel())
        for name, weight in self.shared.items():
            used = self.used(name)
            self._latent[name] = weight.clone()
            self._frozen[name], self._free[name] = weight.where(used, 0), (~used).to(weight.dtype)
        optimizer = strategy.optimizer
        self._optimizer = type(optimizer)(list(self.scores.values()), **{**optimizer.defaults, "weight_decay": 0})
        self._select(self.weights(strategy.model))

    @torch.no_grad()
    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Hands the gradient of what was multiplied to weights and scores, and the optimizer the weights themselves."""
        assert self._optimizer is not None
        for name, weight in self.weights(strategy.model).items():
            latent = self._latent[name]
            if weight.grad is not None:
                self.scores[name].grad = weight.grad * latent / latent.square().mean().sqrt().clamp(min=1e-8)
                weight.grad.mul_(self._mask[name]).mul_(self._free[name])
            weight.copy_(latent)
        settings = {k: v for k, v in strategy.optimizer.param_groups[0].items() if k not in ("params", "weight_decay")}
        self._optimizer.param_groups[0].update(settings)  # a schedule has changed them

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        assert self._optimizer is not None
        self._optimizer.step()
        weights = self.weights(strategy.model)
        for name, weight in weights.items():  # momentum and decay have moved what is frozen, too
            torch.mul(weight, self._free[name], out=self._latent[name]).add_(self._frozen[name])
        self._select(weights)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        masks = {name: mask.bool() for name, mask in self._mask.items()}
        for name, weight in self.shared.items():
            self.shared[name] = self._latent[name].where(self._free[name].bool(), weight)
            self.scores[name].grad = None
        self.keep(strategy, masks)
        self._latent, self._frozen, self._free, self._mask, self._optimizer = {}, {}, {}, {}, None
        super().after_training_exp(strategy, **kwargs)

    def shared_memory(self) -> dict[str, int]:
        return {**super().shared_memory(), "scores": sum(score.nbytes for score in self.scores.values())}

    def _select(self, weights: dict[str, nn.Parameter]) -> None:
        """Masks of the present scores, and the weights that they let through."""
        for name, weight in weights.items():
            self._mask[name] = top_share(self.scores[name], self.capacity).to(weight.dtype)
            torch.mul(self._latent[name], self._mask[name], out=weight)


class WSN(PluginStrategy, wsn=WSNPlugin):
    """Winning subnetworks: an Avalanche strategy with :class:`WSNPlugin` built in.

    Args:
        capacity: as in :class:`WSNPlugin`.
        plugins: more plugins; they run after a task's network is kept.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> strategy = WSN(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), capacity=0.5, evaluator=None)
        >>> strategy.wsn.capacity
        0.5
    """

    wsn: WSNPlugin
