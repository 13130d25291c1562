"""Mini-batches straight from tensors in memory, for any Avalanche strategy that trains on our streams."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import psutil
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

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

_NOTHING = TensorDataset(torch.empty(0))
PLACES = ("auto", "device", "host", "off")
Place = Literal["auto", "device", "host", "off"]


class InMemoryLoader(SupervisedPlugin):
    """Serves mini-batches of a :class:`~fscl.continual.stream.Stream` as whole batches, in place of Avalanche's loader.

    Avalanche transforms one sample at a time, which takes nine tenths of a step on a small network. This plugin gathers
    and transforms whole batches of the uint8 images that our streams keep in memory. It takes the order of samples from
    the loader that it replaces, whatever that is (task-balanced, replay, a plain ``DataLoader``), and draws the same
    random numbers: what a strategy sees is the same, bit for bit, as with Avalanche's loader without worker processes
    (whose augmentation is seeded apart). Where a batch is of one task, a multi-head network is told so, which spares it
    a search for the tasks in the batch (and a GPU a synchronisation) at each step.

    It steps aside, and warns once, where it cannot do the same: the data is not one of our streams (or a mixture of
    parts of them, as replay makes), its transform is not an :class:`~fscl.data.transforms.ImageTransform`, samples
    carry more than image, target and task label, the collate function is not the usual one, or memory is short.

    Args:
        place: where images are kept while they are trained on. ``device``: on the strategy's device. ``host``: in the
            machine's memory, each batch sent through pinned memory. ``auto``: on the device if they take up at most
            half of what is free there, else on the host, unless that takes a copy (of a mixture) larger than half of
            the free memory, when Avalanche's loader serves them. ``off``: always Avalanche's loader.

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
        self._replace(strategy)  # again: plugins that come after this one put in theirs at before_training_exp

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._replace(strategy)

    def _replace(self, strategy: Any) -> None:
        if self.place == "off" or isinstance(strategy.dataloader, InMemoryBatches):
            return
        try:
            strategy.dataloader = InMemoryBatches(strategy.dataloader, strategy.device, self.place)
            _attach_fast_path(strategy.model)
        except Unservable as reason:
            if not self._warned:
                warnings.warn(
                    f"images are loaded by Avalanche, one at a time, because {reason}; InMemoryLoader could not serve "
                    "whole batches",
                    stacklevel=2,
                )
            self._warned = True


def batches(dataset: Any, batch_size: int, device: Any = "cpu") -> Iterable[Sequence[Tensor]]:
    """(x, y, task) mini-batches of an Avalanche data set in its own order; whole batches at once where they can be."""
    loader = DataLoader(dataset, batch_size, collate_fn=getattr(dataset, "collate_fn", None))
    try:
        return InMemoryBatches(loader, torch.device(device))
    except Unservable:
        return loader


class InMemoryBatches:
    """The mini-batches [x, y, task] of another loader, made from tensors in memory.

    Attributes:
        task: the task label, where all samples have the same.
    """

    def __init__(self, loader: Any, device: torch.device, place: Place = "auto") -> None:
        if not _is_understood(loader):
            raise Unservable(f"{type(loader).__name__} is an unknown loader")
        self.loader = loader
        parts = loader.datasets if isinstance(loader, MultiDatasetDataLoader) else [loader.dataset]
        collate = loader.collate_fn if isinstance(loader, DataLoader) else loader.loader_kwargs["collate_fn"]
        if collate is not default_collate:
            raise Unservable("its collate function is not torch's own")
        images, targets, self.transform = tensors_behind(parts, may_copy=place != "auto")
        tasks = torch.cat([task_labels(part) for part in parts])
        self.task = int(tasks[0]) if bool((tasks == tasks[0]).all()) else None
        self.device = device
        self.on_device = device.type != "cpu" and place != "host" and (place == "device" or _fits(images, device))
        if self.on_device:
            images, targets, tasks = (part.to(device) for part in (images, targets, tasks))
        self.images, self.targets, self.tasks = images, targets, tasks

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        sampler, generator = _order(self.loader)
        # what a DataLoader draws from torch's generator before it asks its sampler is drawn here too
        iter(DataLoader(_NOTHING, batch_sampler=[], generator=generator))
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
    """A task label that stands for those of a whole batch."""


