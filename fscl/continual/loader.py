"""Mini-batches straight from tensors in memory, for any Avalanche strategy that trains on a stream of fscl."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import psutil
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from fscl.choices import Place
from fscl.continual.avalanche_private import (
    attributes_of,
    children_of,
    images_of,
    is_plain_multi_loader,
    samplers_of,
    transform_groups_of,
)
from fscl.continual.stream import TaskImages
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError

__all__ = [
    "InMemoryBatches",
    "InMemoryLoader",
    "Place",
    "Unservable",
    "batches",
    "samples_behind",
    "task_labels",
    "task_of",
    "tensors_behind",
]

_EMPTY = TensorDataset(torch.empty(0))
PLACES = get_args(Place)


class InMemoryLoader(SupervisedPlugin):
    """Makes whole mini-batches of a :class:`~fscl.continual.stream.Stream` at once, in place of Avalanche's loader.

    Avalanche transforms one sample at a time, which takes nine tenths of a step on a small network. This plugin gathers
    and transforms whole batches of the uint8 images that a stream keeps in memory. It takes the order of samples from
    the loader that it replaces, which may be task-balanced, a replay loader or a plain ``DataLoader``. It draws the
    same random numbers. So a strategy sees the same mini-batches, bit for bit, as with Avalanche's loader without
    worker processes. (Worker processes have random states of their own.) If all samples of a batch have one task, a
    multi-head network is given one label, so that it does not search the batch for tasks. On a GPU this saves a
    synchronisation in each step.

    The plugin leaves the loader in place, and warns once, if it cannot make the same mini-batches. This is so if

    - the data is neither a stream of fscl nor a mixture of parts of one, as replay makes,
    - the transform is not an :class:`~fscl.data.transforms.ImageTransform`,
    - samples carry more than image, target and task label,
    - the collate function is not torch's default, or
    - memory is short.

    Args:
        place: where images are kept while they are trained on. ``device``: on the strategy's device. ``host``: in the
            machine's memory; each batch is sent through pinned memory. ``auto``: on the device if the images take at
            most half of its free memory, else on the host. ``off``: always Avalanche's loader. Memory is short if
            images must be copied, as a mixture must, and the copy takes more than half of the free memory with
            ``auto``, or more than all of it with ``device`` or ``host``.

    Raises:
        FsclError: the place is unknown.

    Example:
        >>> from avalanche.training import Naive
        >>> plugins = [InMemoryLoader()]  # Naive(..., plugins=plugins)
    """

    supports_distributed = False

    def __init__(self, place: Place = "auto") -> None:
        super().__init__()
        if place not in PLACES:
            raise FsclError(f"place is {place!r}; known: {', '.join(PLACES)}")
        self.place = place
        self._warned = False

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._replace(strategy)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._replace(strategy)  # again: a later plugin may have set its own loader in before_training_exp

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._replace(strategy)

    def _replace(self, strategy: Any) -> None:
        if self.place == "off" or isinstance(strategy.dataloader, InMemoryBatches):
            return
        try:
            strategy.dataloader = InMemoryBatches(strategy.dataloader, strategy.device, self.place)
            _pass_one_label(strategy.model)
        except Unservable as reason:
            if not self._warned:
                warnings.warn(
                    f"Avalanche loads the images one at a time, because {reason}; InMemoryLoader cannot make whole "
                    "batches of them",
                    stacklevel=2,
                )
            self._warned = True


def batches(dataset: Any, batch_size: int, device: Any = "cpu") -> Iterable[Sequence[Tensor]]:
    """(x, y, task) mini-batches of an Avalanche data set, in its order; made from memory if that is possible."""
    loader = DataLoader(dataset, batch_size, collate_fn=getattr(dataset, "collate_fn", None))
    try:
        return InMemoryBatches(loader, torch.device(device))
    except Unservable:
        return loader


class InMemoryBatches:
    """The mini-batches [x, y, task] of another loader, made from tensors in memory.

    Attributes:
        task: the task label of all samples; None if they have several.

    Raises:
        Unservable: the mini-batches cannot be made from memory.
    """

    def __init__(self, loader: Any, device: torch.device, place: Place = "auto") -> None:
        if not _has_known_order(loader):
            raise Unservable(f"{type(loader).__name__} is an unknown loader")
        self.loader = loader
        parts = loader.datasets if isinstance(loader, MultiDatasetDataLoader) else [loader.dataset]
        collate = loader.collate_fn if isinstance(loader, DataLoader) else loader.loader_kwargs["collate_fn"]
        if collate is not default_collate:
            raise Unservable("its collate function is not torch's default")
        share = 0.5 if place == "auto" else 1.0
        images, targets, self.transform = tensors_behind(parts, share)
        tasks = torch.cat([task_labels(part) for part in parts])
        self.task = int(tasks[0]) if bool((tasks == tasks[0]).all()) else None
        self.device = device
        self.on_device = device.type != "cpu" and place != "host"
        if self.on_device and (shortage := _shortage(images.nbytes, device, share)):
            if place == "device":
                raise Unservable(shortage)
            self.on_device = False
        if self.on_device:
            images, targets, tasks = (part.to(device) for part in (images, targets, tasks))
        self.images, self.targets, self.tasks = images, targets, tasks

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        sampler, generator = _order(self.loader)
        # a DataLoader draws from torch's generator before it asks its sampler; this draws the same numbers
        iter(DataLoader(_EMPTY, batch_sampler=[], generator=generator))
        for positions in sampler:
            index = torch.as_tensor(positions)
            x, y, tasks = (self._at(values, index) for values in (self.images, self.targets, self.tasks))
            if self.task is not None:
                tasks.of_one_task = _Label(self.task)  # type: ignore[attr-defined]
            yield [self.transform(x), y, tasks]

    def _at(self, values: Tensor, index: Tensor) -> Tensor:
        if self.on_device or self.device.type == "cpu":
            return values[index.to(values.device, non_blocking=True)]
        out = values.new_empty((len(index), *values.shape[1:]), pin_memory=self.device.type == "cuda")
        return torch.index_select(values, 0, index, out=out).to(self.device, non_blocking=True)


class _Label(int):
    """One task label for all samples of a batch."""


def task_of(labels: Any) -> int | None:
    """The task label that all samples of a batch have, if :class:`InMemoryBatches` made the batch; otherwise None.

    The label is an attribute of the tensor ``labels``. A tensor made from it, by joining or indexing, has no label.
    """
    return getattr(labels, "of_one_task", None)


def _pass_one_label(model: Any) -> None:
    if isinstance(model, MultiTaskModule) and _take_one_label not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_take_one_label)
        model.register_forward_hook(_pad_outputs)


def _take_one_label(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replaces a tensor of equal labels by one label, so that a multi-task module does not search it."""
    label = task_of(inputs[1]) if len(inputs) == 2 else None
    return inputs if label is None else (inputs[0], label)


