"""The optimizer that a recipe names, fused where the device can, and its learning rate by experience and by step."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from fscl.errors import FsclError

__all__ = ["LearningRateSchedule", "build_optimizer"]


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        name: ``adam``, or ``sgd`` with Nesterov's momentum.
        parameters: what it trains.
        lr, weight_decay: as in PyTorch.
        momentum: of SGD; the decay of Adam's first moment.
        device: where the parameters will be.

    Raises:
        FsclError: there is no optimizer of that name.

    Example:
        >>> optimizer = build_optimizer("sgd", nn.Linear(2, 2).parameters(), 0.1, 0.9, 1e-3, torch.device("cpu"))
        >>> optimizer.defaults["nesterov"]
        True
    """
    fused = device.type in ("cpu", "cuda")  # one pass over a parameter, in place of one an operation
    if name == "adam":
        return torch.optim.Adam(parameters, lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=fused)
    if name != "sgd":
        raise FsclError(f"unknown optimizer {name!r}; known optimizers: adam, sgd")
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
        lr: learning rate of the first experience; the peak of ``one-cycle``.
        lr_next: of the others; the same by default.
        schedule: ``one-cycle``, ``cosine`` to zero, or ``constant``.
        momentum: of the optimizer; ``one-cycle`` moves it between 0.05 less and 0.05 more, against the learning rate.

    Example:
        >>> plugins = [LearningRateSchedule(0.05, lr_next=0.02)]  # Naive(..., plugins=plugins)
    """

    supports_distributed = True
    transient = ("_scheduler",)

    def __init__(
        self,
        lr: float,
        lr_next: float | None = None,
        schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle",
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.lr_next = lr if lr_next is None else lr_next
        self.schedule = schedule
        self.momentum = momentum
        self._scheduler: LRScheduler | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        optimizer = strategy.optimizer
        optimizer.state.clear()
        lr = self.lr if strategy.clock.train_exp_counter == 0 else self.lr_next
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = lr
        steps = strategy.train_epochs * len(strategy.dataloader)
        if self.schedule == "one-cycle":
            # one step more than there are: the scheduler's constructor takes the first
            low, high = round(max(self.momentum - 0.05, 0), 6), round(min(self.momentum + 0.05, 0.999), 6)
            self._scheduler = OneCycleLR(
                optimizer,
                lr,
                total_steps=steps + 1,
                cycle_momentum=self.momentum > 0,
                base_momentum=low,
                max_momentum=high,
            )
        elif self.schedule == "cosine":
            self._scheduler = CosineAnnealingLR(optimizer, steps)
        else:
            self._scheduler = None

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._scheduler = None
