"""Winning subnetworks: each task learns weights, and which of its own and of earlier tasks' weights it uses."""

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
    """Learns a score for each weight. In every layer a task uses the weights with the highest scores.

    These may be weights that earlier tasks have trained. Scores are trained together with the weights, by an optimizer
    of the same class with the same settings, but without weight decay. A mask has no gradient. So a score gets the
    gradient of the factor, one or zero, by which its weight is multiplied (straight-through), divided by the root mean
    square of the layer's weights. Scores start in the range of newly initialised weights, and the division makes them
    move as fast as weights. A weight is trained while it is in the present mask and in no earlier task's mask. A new
    task starts from the scores and weights of the task before.

    Args:
        capacity: share of each layer's weights that a task uses.

    Attributes:
        scores: name of the weight -> its scores. They are needed to learn another task.

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
        # of the experience in training, by name of the weight
        self._latent: dict[str, Tensor] = {}  # weights before the mask is applied
        self._frozen: dict[str, Tensor] = {}  # weights of earlier tasks, and 0 for free ones
        self._free: dict[str, Tensor] = {}  # 1 for weights that may change, else 0
        self._mask: dict[str, Tensor] = {}  # 1 for weights in the present mask, else 0
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
        """Computes the gradients of scores and weights, and puts the weights before masking into the network."""
        assert self._optimizer is not None
        for name, weight in self.weights(strategy.model).items():
            latent = self._latent[name]
            if weight.grad is not None:
                self.scores[name].grad = weight.grad * latent / latent.square().mean().sqrt().clamp(min=1e-8)
                weight.grad.mul_(self._mask[name]).mul_(self._free[name])
            weight.copy_(latent)
        settings = {k: v for k, v in strategy.optimizer.param_groups[0].items() if k not in ("params", "weight_decay")}
        self._optimizer.param_groups[0].update(settings)  # a schedule may have changed them

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        assert self._optimizer is not None
        self._optimizer.step()
        weights = self.weights(strategy.model)
        for name, weight in weights.items():  # momentum and weight decay have changed frozen weights, too
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
        """Computes masks from the present scores, and puts the masked weights into the network."""
        for name, weight in weights.items():
            self._mask[name] = top_share(self.scores[name], self.capacity).to(weight.dtype)
            torch.mul(self._latent[name], self._mask[name], out=weight)


class WSN(PluginStrategy, wsn=WSNPlugin):
    """Winning subnetworks: an Avalanche strategy with :class:`WSNPlugin` built in.

    Args:
        capacity: as in :class:`WSNPlugin`.
        plugins: more plugins. They run after a task's network is stored.
        **arguments: as in ``avalanche.training.Naive``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> strategy = WSN(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), capacity=0.5, evaluator=None)
        >>> strategy.wsn.capacity
        0.5
    """

    wsn: WSNPlugin
