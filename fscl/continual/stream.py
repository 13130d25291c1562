"""Streams: a data set divided into tasks, as an Avalanche benchmark whose images stay in memory as uint8."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset, TransformGroups
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import Dataset

from fscl.continual.avalanche_private import with_dataset
from fscl.data.class_split import Groups, share_out
from fscl.data.images import ImageSet
from fscl.data.transforms import ImageTransform, channel_statistics
from fscl.errors import FsclError
from fscl.text import html_table

NAMED = 10  # classes of a task that a table shows by name

__all__ = ["Scenario", "Stream", "Task", "TaskImages", "assemble", "labelled", "same_classes", "split_classes"]

Scenario = Literal["task", "domain", "class"]


class TaskImages(Dataset[tuple[Tensor, int]]):
    """The images of one task, uint8 (N, C, H, W), and their targets, int64 (N,), see :class:`Stream`."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def __repr__(self) -> str:
        return f"TaskImages({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))})"


class Task(NamedTuple):
    """One task of a stream. Its targets are counted from zero within the task."""

    name: str
    classes: list[str]
    train: TaskImages
    test: TaskImages


@dataclass(frozen=True)
class Stream:
    """Tasks to be learned one after another, in one of three scenarios.

    ========== =================================== ======================================== ===================
    scenario   task label of experience t           targets of experience t                  heads
    ========== =================================== ======================================== ===================
    ``task``   t, known at test time                counted from zero                        one for each task
    ``domain`` 0                                    counted from zero, the same classes      one
    ``class``  0                                    counted on from those of experience t-1  one that grows
    ========== =================================== ======================================== ===================

    Attributes:
        benchmark: the Avalanche benchmark, with ``train_stream`` and ``test_stream``. Each experience has an attribute
            ``task_name``.
        tasks: the class names of each task, in the order in which they are learned.
        image_shape: (C, H, W).
        scenario: ``task``, ``domain`` or ``class``.
        names: the name of each task.
        transform: the transform of images in evaluation.

    References:
        van de Ven, Tolias. Three Scenarios for Continual Learning. 2019.
    """

    benchmark: Any
    tasks: list[list[str]]
    image_shape: tuple[int, int, int]
    scenario: Scenario
    names: list[str]
    transform: ImageTransform

    @property
    def train_stream(self) -> Any:
        return self.benchmark.train_stream

    @property
    def test_stream(self) -> Any:
        return self.benchmark.test_stream

    @property
    def classes_per_task(self) -> int:
        """The number of classes of the largest task. A head, or a head that grows, starts with so many outputs."""
        return max(map(len, self.tasks))

    def __repr__(self) -> str:
        sizes = sorted({len(classes) for classes in self.tasks})
        classes = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        shape = "x".join(map(str, self.image_shape))
        return f"Stream({len(self.tasks)} tasks of {classes} classes, scenario {self.scenario!r}, images of {shape})"

    def _repr_html_(self) -> str:
        """A table of the tasks, for a notebook."""
        rows = []
        streams = zip(self.train_stream, self.test_stream, strict=True)
        for number, (classes, (train, test)) in enumerate(zip(self.tasks, streams, strict=True)):
            omitted = f" and {len(classes) - NAMED} more" * (len(classes) > NAMED)
            named = ", ".join(classes[:NAMED]) + omitted
            name = self.names[number]
            rows.append(
                [number, "" if name == ", ".join(classes) else name, named, len(train.dataset), len(test.dataset)]
            )
        return html_table(repr(self), ["task", "name", "classes", "training images", "test images"], rows)

    def first(self, count: int) -> "Stream":
        """The stream of the first ``count`` tasks.

        Raises:
            FsclError: ``count`` is not between 1 and the number of tasks.
        """
        if not 1 <= count <= len(self.tasks):
            raise FsclError(
                f"the first {count} tasks cannot be taken of {len(self.tasks)}; 1 to {len(self.tasks)} would do"
            )
        streams = {name: [e.dataset for e in list(stream)[:count]] for name, stream in self.benchmark.streams.items()}
        names = self.names[:count]
        return replace(self, benchmark=_benchmark(streams, names), tasks=self.tasks[:count], names=names)

    def to_answer(self, task: int, images: Tensor) -> Any:
        """An experience like the test experience of a task, with other images, for ``strategy.eval``.

        Args:
            task: the number of the experience.
            images: float32 (N, C, H, W), transformed.
        """
        unchanged = ImageTransform.of_constants(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
        experience = self.test_stream[task]
        targets = [experience.classes_in_this_experience[0]] * len(images)  # evaluation wants some
        [label] = experience.task_labels
        samples = TaskImages(images, torch.tensor(targets))
        return with_dataset(experience, labelled(samples, targets, label, unchanged, unchanged))


def split_classes(
    train: ImageSet,
    test: ImageSet,
    tasks: Groups,
    seed: int = 0,
    shuffle: bool = True,
    crop_padding: int = 0,
    flip: bool = False,
    validation: float = 0.0,
    scenario: Scenario = "task",
) -> Stream:
    """Divides a data set into tasks of disjoint classes, as Split CIFAR does.

    In the scenario ``domain`` the n-th classes of all tasks have the same target, as if they were one class that looks
    different in each task. So all tasks must have the same number of classes.

    Images are normalised with the mean and deviation of the training images.

    Args:
        train, test: the images.
        tasks: the number of tasks, each with the same number of classes; or, for a joined data set, this number for
            each part; or the class names of each task; or a mapping from the name of each task to its class names. See
            :func:`fscl.data.class_split.share_out`.
        seed: seed of the order of classes, and of the choice of validation images.
        shuffle: False keeps the order of classes of the data set.
        crop_padding, flip: augmentation of training images, see :class:`ImageTransform`.
        validation: share of each task's *training* images that replaces its test images, so that models can be chosen
            without the test set; 0 keeps the test images.
        scenario: ``task``, ``domain`` or ``class``, see :class:`Stream`.

    Raises:
        FsclError: classes cannot be shared out, a class is unknown, or the scenario is unknown or does not fit the
            tasks.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> stream = split_classes(*load_images("digits"), tasks=5, shuffle=False)
        >>> stream.tasks[0], len(stream.train_stream), stream.image_shape
        (['0', '1'], 5, (1, 8, 8))
        >>> stream = split_classes(*load_images("digits"), tasks=5, scenario="class")
        >>> [experience.classes_in_this_experience for experience in stream.train_stream][:3]
        [[0, 1], [2, 3], [4, 5]]
    """
    classes = same_classes(train, test)
    groups = share_out(classes, tasks, seed, shuffle, train.parts)
    assembled = [
        Task(name, [classes[c] for c in group], _select(train, group), _select(test, group)) for name, group in groups
    ]
    return assemble(assembled, train.images, scenario, seed, crop_padding, flip, validation)


def same_classes(train: ImageSet, test: ImageSet) -> list[str]:
    """The classes of training and test images, which must be the same.

    Raises:
        FsclError: training and test images have different classes.
    """
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes)) or train.classes
        raise FsclError(f"training and test images have different classes: {', '.join(different[:5])}")
    return train.classes


