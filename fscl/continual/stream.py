"""Streams: a data set cut into tasks, as an Avalanche benchmark whose images stay in memory as uint8."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from torch import Tensor
from torch.utils.data import Dataset

from fscl.continual.datasets import ImageSet
from fscl.continual.transforms import ImageTransform
from fscl.errors import FsclError

__all__ = ["Stream", "TaskImages", "split_classes"]


class TaskImages(Dataset[tuple[Tensor, int]]):
    """The images of one task: uint8 (N, C, H, W), targets int64 (N) counted from zero within the task."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


@dataclass(frozen=True)
class Stream:
    """A task-incremental stream.

    Attributes:
        benchmark: Avalanche's scenario, with ``train_stream`` and ``test_stream``; experience t has task label t,
            classes counted from zero, and an attribute ``task_name``.
        tasks: the class names of each task, in the order in which they are learned.
        image_shape: (C, H, W).
    """

    benchmark: Any
    tasks: list[list[str]]
    image_shape: tuple[int, int, int]

    @property
    def train_stream(self) -> Any:
        return self.benchmark.train_stream

    @property
    def test_stream(self) -> Any:
        return self.benchmark.test_stream

    @property
    def names(self) -> list[str]:
        """What each task is called: its classes."""
        return [", ".join(classes) for classes in self.tasks]

    @property
    def classes_per_task(self) -> int:
        """Outputs that the widest head needs."""
        return max(map(len, self.tasks))


def split_classes(
    train: ImageSet,
    test: ImageSet,
    tasks: int | Sequence[Sequence[str]],
    seed: int = 0,
    shuffle: bool = True,
    crop_padding: int = 0,
    flip: bool = False,
    validation: float = 0.0,
) -> Stream:
    """Cuts a data set into tasks of disjoint classes: the Split CIFAR protocol, task-incremental.

    Images are normalised with the mean and deviation of the training images.

    Args:
        train, test: the images.
        tasks: how many tasks of equally many classes, or the class names of each task.
        seed: order of the classes (and the validation images).
        shuffle: False keeps the data set's own order of classes.
        crop_padding, flip: augmentation of training images, see :class:`ImageTransform`.
        validation: share of each task's *training* images that takes the place of its test images, for choosing
            models without looking at the test set; 0 uses the test images.

    Raises:
        FsclError: classes cannot be shared out, or a class is unknown.

    Example:
        >>> from fscl.continual.datasets import load_images
        >>> stream = split_classes(*load_images("digits"), tasks=5, shuffle=False)
        >>> stream.tasks[0], len(stream.train_stream), stream.image_shape
        (['0', '1'], 5, (1, 8, 8))
    """
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or train.classes
        raise FsclError(f"training and test images have different classes: {', '.join(odd[:5])}")
    if not 0 <= validation < 1:
        raise FsclError(f"validation is {validation}; it is a share of the training images, at least 0 and below 1")
    groups = _groups(train.classes, tasks, seed, shuffle)
    mean, std = _statistics(train.images)
    transforms = {
        "train": (ImageTransform(mean, std, crop_padding, flip), None),
        "eval": (ImageTransform(mean, std), None),
    }
    streams: dict[str, list[Any]] = {"train": [], "test": []}
    for label, group in enumerate(groups):
        parts = {"train": _select(train, group), "test": _select(test, group)}
        if validation:
            parts = _hold_out(parts["train"], validation, seed)
        for split, images in parts.items():
            if not len(images):
                raise FsclError(f"task {label} ({', '.join(train.classes[c] for c in group)}) has no {split} images")
            data = _make_taskaware_classification_dataset(
                images, targets=images.targets.tolist(), task_labels=label, transform_groups=transforms
            )
            streams[split].append(data)
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(**streams)))
    names = [[train.classes[c] for c in group] for group in groups]
    for stream in benchmark.streams.values():
        for experience, classes in zip(stream, names, strict=True):
            experience.task_name = ", ".join(classes)
            # Avalanche gives a set, with which its own multi-head classifier cannot index a tensor
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    channels, height, width = train.images.shape[1:]
    return Stream(benchmark, names, (channels, height, width))


def _statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, in units of [0, 1], from how often each of the 256 values occurs."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        counts = torch.zeros(256, dtype=torch.int64)
        for part in channel.flatten().split(2**22):  # counting takes eight bytes a value
            counts += torch.bincount(part, minlength=256)
        n = int(counts.sum())
        mean.append(float((counts * values).sum() / n))
        std.append(max(float(((counts * (values - mean[-1]).square()).sum() / max(n - 1, 1)).sqrt()), 1e-3))
    return mean, std


def _groups(classes: list[str], tasks: int | Sequence[Sequence[str]], seed: int, shuffle: bool) -> list[list[int]]:
    if not isinstance(tasks, int):
        flat = [name for group in tasks for name in group]
        if unknown := [name for name in flat if name not in classes]:
            raise FsclError(f"unknown class {unknown[0]!r}; known classes: {', '.join(classes)}")
        if twice := [name for name in flat if flat.count(name) > 1]:
            raise FsclError(f"class {twice[0]!r} is in more than one task")
        if empty := [i for i, group in enumerate(tasks) if not group]:
            raise FsclError(f"task {empty[0]} has no classes")
        return [[classes.index(name) for name in group] for group in tasks]
    if tasks < 1 or len(classes) % tasks:
        fits = [n for n in range(1, len(classes) + 1) if len(classes) % n == 0]
        raise FsclError(f"{len(classes)} classes cannot be shared out evenly among {tasks} tasks; these can: {fits}")
    order = list(range(len(classes)))
    if shuffle:
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
    size = len(classes) // tasks
    return [order[i : i + size] for i in range(0, len(classes), size)]


def _select(data: ImageSet, group: list[int]) -> TaskImages:
    target = torch.full((len(data.classes),), -1)
    target[group] = torch.arange(len(group))
    targets = target[data.labels]
    return TaskImages(data.images[targets >= 0], targets[targets >= 0])


def _hold_out(images: TaskImages, share: float, seed: int) -> dict[str, TaskImages]:
    """Class by class, ``share`` of the images for validation and the rest for training."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(images), dtype=torch.bool)
    for target in images.targets.unique():
        members = (images.targets == target).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: max(1, round(share * len(members)))]
        held[members[chosen]] = True
    return {
        "train": TaskImages(images.images[~held], images.targets[~held]),
        "test": TaskImages(images.images[held], images.targets[held]),
    }