def _pad_outputs(module: Any, inputs: tuple[Any, ...], outputs: Any) -> Any:
    """Pads outputs to the width of the widest head, as multi-task modules do when each sample has a label."""
    if len(inputs) == 2 and isinstance(inputs[1], _Label) and isinstance(outputs, Tensor) and outputs.ndim == 2:
        return F.pad(outputs, (0, max(module.max_class_label - outputs.shape[1], 0)))
    return outputs


def _has_known_order(loader: Any) -> bool:
    """Whether the order in which a loader goes through its data can be followed from outside."""
    return is_plain_multi_loader(loader) or (type(loader) is DataLoader and loader.batch_sampler is not None)


def _order(loader: Any) -> tuple[Iterable[list[int]], torch.Generator | None]:
    """The positions of each mini-batch in the concatenation of a loader's data sets, and the random generator."""
    if isinstance(loader, DataLoader):
        return loader.batch_sampler, loader.generator  # type: ignore[return-value]
    sampler = MultiDatasetSampler(
        loader.datasets,
        samplers_of(loader),
        loader.termination_dataset,
        loader.oversample_small_datasets,
        loader.never_ending,
    )
    return sampler, loader.loader_kwargs.get("generator")


def _shortage(size: int, device: torch.device, share: float) -> str:
    """Why a copy of images on a device would take too large a share of its free memory; empty if it would not."""
    if device.type not in ("cpu", "cuda"):
        return ""
    on_host = device.type == "cpu"
    free = psutil.virtual_memory().available if on_host else torch.cuda.mem_get_info(device)[0]
    if size <= share * free:
        return ""
    where = "in memory" if on_host else f"on {device}"
    return f"a copy of them takes {size / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free {where}"


class Unservable(Exception):
    """Mini-batches cannot be made from memory. The message is a reason that completes a sentence after "because"."""


