"""What a run measures: the accuracy matrix, and how well the features of one task serve another without training."""

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

Features = tuple[Tensor, Tensor]  # (N, p) what enters the head, (N) labels


class AccuracyRecorder(SupervisedPlugin):
    """Counts right answers during evaluation; metric names are never parsed.

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
    """Keeps the features that evaluations compute on their way to the head, so that nothing need compute them again.

    Only those of the network as it is in training count, not those of networks that a learner keeps for a task.

    Example:
        >>> recorder = FeatureRecorder()  # Naive(..., plugins=[recorder])
        >>> with recorder.recording() as features:  # by experience, filled as experiences are evaluated
        ...     pass  # strategy.eval(stream.test_stream)
    """

    supports_distributed = False
    transient = ("_kept", "_tap")

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, list[Features]] | None = None
        self._tap: _Tap | None = None

    @contextmanager
    def recording(self) -> Iterator[dict[int, Features]]:
        """Within the block evaluations are recorded; the features are in the dictionary once the block has ended."""
        features: dict[int, Features] = {}
        self._kept = {}
        try:
            yield features
            for experience, parts in self._kept.items():
                found, labels = zip(*parts, strict=True)
                features[experience] = torch.cat(found), torch.cat(labels)
        finally:
            self._kept = None

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._kept is not None:
            self._tap = _Tap(strategy.model)

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._tap is None or self._kept is None:
            return
        seen = self._tap.close()
        self._tap = None
        switches = [p for p in strategy.plugins if isinstance(p, TaskSwitchPlugin)]
        if len(seen) == 1 and all(p.shown is None for p in switches):
            self._kept.setdefault(strategy.experience.current_experience, []).append((seen[0], strategy.mb_y))


class StartRecorder(SupervisedPlugin):
    """Measures the features with which a learner starts a task; comes after the plugin that prepares the network."""

    supports_distributed = False
    transient = ("_tasks", "_device")

    def __init__(self, tasks: Sequence[tuple[Any, Any]], device: torch.device) -> None:
        super().__init__()
        self._tasks, self._device = tasks, device  # training and test data of each
        self.value = self.seconds = 0.0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        train, test = self._tasks[strategy.experience.current_experience]
        self.value = class_mean_accuracy(strategy.model, train, test, device=self._device)
        self.seconds = time.perf_counter() - began


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """What enters the heads, or the last linear layer, in evaluation mode: (N, p); gradients pass.

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
    """Accuracy on a task of the features that a network has, with no training: nearest class mean.

    Each test image gets the class whose mean feature, over the first ``per_class`` training images of the class, has
    the largest cosine with its own. Features are what enters the head (or the last linear layer).

    Args:
        model: the network, evaluated as it stands.
        train, test: Avalanche data sets of one task; the transforms of evaluation are used on both.
        per_class: training images a class.
        batch_size: images a forward pass.
        device: where the model is.
        features: of the test images and their labels, if they are known: (N, p) and (N).

    Returns:
        The share of right answers, in [0, 1].

    Raises:
        FsclError: the model has neither heads nor a linear layer.
    """
    with evaluating(model):
        given, labels = _features(model, first_images(train, per_class).eval(), batch_size, device)
        classes = labels.unique()
        means = torch.stack([F.normalize(given[labels == c], dim=1).mean(0) for c in classes])
        given, labels = _features(model, test.eval(), batch_size, device) if features is None else features
        guess = classes[(F.normalize(given, dim=1) @ F.normalize(means, dim=1).T).argmax(1)]
        return float((guess == labels).double().mean())


def _features(model: nn.Module, dataset: Any, batch_size: int, device: Any) -> Features:
    tap, labels = _Tap(model), []
    try:
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed even where nothing is shuffled
            for x, y, *_ in batches(dataset, batch_size, device):
                avalanche_forward(model, x.to(device), tap.task)
                labels.append(y.to(device))
    finally:
        seen = tap.close()
    return torch.cat(seen), torch.cat(labels)


class _Tap:
    """Collects what enters a network's heads, or its last linear layer, until it is closed."""

    def __init__(self, model: nn.Module) -> None:
        heads = [m for m in model.modules() if isinstance(m, MultiHeadClassifier)]
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise FsclError(f"{type(model).__name__} has no linear layer whose inputs could serve as features")
        self.task = int(next(iter(heads[-1].classifiers))) if heads else 0  # whichever: features come before it
        self.seen: list[Tensor] = []
        self.hook = (heads or linear)[-1].register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen.append(inputs[0].flatten(1).float())

    def close(self) -> list[Tensor]:
        self.hook.remove()
        return self.seen


def first_images(dataset: Any, per_class: int = 50) -> Any:
    """The first ``per_class`` images of each class, as an Avalanche data set."""
    taken: dict[int, int] = {}
    keep = []
    for i, label in enumerate(dataset.targets):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= per_class:
            keep.append(i)
    return dataset.subset(keep)
