"""Tells others what a run measures while it trains: its progress, and the values that its logs show."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_utils import default_metric_name_template, generic_get_metric_name
from torch import Tensor

__all__ = ["Log", "Progress", "Reporter", "accuracy_values", "step_of"]

Progress = Callable[[int, int, int], None]  # experience, epoch, epochs
# A step, scalars by name, and functions by name that draw a figure. Each call has a larger step than the call before.
Log = Callable[[int, Mapping[str, float], Mapping[str, Callable[[], Any]]], None]


class Reporter(SupervisedPlugin):
    """Reports the progress, and logs what is measured under Avalanche's own names. It draws no random numbers.

    A step is the number of training iterations so far plus the number of tasks learned so far. So what is measured
    after a task has a step of its own, also if nothing was trained.

    Args:
        progress: called with (experience, epoch, epochs) after each epoch; None for no progress.

    Attributes:
        log: called with (step, scalars, figures); None logs nothing.
    """

    supports_distributed = False
    transient = ("_progress", "log", "_sums", "_count")

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self._progress = progress
        self.log: Log | None = None
        self._sums: Tensor | None = None  # of the loss and of right answers; on the device until the epoch ends
        self._count = 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._sums, self._count = None, 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.log is None:
            return
        loss, count = torch.as_tensor(strategy.loss).detach().mean(), len(strategy.mb_y)  # of shape (1,) or ()
        right = (strategy.mb_output.detach().argmax(1) == strategy.mb_y).sum()
        sums = torch.stack([loss.float().to(right.device) * count, right.float()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += count

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        experience = strategy.experience
        if self.log is not None and self._sums is not None:
            loss, right = (self._sums / self._count).tolist()
            names = [_name(metric, "train", experience) for metric in ("Loss_Epoch", "Top1_Acc_Epoch")]
            step = step_of(strategy, experience.current_experience)
            self.log(step, dict(zip(names, (loss, right), strict=True)), {})
        if self._progress is not None:
            # strategy.clock runs last, so it has not counted this epoch yet
            epoch = strategy.clock.train_exp_epochs + 1
            self._progress(experience.current_experience, epoch, strategy.train_epochs)


def step_of(strategy: Any, learned: int) -> int:
    """The step at which values are logged. ``learned`` is the number of tasks learned so far."""
    return int(strategy.clock.train_iterations) + learned


def accuracy_values(experiences: Sequence[Any], accuracy: Sequence[float]) -> dict[str, float]:
    """The accuracies on test experiences under Avalanche's names, and the mean of them (``AverageAccuracy/...``)."""
    values = {
        _name("Top1_Acc_Exp", "eval", experience, experience.current_experience): share
        for experience, share in zip(experiences, accuracy, strict=True)
    }
    mean = {"metric_name": "AverageAccuracy", "phase_name": "eval", "stream_name": experiences[0].origin_stream.name}
    return {**values, generic_get_metric_name(default_metric_name_template, mean): sum(accuracy) / len(accuracy)}


def _name(metric: str, phase: str, experience: Any, number: int | None = None) -> str:
    """For example ``Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000``."""
    labels = experience.logging().task_labels
    parts = {
        "metric_name": metric,
        "phase_name": phase,
        "stream_name": experience.origin_stream.name,
        "task_label": labels[0] if len(labels) == 1 else None,
        "experience_id": number,
    }
    full_name: str = generic_get_metric_name(default_metric_name_template, parts)
    return full_name
