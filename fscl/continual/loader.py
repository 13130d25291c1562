"""Mini-batches straight from tensors in memory, for any Avalanche strategy that trains on our streams."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader, TaskBalancedDataLoader
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader

from fscl.continual.stream import TaskImages
from fscl.continual.transforms import ImageTransform

__all__ = ["InMemoryLoader", "batches"]

# what strategies make themselves; any other is a plugin's
LOADERS = (TaskBalancedDataLoader, SingleDatasetDataLoader, DataLoader)


class InMemoryLoader(SupervisedPlugin):
    """Serves mini-batches of a :class:`~fscl.continual.stream.Stream` as whole batches, in place of Avalanche's loader.

    Avalanche transforms one sample at a time, which takes nine tenths of a step on a small network. This plugin
    replaces the loader where the data is a task of our streams as it was made, and leaves the strategy's where a plugin
    changed the data or the loader (replay, say), wherever in the list of plugins, or where the transform is another.

    Example:
        >>> from avalanche.training import Naive
        >>> plugins = [InMemoryLoader()]  # Naive(..., plugins=plugins)
    """

    supports_distributed = False

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._replace(strategy, strategy.train_mb_size, kwargs.get("shuffle", True), kwargs.get("drop_last", False))

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._replace(strategy, strategy.eval_mb_size, kwargs.get("shuffle", False))

    @staticmethod
    def _replace(strategy: Any, batch_size: int, shuffle: bool, drop_last: bool = False) -> None:
        found = tensors_of(strategy.adapted_dataset)
        if found is not None and type(strategy.dataloader) in LOADERS:
            strategy.dataloader = _Batches(*found, batch_size, shuffle, drop_last)


def batches(dataset: Any, batch_size: int) -> Iterable[list[Tensor]]:
    """(x, y, task) mini-batches of an Avalanche data set in its own order; whole batches at once where they can be."""
    found = tensors_of(dataset)
    if found is not None:
        return _Batches(*found, batch_size, shuffle=False)
    return DataLoader(dataset, batch_size, collate_fn=getattr(dataset, "collate_fn", None))


def tensors_of(dataset: Any) -> tuple[TaskImages, ImageTransform, int] | None:
    """The tensors, transform and task label behind an Avalanche data set, or None where it is anything else."""
    flat = getattr(dataset, "_flat_data", None)
    steps: list[Any] = []
    while flat is not None and not isinstance(flat, TaskImages):
        # anything but a plain chain of wrappers is data that somebody changed
        if len(getattr(flat, "_datasets", ())) != 1 or getattr(flat, "_indices", 0) is not None:
            return None
        for groups in (flat._frozen_transform_groups, flat._transform_groups):
            steps += _steps(groups.transform_groups.get(groups.current_group))
        flat = flat._datasets[0]
    labels = list(getattr(getattr(dataset, "targets_task_labels", None), "uniques", ()))
    if flat is None or len(steps) != 1 or not isinstance(steps[0], ImageTransform) or len(labels) != 1:
        return None
    return flat, steps[0], labels[0]


def _steps(transform: Any) -> list[Any]:
    """The transforms inside Avalanche's wrappers."""
    if transform is None:
        return []
    inner = getattr(transform, "transforms", None)
    if inner is None:
        return [transform]
    return [step for t in inner for step in _steps(t)]


class _Batches:
    """Iterates (x, y, task) mini-batches; the order is drawn anew from torch's generator at each pass."""

    def __init__(
        self,
        data: TaskImages,
        transform: ImageTransform,
        task: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool = False,
    ) -> None:
        self.data = data
        self.transform = transform
        self.task = task
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        n = len(self.data)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        n = len(self.data)
        order = torch.randperm(n) if self.shuffle else torch.arange(n)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            x = self.transform(self.data.images[index])
            yield [x, self.data.targets[index], torch.full((len(index),), self.task)]