def assemble(
    tasks: Sequence[Task],
    seen: Tensor,
    scenario: Scenario,
    seed: int,
    crop_padding: int,
    flip: bool,
    validation: float,
) -> Stream:
    """A stream of given tasks.

    Args:
        tasks: the tasks; the targets of each are counted from zero.
        seen: uint8 (N, C, H, W). All images are normalised with the mean and deviation of these.
        scenario, seed, crop_padding, flip, validation: as in :func:`split_classes`. Tasks that have the same targets,
            such as rotations of the same images, hold out the same images.

    Raises:
        FsclError: the scenario is unknown or does not fit the tasks, ``validation`` is not in [0, 1), or a task has no
            images.
    """
    if scenario not in get_args(Scenario):
        raise FsclError(f"scenario is {scenario!r}; known: {', '.join(get_args(Scenario))}")
    if not 0 <= validation < 1:
        raise FsclError(f"validation is {validation}; it is a share of the training images, at least 0 and below 1")
    sizes = [len(task.classes) for task in tasks]
    if scenario == "domain" and len(set(sizes)) > 1:
        raise FsclError(f"scenario is 'domain', so all tasks must have the same classes; these have {sizes} classes")
    mean, std = channel_statistics(seen)
    augmented, plain = ImageTransform(mean, std, crop_padding, flip), ImageTransform(mean, std)
    streams: dict[str, list[Any]] = {"train": [], "test": []}
    for number, task in enumerate(tasks):
        label = number if scenario == "task" else 0
        first = sum(sizes[:number]) if scenario == "class" else 0
        parts = _hold_out(task.train, validation, seed) if validation else {"train": task.train, "test": task.test}
        for split, images in parts.items():
            if not len(images):
                raise FsclError(f"task {number} ({task.name}) has no {split} images")
            images = TaskImages(images.images, images.targets + first)
            streams[split].append(labelled(images, images.targets.tolist(), label, augmented, plain))
    names = [task.name for task in tasks]
    channels, height, width = seen.shape[1:]
    shape = (channels, height, width)
    return Stream(_benchmark(streams, names), [task.classes for task in tasks], shape, scenario, names, plain)


def labelled(
    images: Any, targets: list[int], label: int, train: Callable[[Any], Any], test: Callable[[Any], Any]
) -> Any:
    """The images of one task as an Avalanche data set.

    Args:
        images: a data set of (image, target).
        targets: the target of each image.
        label: the task label.
        train, test: the transforms of images in training and in evaluation.
    """
    attributes = [
        DataAttribute(targets, "targets"),
        DataAttribute(ConstantSequence(label, len(images)), "targets_task_labels", use_in_getitem=True),
    ]
    groups = TransformGroups({"train": (train, None), "eval": (test, None)})
    return TaskAwareSupervisedClassificationDataset([images], data_attributes=attributes, transform_groups=groups)


def _benchmark(streams: dict[str, list[Any]], names: Sequence[str]) -> Any:
    """The Avalanche benchmark of the data of each experience."""
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(**streams)))
    for stream in benchmark.streams.values():
        for experience, name in zip(stream, names, strict=True):
            experience.task_name = name
            # Avalanche sets a set, with which its own multi-head classifier cannot index a tensor
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


def _select(data: ImageSet, group: list[int]) -> TaskImages:
    target_of = torch.full((len(data.classes),), -1)
    target_of[group] = torch.arange(len(group))
    targets = target_of[data.labels]
    return TaskImages(data.images[targets >= 0], targets[targets >= 0])


def _hold_out(images: TaskImages, share: float, seed: int) -> dict[str, TaskImages]:
    """Holds out a share of the images of each class as test images; the rest are training images."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(images), dtype=torch.bool)
    for target in images.targets.unique():
        members = (images.targets == target).nonzero()[:, 0]
        positions = torch.randperm(len(members), generator=generator)[: max(1, round(share * len(members)))]
        held[members[positions]] = True
    return {
        "train": TaskImages(images.images[~held], images.targets[~held]),
        "test": TaskImages(images.images[held], images.targets[held]),
    }
