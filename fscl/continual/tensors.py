"""The tensors in memory behind Avalanche's data sets, and what transforms them."""

from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from fscl.continual.stream import TaskImages
from fscl.continual.transforms import ImageTransform

__all__ = ["Unservable", "samples_behind", "task_labels", "tensors_behind"]


class Unservable(Exception):
    """Why a loader cannot be served from memory, as the end of a sentence."""


def tensors_behind(parts: Sequence[Any], may_copy: bool = False) -> tuple[Tensor, Tensor, ImageTransform]:
    """Images and targets of all samples behind Avalanche data sets, one after another, and what transforms them.

    Raises:
        Unservable: they are not those of our streams, their transforms differ or are none of ours, or they must be
            copied, into more than half of the free memory, and ``may_copy`` is false.
    """
    leaves, source, index = _concatenated([_leaves(getattr(part, "_flat_data", part)) for part in parts])
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
    leaves, source, index = _leaves(getattr(data, "_flat_data", data))
    return [images for images, _ in leaves], source, index


Leaves = tuple[list[tuple[TaskImages, list[Any]]], Tensor, Tensor]  # and of each sample: which of them, where in it


def _leaves(data: Any, group: str | None = None) -> Leaves:
    """The images below Avalanche's wrappers, with the transforms on the way to them.

    Which group of transforms is applied says the outermost wrapper, for all that are inside.
    """
    if isinstance(data, TaskImages):
        return [(data, [])], torch.zeros(len(data), dtype=torch.int64), torch.arange(len(data))
    if not hasattr(data, "_indices") or not hasattr(data, "_datasets"):
        raise Unservable(f"{type(data).__name__} is not a stream of fscl")
    groups = [g for g in (getattr(data, f"_{k}transform_groups", None) for k in ("frozen_", "")) if g is not None]
    if group is None and groups:
        group = groups[-1].current_group
    leaves, source, index = _concatenated([_leaves(child, group) for child in data._datasets])
    if data._indices is not None:
        chosen = torch.tensor(list(data._indices), dtype=torch.int64)
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
    extra = {a.name: a for a in getattr(part, "_data_attributes", {}).values() if a.use_in_getitem}
    labels = extra.pop("targets_task_labels", None)
    if labels is None or extra:
        raise Unservable(f"its samples carry {', '.join(extra) or 'no task label'}")
    if len(labels.uniques) == 1:
        return torch.full((len(part),), next(iter(labels.uniques)))
    return torch.tensor([labels[i] for i in range(len(part))])
