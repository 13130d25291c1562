"""Streams whose tasks have the same images, changed in each task: rotated, or with permuted pixels."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fscl.continual.stream import Scenario, Stream, Task, TaskImages, assemble, same_classes
from fscl.data.images import ImageSet
from fscl.errors import FsclError

__all__ = ["permuted", "permuted_stream", "pixel_orders", "rotated", "rotated_stream"]

ROTATED_AT_ONCE = 1024  # images; torchvision rotates in float32, which takes four times their memory


def rotated_stream(
    train: ImageSet,
    test: ImageSet,
    rotations: int | Sequence[float],
    seed: int = 0,
    crop_padding: int = 0,
    flip: bool = False,
    validation: float = 0.0,
    scenario: Scenario = "domain",
) -> Stream:
    """A stream of tasks with known geometry: each task has all images of all classes, rotated by its own angle.

    Images are rotated once, as uint8. They are normalised with the mean and deviation of the upright training images.

    Args:
        train, test: the images.
        rotations: an angle for each task, in degrees, counter-clockwise; or the number of tasks, whose angles are then
            evenly spaced over the full circle and begin at 0.
        seed: seed of the choice of validation images.
        crop_padding, flip, validation: as in :func:`fscl.continual.split_classes`. All tasks hold out the same images,
            so that no image is trained on at one angle and tested at another.
        scenario: ``domain`` (one head) or ``task`` (a head for each task), see :class:`fscl.continual.Stream`.

    Raises:
        FsclError: there are no rotations, two are equal, one is not finite, or as in
            :func:`fscl.continual.split_classes`.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> rotated_stream(*load_images("digits"), rotations=4).names
        ['rotated 0°', 'rotated 90°', 'rotated 180°', 'rotated 270°']
    """
    angles = [360 * i / rotations for i in range(rotations)] if isinstance(rotations, int) else list(rotations)
    if not angles or not all(map(math.isfinite, angles)):
        raise FsclError(f"rotations is {rotations}; give at least one angle in degrees, or the number of tasks")
    if len({angle % 360 for angle in angles}) < len(angles):
        raise FsclError(f"rotations is {rotations}; two of these angles are equal, up to whole turns")
    changes = [(f"rotated {angle:g}°", partial(rotated, degrees=angle)) for angle in angles]
    return _stream(train, test, changes, "rotations", scenario, seed, crop_padding, flip, validation)


def permuted_stream(
    train: ImageSet,
    test: ImageSet,
    permutations: int,
    seed: int = 0,
    crop_padding: int = 0,
    flip: bool = False,
    validation: float = 0.0,
    scenario: Scenario = "domain",
) -> Stream:
    """A stream of tasks that share no spatial structure: each task has all images, with its own order of pixels.

    The first task has the images unchanged. Pixels are permuted once, as uint8. The channels of a pixel stay together.

    Args:
        train, test: the images.
        permutations: the number of tasks.
        seed: seed of the orders, see :func:`pixel_orders`, and of the choice of validation images.
        crop_padding, flip, validation, scenario: as in :func:`rotated_stream`.

    Raises:
        FsclError: there are no permutations, or as in :func:`fscl.continual.split_classes`.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> permuted_stream(*load_images("digits"), permutations=3).names
        ['not permuted', 'permutation 1', 'permutation 2']
    """
    if permutations < 1:
        raise FsclError(f"permutations is {permutations}; it must be at least 1")
    _, _, height, width = train.images.shape
    orders = pixel_orders(permutations, height * width, seed)
    changes = [(f"permutation {i}" if i else "not permuted", partial(permuted, order=o)) for i, o in enumerate(orders)]
    return _stream(train, test, changes, "permutations", scenario, seed, crop_padding, flip, validation)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images rotated counter-clockwise about their centre, with bilinear interpolation; what was outside is black.

    Args:
        images: uint8 (N, C, H, W).
        degrees: the angle. Whole turns return ``images`` itself.

    Returns:
        uint8 (N, C, H, W).

    Example:
        >>> rotated(torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8), 90).flatten().tolist()
        [2, 4, 1, 3]
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import rotate

    if degrees % 360 == 0:
        return images
    turned = torch.empty_like(images)
    for part, target in zip(images.split(ROTATED_AT_ONCE), turned.split(ROTATED_AT_ONCE), strict=True):
        target.copy_(rotate(part, degrees, InterpolationMode.BILINEAR))
    return turned


def permuted(images: Tensor, order: Tensor) -> Tensor:
    """Images with permuted pixels: pixel i is the former pixel ``order[i]``. Pixels are counted row by row.

    Args:
        images: (N, C, H, W).
        order: int64 (H * W), a permutation; its ``argsort()`` undoes it.

    Returns:
        (N, C, H, W).

    Example:
        >>> permuted(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([3, 0, 1, 2])).flatten().tolist()
        [4, 1, 2, 3]
    """
    return images.flatten(2)[:, :, order].view_as(images)


def pixel_orders(count: int, pixels: int, seed: int = 0) -> list[Tensor]:
    """``count`` orders of pixels, each int64 (pixels,). The first is the identity, all later ones are random.

    A larger ``count`` with the same seed adds orders at the end and changes none.

    Example:
        >>> first, second = pixel_orders(2, 5)
        >>> first.tolist(), second.sort().values.tolist()
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.arange(pixels), *(torch.randperm(pixels, generator=generator) for _ in range(count - 1))]


def _stream(
    train: ImageSet,
    test: ImageSet,
    changes: Sequence[tuple[str, Callable[[Tensor], Tensor]]],
    tasks_are: str,
    scenario: Scenario,
    seed: int,
    crop_padding: int,
    flip: bool,
    validation: float,
) -> Stream:
    classes = same_classes(train, test)
    if scenario == "class":
        raise FsclError(f"scenario is 'class', but all {tasks_are} have the same classes; use 'domain' or 'task'")
    tasks = [
        Task(name, classes, *(TaskImages(change(part.images), part.labels) for part in (train, test)))
        for name, change in changes
    ]
    return assemble(tasks, train.images, scenario, seed, crop_padding, flip, validation)