def tensors_behind(parts: Sequence[Any], share: float) -> tuple[Tensor, Tensor, ImageTransform]:
    """The images and targets of all samples of Avalanche data sets, one set after another, and their transform.

    Raises:
        Unservable: the images are not from a stream of fscl; the samples have different transforms, or one that is not
            an ``ImageTransform``; or the images must be copied, and the copy takes more than ``share`` of the free
            memory.
    """
    leaves, source, index = _concatenated([_leaves(images_of(part)) for part in parts])
    transforms = [steps for _, steps in leaves]
    if any(len(steps) != 1 or not isinstance(steps[0], ImageTransform) for steps in transforms):
        raise Unservable("its transform is not an ImageTransform")
    if any(steps[0] is not transforms[0][0] for steps in transforms):
        raise Unservable("its parts have different transforms")
    first = leaves[0][0]
    if len(leaves) == 1 and torch.equal(index, torch.arange(len(first))):
        return first.images, first.targets, transforms[0][0]
    if len({leaf.images.shape[1:] for leaf, _ in leaves}) > 1:
        raise Unservable("its images are of different sizes")
    if shortage := _shortage(first.images[:1].nbytes * len(index), torch.device("cpu"), share):
        raise Unservable(shortage)
    images = first.images.new_empty((len(index), *first.images.shape[1:]))
    targets = first.targets.new_empty(len(index))
    for i, (leaf, _) in enumerate(leaves):
        rows = source == i
        images[rows], targets[rows] = leaf.images[index[rows]], leaf.targets[index[rows]]
    return images, targets, transforms[0][0]


def samples_behind(data: Any) -> tuple[list[TaskImages], Tensor, Tensor]:
    """The images in memory below an Avalanche data set, and where each of its samples is.

    Returns:
        (sources, source, index): sample i is at position ``index[i]`` of ``sources[source[i]]``.

    Raises:
        Unservable: the images are not from a stream of fscl.
    """
    leaves, source, index = _leaves(images_of(data))
    return [images for images, _ in leaves], source, index


# (images, their transforms), and for each sample the number of its images and its position in them
Leaves = tuple[list[tuple[TaskImages, list[Any]]], Tensor, Tensor]


def _leaves(data: Any, group: str | None = None) -> Leaves:
    """The images below Avalanche's wrappers, with the transforms that the wrappers apply to them.

    The outermost wrapper decides which transform group all wrappers inside it apply.
    """
    if isinstance(data, TaskImages):
        return [(data, [])], torch.zeros(len(data), dtype=torch.int64), torch.arange(len(data))
    if (children := children_of(data)) is None:
        raise Unservable(f"{type(data).__name__} is not a stream of fscl")
    datasets, indices = children
    groups = transform_groups_of(data)
    if group is None and groups:
        group = groups[-1].current_group
    leaves, source, index = _concatenated([_leaves(child, group) for child in datasets])
    if indices is not None:
        chosen = torch.tensor(list(indices), dtype=torch.int64)
        source, index = source[chosen], index[chosen]
    steps = [step for g in groups for step in _steps(g.transform_groups.get(group))]
    return [(leaf, [*before, *steps]) for leaf, before in leaves], source, index


def _concatenated(parts: Sequence[Leaves]) -> Leaves:
    if not parts:
        raise Unservable("there are no images")
    leaves: list[tuple[TaskImages, list[Any]]] = []
    sources = []
    for part_leaves, source, _ in parts:
        sources.append(source + len(leaves))
        leaves += part_leaves
    return leaves, torch.cat(sources), torch.cat([index for *_, index in parts])


def _steps(transform: Any) -> list[Any]:
    """The transforms that a transform of Avalanche is composed of."""
    if transform is None:
        return []
    inner = getattr(transform, "transforms", None)
    if inner is None:
        return [transform]
    return [step for t in inner for step in _steps(t)]


def task_labels(part: Any) -> Tensor:
    """The task labels of an Avalanche data set, (N,)."""
    extra = {a.name: a for a in attributes_of(part).values() if a.use_in_getitem}
    labels = extra.pop("targets_task_labels", None)
    if labels is None or extra:
        raise Unservable(f"its samples carry {', '.join(extra) or 'no task label'}")
    if len(labels.uniques) == 1:
        return torch.full((len(part),), next(iter(labels.uniques)))
    return torch.tensor([labels[i] for i in range(len(part))])
