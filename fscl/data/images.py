"""Images of one split in memory, and joining data sets into one."""

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
        classes: names of the classes, in the order of the data set.
        parts: for joined data sets, the number of classes of each, in order; otherwise empty.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    parts: tuple[int, ...] = ()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({len(self.images)} images of {shape}, {len(self.classes)} classes)"


def require_memory(what: str, size: int, remedy: str) -> None:
    """Refuses data that does not fit into memory, before memory is allocated.

    Linux allocates more memory than it has, and later kills the process that uses it.

    Args:
        what: the data, for the message.
        size: its bytes.
        remedy: what the user can do, for the message.

    Raises:
        FsclError: fewer bytes are free.

    Example:
        >>> require_memory("mnist: 60000 images of 28x28", 60000 * 28 * 28, "take another data set")
    """
    free = psutil.virtual_memory().available
    if size > free:
        raise FsclError(f"{what} take {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free; {remedy}")


def join_images(sets: Mapping[str, tuple[ImageSet, ImageSet]]) -> tuple[ImageSet, ImageSet]:
    """Joins data sets into one with the classes of all, in the order of the data sets.

    A class name that several data sets have gets the name of its data set: ``cifar10/cat`` and ``pets/cat``.

    Args:
        sets: the training and test images of each data set, by its name.

    Raises:
        FsclError: images of two data sets differ in shape.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> some = load_images("digits")
        >>> train, test = join_images({"one": some, "other": some})
        >>> train.classes[:2], train.parts, len(train.images) == 2 * len(some[0].images)
        (['one/0', 'one/1'], (10, 10), True)
    """
    shapes = {name: tuple(train.images.shape[1:]) for name, (train, _) in sets.items()}
    if len(set(shapes.values())) > 1:
        listing = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise FsclError(
            f"data sets of different shapes cannot be joined ({listing}; channels x height x width); "
            "choose data sets of one shape (data.image_size resizes image folders)"
        )
    all_names = [name for train, _ in sets.values() for name in train.classes]
    repeated = {name for name in all_names if all_names.count(name) > 1}
    classes = [
        f"{source}/{name}" if name in repeated else name
        for source, (train, _) in sets.items()
        for name in train.classes
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
