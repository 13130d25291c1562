"""Images of one split in memory, and several data sets joined into one."""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["ImageSet", "join_images", "require_memory"]


@dataclass(frozen=True)
class ImageSet:
    """Images of one split.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N), indices into ``classes``.
        classes: names in the data set's own order.
        parts: of a joined data set, how many of the classes come from each, in order; else empty.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    parts: tuple[int, ...] = ()


def require_memory(what: str, size: int, remedy: str) -> None:
    """Refuses what does not fit into memory before it is tried: Linux gives out more than there is, and kills later.

    Raises:
        FsclError: ``what`` takes ``size`` bytes and fewer are free; ``remedy`` would do.

    Example:
        >>> require_memory("mnist: 60000 images of 28x28", 60000 * 28 * 28, "take another data set")
    """
    free = psutil.virtual_memory().available
    if size > free:
        raise FsclError(f"{what} take {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free; {remedy}")


def join_images(sets: Mapping[str, tuple[ImageSet, ImageSet]]) -> tuple[ImageSet, ImageSet]:
    """Several data sets as one that has the classes of all, one data set's after another's.

    A class name that more than one of them has is told apart by its data set: ``cifar10/cat`` and ``pets/cat``.

    Args:
        sets: training and test images by the data set's name.

    Raises:
        FsclError: images are of different shapes.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> some = load_images("digits")
        >>> train, test = join_images({"one": some, "other": some})
        >>> train.classes[:2], train.parts, len(train.images) == 2 * len(some[0].images)
        (['one/0', 'one/1'], (10, 10), True)
    """
    shapes = {name: tuple(train.images.shape[1:]) for name, (train, _) in sets.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise FsclError(
            f"data sets of different shapes cannot be joined ({found}; channels x height x width); "
            "choose data sets of one shape (data.image_size resizes image folders)"
        )
    plain = [name for train, _ in sets.values() for name in train.classes]
    several = {name for name in plain if plain.count(name) > 1}
    classes = [
        f"{source}/{name}" if name in several else name for source, (train, _) in sets.items() for name in train.classes
    ]
    parts = tuple(len(train.classes) for train, _ in sets.values())
    first = [sum(parts[:i]) for i in range(len(parts))]
    train, test = (
        ImageSet(
            torch.cat([pair[split].images for pair in sets.values()]),
            torch.cat([pair[split].labels + start for pair, start in zip(sets.values(), first, strict=True)]),
            classes,
            parts,
        )
        for split in (0, 1)
    )
    return train, test
