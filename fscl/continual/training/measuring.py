"""Measures a strategy between two experiences: its accuracies, and how well its features serve every task."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from fscl.continual.evaluate import (
    AccuracyRecorder,
    FeatureRecorder,
    Features,
    StartRecorder,
    class_mean_accuracy,
    first_images,
)
from fscl.continual.stream import Stream
from fscl.continual.task_switch import LabelSwitchPlugin

__all__ = ["Measurements"]


class Measurements:
    """The accuracies on the tasks of a stream, and the nearest-class-mean accuracies of a network's features.

    Args:
        stream: the tasks.
        device: the device of the network.

    Attributes:
        start: measures, within training, the features with which a task starts.
        plugins: the plugins that the measured strategy must have, after those of its learner.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        pairs = zip(stream.train_stream, stream.test_stream, strict=True)
        # (training data, test data) of each task, for class means
        self._tasks = [(first_images(train.dataset), test.dataset) for train, test in pairs]
        self._accuracy, self._features = AccuracyRecorder(), FeatureRecorder()
        self.start = StartRecorder(self._tasks, device)
        self.plugins: list[SupervisedPlugin] = [self.start, self._accuracy, self._features]
        # task -> (the tensors that the learner stored when the task was measured, its accuracy)
        self._measured: dict[int, tuple[list[tuple[Tensor, int]], float]] = {}

    def after_task(self, strategy: Any, t: int) -> tuple[list[float], list[float]]:
        """(accuracies on the test images of tasks 0 to t, nearest-class-mean accuracies on every task), after task t.

        A network that the learner has stored for a task is measured when it is stored, and again at the end of the
        stream. In between the accuracy is not measured again as long as the stored tensors are unchanged.
        """
        with self._features.recording() as features:
            last = t == len(self._stream.tasks) - 1
            tasks = [i for i in range(t + 1) if last or not self._is_unchanged(strategy, i)]
            accuracies = self._accuracy.accuracies(strategy, [self._stream.test_stream[i] for i in tasks])
        self._measured |= {i: (_stored(strategy, i), a) for i, a in zip(tasks, accuracies, strict=True)}
        return [self._measured[i][1] for i in range(t + 1)], self.class_means(strategy.model, features)

    def class_means(self, model: nn.Module, features: Mapping[int, Features] | None = None) -> list[float]:
        """Nearest-class-mean accuracy on every task; ``features`` are features of test images, if known already."""
        return [
            class_mean_accuracy(model, *data, device=self._device, features=(features or {}).get(i))
            for i, data in enumerate(self._tasks)
        ]

    def _is_unchanged(self, strategy: Any, task: int) -> bool:
        """Whether the tensors that are stored for a task are those that were measured."""
        (before, _), now = self._measured.get(task, ([], 0.0)), _stored(strategy, task)
        same = (a is b and v == w for (a, v), (b, w) in zip(before, now, strict=False))
        return len(before) == len(now) > 0 and all(same)


def _stored(strategy: Any, task: int) -> list[tuple[Tensor, int]]:
    """The tensors that the learner has stored for a task, each with the number of writes to it."""
    # these plugins evaluate each test image only with the network of its own task
    switches = [plugin for plugin in strategy.plugins if isinstance(plugin, LabelSwitchPlugin)]
    return [(t, t._version) for plugin in switches for t in (plugin.stored(task) or {}).values()]
