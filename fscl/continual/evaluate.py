"""What a run measures: accuracies, and how well the features of one task serve other tasks without training."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiHeadClassifier, avalanche_forward
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.continual.loader import batches
from fscl.continual.task_switch import TaskSwitchPlugin
from fscl.errors import FsclError
from fscl.modes import evaluating

__all__ = ["AccuracyRecorder", "FeatureRecorder", "StartRecorder", "class_mean_accuracy", "features_of", "first_images"]

Features = tuple[Tensor, Tensor]  # (N, p) inputs of the head, (N,) labels


class AccuracyRecorder(SupervisedPlugin):
    """Counts right answers during evaluation. It does not depend on the names of Avalanche's metrics.

    Example:
        >>> recorder = AccuracyRecorder()  # Naive(..., plugins=[recorder])
        >>> # recorder.accuracies(strategy, stream.test_stream[:3]) -> [0.91, 0.88, 0.93]
    """

    supports_distributed = False

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, list[Tensor | int]] = {}

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._counts = {}

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        count = self._counts.setdefault(strategy.experience.current_experience, [0, 0])
        count[0] = count[0] + (strategy.mb_output.argmax(1) == strategy.mb_y).sum()
        count[1] = count[1] + len(strategy.mb_y)

    def accuracies(self, strategy: Any, experiences: Sequence[Any]) -> list[float]:
        """Evaluates and returns the share of right answers, in [0, 1], of each experience."""
        strategy.eval(experiences)
        counts, self._counts = self._counts, {}
        return [float(right) / float(n) for right, n in (counts[e.current_experience] for e in experiences)]


class FeatureRecorder(SupervisedPlugin):
    """Keeps the features that an evaluation computes anyway, so that they are not computed a second time.

    It records features of the network in training only. It ignores networks that a learner has stored for a task.

    Example:
        >>> recorder = FeatureRecorder()  # Naive(..., plugins=[recorder])
        >>> with recorder.recording() as features:  # experience -> features, filled when the block ends
        ...     pass  # strategy.eval(stream.test_stream)
    """

    supports_distributed = False
    transient = ("_recorded", "_tap")

    def __init__(self) -> None:
        super().__init__()
        self._recorded: dict[int, list[Features]] | None = None
        self._tap: _Tap | None = None

    @contextmanager
    def recording(self) -> Iterator[dict[int, Features]]:
        """Records evaluations within the block. The dictionary is filled when the block ends."""
        features: dict[int, Features] = {}
        self._recorded = {}
        try:
            yield features
            for experience, batches_of_features in self._recorded.items():
                inputs, labels = zip(*batches_of_features, strict=True)
                features[experience] = torch.cat(inputs), torch.cat(labels)
        finally:
            self._recorded = None

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._recorded is not None:
            self._tap = _Tap(strategy.model)

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._tap is None or self._recorded is None:
            return
        seen = self._tap.close()
        self._tap = None
        switches = [p for p in strategy.plugins if isinstance(p, TaskSwitchPlugin)]
        if len(seen) == 1 and all(p.shown is None for p in switches):
            self._recorded.setdefault(strategy.experience.current_experience, []).append((seen[0], strategy.mb_y))


class StartRecorder(SupervisedPlugin):
    """Measures the features with which a learner starts a task. Runs after the learner's plugin."""

    supports_distributed = False
    transient = ("_tasks", "_device")

    def __init__(self, tasks: Sequence[tuple[Any, Any]], device: torch.device) -> None:
        super().__init__()
        self._tasks, self._device = tasks, device  # (training data, test data) of each task
        self.value = self.seconds = 0.0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        train, test = self._tasks[strategy.experience.current_experience]
        self.value = class_mean_accuracy(strategy.model, train, test, device=self._device)
        self.seconds = time.perf_counter() - began


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """The inputs of the heads, or of the last linear layer, in evaluation mode: (N, p). Gradients are recorded.

    Raises:
        FsclError: the model has neither heads nor a linear layer.
    """
    tap = _Tap(model)
    try:
        with evaluating(model):
            avalanche_forward(model, images, torch.full((len(images),), tap.task, device=images.device))
    finally:
        seen = tap.close()
    return seen[0]


@torch.no_grad()
def class_mean_accuracy(
    model: nn.Module,
    train: Any,
    test: Any,
    per_class: int = 50,
    batch_size: int = 256,
    device: Any = "cpu",
    features: Features | None = None,
) -> float:
    """Nearest-class-mean accuracy of a network's features on a task. Nothing is trained.

    The mean feature of a class is taken over its first ``per_class`` training images. Each test image gets the class
    whose mean feature has the largest cosine with the feature of the image. Features are the inputs of the head, or of
    the last linear layer.

    Args:
        model: the network.
        train, test: Avalanche data sets of one task. The transforms of evaluation are applied to both.
        per_class: number of training images of each class.
        batch_size: number of images in a forward pass.
        device: the device of the model.
        features: features (N, p) and labels (N,) of the test images, if they were computed before.

    Returns:
        The share of right answers, in [0, 1].

    Raises:
        FsclError: the model has neither heads nor a linear layer.
    """
    with evaluating(model):
        trained, labels = _features(model, first_images(train, per_class).eval(), batch_size, device)
        classes = labels.unique()
        means = torch.stack([F.normalize(trained[labels == c], dim=1).mean(0) for c in classes])
        tested, targets = _features(model, test.eval(), batch_size, device) if features is None else features
        answers = classes[(F.normalize(tested, dim=1) @ F.normalize(means, dim=1).T).argmax(1)]
        return float((answers == targets).double().mean())


def _features(model: nn.Module, dataset: Any, batch_size: int, device: Any) -> Features:
    tap, labels = _Tap(model), []
    try:
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed even if it does not shuffle
            for x, y, *_ in batches(dataset, batch_size, device):
                avalanche_forward(model, x.to(device), tap.task)
                labels.append(y.to(device))
    finally:
        seen = tap.close()
    return torch.cat(seen), torch.cat(labels)


class _Tap:
    """Collects the inputs of a network's heads, or of its last linear layer, until it is closed."""

    def __init__(self, model: nn.Module) -> None:
        heads = [m for m in model.modules() if isinstance(m, MultiHeadClassifier)]
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise FsclError(f"{type(model).__name__} has no linear layer whose inputs could be its features")
        # any task will do, because features do not depend on the head
        self.task = int(next(iter(heads[-1].classifiers))) if heads else 0
        self.seen: list[Tensor] = []
        self.hook = (heads or linear)[-1].register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen.append(inputs[0].flatten(1).float())

    def close(self) -> list[Tensor]:
        self.hook.remove()
        return self.seen


def first_images(dataset: Any, per_class: int = 50) -> Any:
    """The first ``per_class`` images of each class, as an Avalanche data set."""
    counts: dict[int, int] = {}
    positions = []
    for i, label in enumerate(dataset.targets):
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= per_class:
            positions.append(i)
    return dataset.subset(positions)
