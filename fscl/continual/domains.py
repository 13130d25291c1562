"""Tasks that are the same images in another guise: rotated, or with their pixels permuted."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fscl.continual.stream import Scenario, Stream, Task, TaskImages, assemble, same_classes
from fscl.data.images import ImageSet
from fscl.errors import FsclError

__all__ = ["permuted", "permuted_stream", "pixel_orders", "rotated", "rotated_stream"]

AT_ONCE = 1024  # images that are rotated at a time: as floating point they take four times as much memory


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
    """Tasks of known geometry: all images of all classes, rotated by an angle a task.

    Images are rotated once, as bytes, and normalised with the mean and deviation of the upright training images.

    Args:
        train, test: the images.
        rotations: angles in degrees, counter-clockwise, one a task; or how many, evenly spaced over the full circle
            from 0 on.
        seed: of the validation images.
        crop_padding, flip, validation: as in :func:`fscl.continual.split_classes`; the same images are held out in
            every task, so that none is trained on at one angle and tested at another.
        scenario: ``domain`` (one head) or ``task`` (a head a task), see :class:`fscl.continual.Stream`.

    Raises:
        FsclError: there are no rotations, one is not finite, or what :func:`fscl.continual.split_classes` raises.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> rotated_stream(*load_images("digits"), rotations=4).names
        ['rotated 0°', 'rotated 90°', 'rotated 180°', 'rotated 270°']
    """
    angles = [360 * i / rotations for i in range(rotations)] if isinstance(rotations, int) else list(rotations)
    if not angles or not all(map(math.isfinite, angles)):
        raise FsclError(f"rotations is {rotations}; it takes at least one angle in degrees, or how many")
    if len({angle % 360 for angle in angles}) < len(angles):
        raise FsclError(f"rotations is {rotations}; two of them are the same")
    guises = [(f"rotated {angle:g}°", partial(rotated, degrees=angle)) for angle in angles]
    return _stream(train, test, guises, "rotations", scenario, seed, crop_padding, flip, validation)


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
    """Tasks that share no spatial structure: all images of all classes, their pixels in another order a task.

    The first task has the images as they are. Pixels are put into order once, as bytes; the channels of a pixel stay
    together.

    Args:
        train, test: the images.
        permutations: how many tasks.
        seed: of the orders, see :func:`pixel_orders`, and of the validation images.
        crop_padding, flip, validation, scenario: as in :func:`rotated_stream`.

    Raises:
        FsclError: there are no permutations, or what :func:`fscl.continual.split_classes` raises.

    Example:
        >>> from fscl.data.datasets import load_images
        >>> permuted_stream(*load_images("digits"), permutations=3).names
        ['not permuted', 'permutation 1', 'permutation 2']
    """
    if permutations < 1:
        raise FsclError(f"permutations is {permutations}; it must be at least 1")
    _, _, height, width = train.images.shape
    orders = pixel_orders(permutations, height * width, seed)
    guises = [(f"permutation {i}" if i else "not permuted", partial(permuted, order=o)) for i, o in enumerate(orders)]
    return _stream(train, test, guises, "permutations", scenario, seed, crop_padding, flip, validation)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images rotated counter-clockwise about their centre, bilinear; what comes in from outside is black.

    Args:
        images: uint8 (N, C, H, W).
        degrees: a whole number of turns gives the images themselves.

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
    for some, place in zip(images.split(AT_ONCE), turned.split(AT_ONCE), strict=True):
        place.copy_(rotate(some, degrees, InterpolationMode.BILINEAR))
    return turned


def permuted(images: Tensor, order: Tensor) -> Tensor:
    """Images whose pixel i is the former pixel ``order[i]``, counted along the rows.

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
    """Random orders of pixels, int64 (pixels) each, of which the first is the one they are in.

    With more of them from the same seed the first ones stay the same.

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
    guises: Sequence[tuple[str, Callable[[Tensor], Tensor]]],
    what: str,
    scenario: Scenario,
    seed: int,
    crop_padding: int,
    flip: bool,
    validation: float,
) -> Stream:
    classes = same_classes(train, test)
    if scenario == "class":
        raise FsclError(f"scenario is 'class', but all {what} have the same classes; use 'domain' or 'task'")
    tasks = [
        Task(name, classes, *(TaskImages(change(part.images), part.labels) for part in (train, test)))
        for name, change in guises
    ]
    return assemble(tasks, train.images, scenario, seed, crop_padding, flip, validation)
