"""The schedule of the learning rate over the experiences of a stream, as a plugin."""

from typing import Any

from avalanche.core import SupervisedPlugin
from torch.optim.lr_scheduler import LRScheduler

from fscl.optimization import build_schedule
from fscl.settings import Training

__all__ = ["LearningRateSchedule"]


class LearningRateSchedule(SupervisedPlugin):
    """Clears the optimizer's state at each experience, and follows a schedule over the steps of the experience.

    Args:
        training: ``lr``, ``lr_next``, ``schedule`` and ``momentum``, as in :func:`fscl.optimization.build_schedule`.

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
        first = strategy.clock.train_exp_counter == 0
        steps = strategy.train_epochs * len(strategy.dataloader)
        self._scheduler = build_schedule(self._training, optimizer, steps, first)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._scheduler = None
