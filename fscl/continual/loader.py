"""Mini-batches straight from tensors in memory, for any Avalanche strategy that trains on our streams."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from fscl.continual.tensors import Unservable, task_labels, tensors_behind
from fscl.errors import FsclError

__all__ = ["InMemoryBatches", "InMemoryLoader", "Place", "batches", "task_of"]

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
    parts of them, as replay makes), its transform is not an :class:`~fscl.continual.transforms.ImageTransform`, samples
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
    if isinstance(loader, MultiDatasetDataLoader):
        inherited = ("__iter__", "_get_loader", "_create_samplers")
        return all(getattr(type(loader), name) is getattr(MultiDatasetDataLoader, name) for name in inherited)
    return type(loader) is DataLoader and loader.batch_sampler is not None


def _order(loader: Any) -> tuple[Iterable[list[int]], torch.Generator | None]:
    """The positions of each mini-batch in the concatenation of a loader's data sets, and where it draws them from."""
    if isinstance(loader, DataLoader):
        return loader.batch_sampler, loader.generator  # type: ignore[return-value]
    options = loader.loader_kwargs
    samplers = loader._create_samplers(loader.datasets, loader.batch_sizes, loader.distributed_sampling, options)
    sampler = MultiDatasetSampler(
        loader.datasets,
        samplers,
        loader.termination_dataset,
        loader.oversample_small_datasets,
        loader.never_ending,
    )
    return sampler, options.get("generator")


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether images take up at most half of what is free on a device."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] / 2