def task_of(labels: Any) -> int | None:
    """The task label of all samples of a batch that :class:`InMemoryBatches` made, if they have one in common.

    It is known of the very tensor that was made: what is joined to it, or taken from it, has none.
    """
    return getattr(labels, "of_one_task", None)


def _attach_fast_path(model: Any) -> None:
    if isinstance(model, MultiTaskModule) and _one_label not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_one_label)
        model.register_forward_hook(_as_wide_as_ever)


def _one_label(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """One label in place of a tensor of equal ones: a multi-task module then need not search it."""
    label = task_of(inputs[1]) if len(inputs) == 2 else None
    return inputs if label is None else (inputs[0], label)


def _as_wide_as_ever(module: Any, inputs: tuple[Any, ...], outputs: Any) -> Any:
    """Given a label a sample, a multi-task module answers with as many outputs as its widest head."""
    if len(inputs) == 2 and isinstance(inputs[1], _Label) and isinstance(outputs, Tensor) and outputs.ndim == 2:
        return F.pad(outputs, (0, max(module.max_class_label - outputs.shape[1], 0)))
    return outputs


def _is_understood(loader: Any) -> bool:
    """Whether a loader goes through its data in a way that can be followed from outside."""
    return is_plain_multi_loader(loader) or (type(loader) is DataLoader and loader.batch_sampler is not None)


def _order(loader: Any) -> tuple[Iterable[list[int]], torch.Generator | None]:
    """The positions of each mini-batch in the concatenation of a loader's data sets, and where it draws them from."""
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


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether images take up at most half of what is free on a device."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] / 2


class Unservable(Exception):
    """Why a loader cannot be served from memory, as the end of a sentence."""


def tensors_behind(parts: Sequence[Any], may_copy: bool = False) -> tuple[Tensor, Tensor, ImageTransform]:
    """Images and targets of all samples behind Avalanche data sets, one after another, and what transforms them.

    Raises:
        Unservable: they are not those of our streams, their transforms differ or are none of ours, or they must be
            copied, into more than half of the free memory, and ``may_copy`` is false.
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
    need, free = first.images[:1].nbytes * len(index), psutil.virtual_memory().available
    if not may_copy and need > free / 2:
        raise Unservable(f"a copy of them takes {need / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free")
    images = first.images.new_empty((len(index), *first.images.shape[1:]))
    targets = first.targets.new_empty(len(index))
    for i, (leaf, _) in enumerate(leaves):
        here = source == i
        images[here], targets[here] = leaf.images[index[here]], leaf.targets[index[here]]
    return images, targets, transforms[0][0]


def samples_behind(data: Any) -> tuple[list[TaskImages], Tensor, Tensor]:
    """The images in memory below an Avalanche data set, and for each of its samples which of them, and where in it.

    Raises:
        Unservable: they are not those of our streams.
    """
    leaves, source, index = _leaves(images_of(data))
    return [images for images, _ in leaves], source, index


Leaves = tuple[list[tuple[TaskImages, list[Any]]], Tensor, Tensor]  # and of each sample: which of them, where in it


def _leaves(data: Any, group: str | None = None) -> Leaves:
    """The images below Avalanche's wrappers, with the transforms on the way to them.

    The outermost wrapper decides which group of transforms all that are inside apply.
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
    for found, source, _ in parts:
        sources.append(source + len(leaves))
        leaves += found
    return leaves, torch.cat(sources), torch.cat([index for *_, index in parts])


def _steps(transform: Any) -> list[Any]:
    """The transforms inside Avalanche's wrappers."""
    if transform is None:
        return []
    inner = getattr(transform, "transforms", None)
    if inner is None:
        return [transform]
    return [step for t in inner for step in _steps(t)]


def task_labels(part: Any) -> Tensor:
    """(N) task labels of an Avalanche data set."""
    extra = {a.name: a for a in attributes_of(part).values() if a.use_in_getitem}
    labels = extra.pop("targets_task_labels", None)
    if labels is None or extra:
        raise Unservable(f"its samples carry {', '.join(extra) or 'no task label'}")
    if len(labels.uniques) == 1:
        return torch.full((len(part),), next(iter(labels.uniques)))
    return torch.tensor([labels[i] for i in range(len(part))])
