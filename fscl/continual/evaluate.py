"""What a run measures: the accuracy matrix, and how well the features of one task serve another without training."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiHeadClassifier, avalanche_forward
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.continual.loader import batches
from fscl.errors import FsclError

__all__ = ["AccuracyRecorder", "class_mean_accuracy"]


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


def class_mean_accuracy(
    model: nn.Module, train: Any, test: Any, per_class: int = 50, batch_size: int = 256, device: Any = "cpu"
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

    Returns:
        The share of right answers, in [0, 1].

    Raises:
        FsclError: the model has neither heads nor a linear layer.
    """
    with _features(model) as extract, torch.no_grad():
        features, labels = extract(_few(batches(train.eval(), batch_size), per_class), device)
        classes = labels.unique()
        means = torch.stack([F.normalize(features[labels == c], dim=1).mean(0) for c in classes])
        right = total = 0
        for batch in batches(test.eval(), batch_size):
            features, labels = extract([batch], device)
            guess = classes[(F.normalize(features, dim=1) @ F.normalize(means, dim=1).T).argmax(1)]
            right += int((guess == labels).sum())
            total += len(labels)
    return right / total


@contextmanager
def _features(model: nn.Module) -> Iterator[Any]:
    """A function from mini-batches to (features (N, p), labels (N)), with the model in evaluation mode meanwhile."""
    heads = [m for m in model.modules() if isinstance(m, MultiHeadClassifier)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise FsclError(f"{type(model).__name__} has no linear layer whose inputs could serve as features")
    task = int(next(iter(heads[-1].classifiers))) if heads else 0
    seen: list[Tensor] = []
    hook = (heads or linear)[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    modes = [(m, m.training) for m in model.modules()]

    def extract(chosen: Iterable[Sequence[Tensor]], device: Any) -> tuple[Tensor, Tensor]:
        labels = []
        seen.clear()
        for x, y, *_ in chosen:
            avalanche_forward(model, x.to(device), task)
            labels.append(y.to(device))
        return torch.cat(seen), torch.cat(labels)

    try:
        model.eval()
        yield extract
    finally:
        hook.remove()
        for module, mode in modes:
            module.training = mode


def _few(source: Iterable[Sequence[Tensor]], per_class: int) -> Iterator[list[Tensor]]:
    """The first ``per_class`` images of each class."""
    taken: dict[int, int] = {}
    for x, y, *rest in source:
        keep = []
        for i, label in enumerate(y.tolist()):
            taken[label] = taken.get(label, 0) + 1
            if taken[label] <= per_class:
                keep.append(i)
        if keep:
            yield [x[keep], y[keep], *rest]
