"""The optimizer that a recipe names, fused where the device can, and its learning rate by experience and by step."""

from collections.abc import Iterable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from fscl.settings import Training

__all__ = ["LearningRateSchedule", "build_optimizer"]


def build_optimizer(
    training: Training, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of the first task.

    Args:
        training: its ``optimizer`` is ``adam``, or ``sgd`` with Nesterov's momentum; its ``momentum`` is that of SGD,
            or the decay of Adam's first moment.
        parameters: what it trains.
        device: where the parameters will be.

    Example:
        >>> optimizer = build_optimizer(Training(), nn.Linear(2, 2).parameters(), torch.device("cpu"))
        >>> optimizer.defaults["nesterov"]
        True
    """
    lr, momentum, weight_decay = training.lr, training.momentum, training.weight_decay
    fused = device.type in ("cpu", "cuda")  # one pass over a parameter, in place of one an operation
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)
    chosen = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=fused)
    if momentum > 0:
        chosen.register_step_pre_hook(_begin_momentum)
    return chosen


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Momentum, of zero, for weights whose first gradient comes after others': fused SGD fails without.

    Such weights are heads of a task of which the exemplars of the first batches have none.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and optimizer.state[weight].get("momentum_buffer") is None:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight.grad)


class LearningRateSchedule(SupervisedPlugin):
    """Starts the optimizer afresh at each experience and follows a schedule, step by step, to the experience's end.

    Args:
        training: its ``lr`` is the learning rate of the first experience and the peak of ``one-cycle``; its ``lr_next``
            that of the others. Its ``schedule`` is ``one-cycle``, ``cosine`` to zero, or ``constant``. ``one-cycle``
            moves the ``momentum`` between 0.05 less and 0.05 more, against the learning rate.

    Example:
        >>> plugins = [LearningRateSchedule(Training(lr=0.05, lr_next=0.02))]  # Naive(..., plugins=plugins)
    """

    supports_distributed = True
    transient = ("_training", "_scheduler")

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training = training
        self._scheduler: LRScheduler | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        optimizer = strategy.optimizer
        optimizer.state.clear()
        training = self._training
        first = strategy.clock.train_exp_counter == 0
        lr = training.lr if first or training.lr_next is None else training.lr_next
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = lr
        steps = strategy.train_epochs * len(strategy.dataloader)
        if training.schedule == "one-cycle":
            # one step more than there are: the scheduler's constructor takes the first
            momentum = training.momentum
            low, high = round(max(momentum - 0.05, 0), 6), round(min(momentum + 0.05, 0.999), 6)
            self._scheduler = OneCycleLR(
                optimizer,
                lr,
                total_steps=steps + 1,
                cycle_momentum=momentum > 0,
                base_momentum=low,
                max_momentum=high,
            )
        elif training.schedule == "cosine":
            self._scheduler = CosineAnnealingLR(optimizer, steps)
        else:
            self._scheduler = None

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._scheduler = None
