"""Learning rate by experience and by step."""

from typing import Any, Literal

from avalanche.core import SupervisedPlugin
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

__all__ = ["LearningRateSchedule"]


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
