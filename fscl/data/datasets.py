"""Image data sets as uint8 tensors in memory, from torchvision's layout or from image folders."""

import contextlib
import functools
import gzip
import math
import os
import pickle
import socket
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fscl.data.images import ImageSet, join_images, require_memory
from fscl.data.layouts import READERS, image_folder
from fscl.data.places import LAYOUTS, TORCHVISION, Place, data_root, joined, places_of
from fscl.errors import FsclError

__all__ = ["ImageSet", "load_images"]


def load_images(
    name: str, root: str | os.PathLike[str] | None = None, image_size: int | None = None, download: bool = True
) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of a data set.

    Args:
        name: ``digits``, ``mnist``, ``fmnist``, ``cifar10``, ``cifar100``, ``tinyimagenet``, ``miniimagenet``,
            ``core50``, or the name of an image folder ``<root>/<name>/{train,test}/<class>/*``; or several of these,
            joined by ``+``, see :func:`fscl.data.images.join_images`.
        root: the data folder, see :func:`data_root`.
        image_size: side in pixels to which image files are resized; None keeps images as they are.
        download: whether torchvision may download a data set that is not found.

    Raises:
        FsclError: the data set is not found and cannot be downloaded, a class has no images, a file is not a readable
            image, or data sets cannot be joined.

    Example:
        >>> train, test = load_images("digits")
        >>> tuple(train.images.shape), train.images.dtype, train.classes[:3]
        ((1442, 1, 8, 8), torch.uint8, ['0', '1', '2'])
    """
    names, base = joined(name), data_root(root)
    if twice := [n for n in names if names.count(n) > 1]:
        raise FsclError(f"data set {twice[0]!r} is joined to itself in {name!r}")
    try:
        sets = {n: _load(n, base, image_size, download) for n in names}
    except OSError as error:
        raise FsclError(f"{error.filename or base}: cannot be read ({error.strerror or error})") from error
    return sets[name] if name in sets else join_images(sets)


def _load(name: str, base: Path, image_size: int | None, download: bool) -> tuple[ImageSet, ImageSet]:
    places = places_of(name, base)
    for place in places:
        if place.present:
            train, test = _read(name, place, image_size)
            _check_sizes(name, train, test, image_size)
            return train, test
    looked = f"data set {name!r} was not found (looked for: {'; '.join(place.where for place in places)})"
    if name in TORCHVISION and download:
        try:
            return _downloaded(name, base)
        except Exception as error:  # torchvision passes on any error of its transport
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise FsclError(
                f"{looked} and could not be downloaded ({reason}); "
                f"put it into one of these places, or name the data folder with --data or FSCL_DATA"
            ) from error
    get = f"{LAYOUTS[name].how}, or " if name in LAYOUTS else ""
    raise FsclError(f"{looked}; {get}name the data folder with --data or FSCL_DATA")


def _read(name: str, place: Place, image_size: int | None) -> tuple[ImageSet, ImageSet]:
    if place.kind == "digits":
        return _digits()
    if place.kind == "torchvision":
        return _from_torchvision(name, place.folder, download=False)
    if place.kind == "idx":
        return _from_idx(name, place.folder)
    if place.kind == "layout":
        return READERS[name](place.folder, image_size)
    return image_folder(place.folder / "train", image_size), image_folder(place.folder / "test", image_size)


def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1,797 digits; every fifth image of a class is a test image."""
    images, labels = _read_digits()
    rank = torch.zeros_like(labels)
    for c in range(10):
        rank[labels == c] = torch.arange(int((labels == c).sum()))
    test = rank % 5 == 4
    classes = [str(c) for c in range(10)]
    return ImageSet(images[~test], labels[~test], classes), ImageSet(images[test], labels[test], classes)


@functools.cache  # scikit-learn reads them from a text file, in 50 ms
def _read_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    return images, torch.from_numpy(digits.target.astype(np.int64))


def _downloaded(name: str, base: Path) -> tuple[ImageSet, ImageSet]:
    """Downloads a data set by torchvision. A download that fails or is stopped leaves nothing in the data folder."""
    mark = (base / TORCHVISION[name][1]).name
    missing = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _network_timeout(), tempfile.TemporaryDirectory(prefix=".download-", dir=base) as temporary:
            sets = _from_torchvision(name, Path(temporary), download=True)
            files = [file for file in Path(temporary).rglob("*") if file.is_file()]
            # last the file by which the data set is recognised, so that another process does not read half of it
            for file in sorted(files, key=lambda file: file.name.startswith(mark)):
                place = base / file.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
        return sets
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it does not exist, or has the data set
                folder.rmdir()


def _from_torchvision(name: str, base: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    import torchvision

    dataset_class = getattr(torchvision.datasets, TORCHVISION[name][0])
    splits = []
    for train in (True, False):
        try:
            data = dataset_class(base, train=train, download=download)
        except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
            if download:
                raise
            folder = (base / TORCHVISION[name][1]).parent
            raise FsclError(f"{folder}: damaged or incomplete copy of {name!r}; delete it and get it again") from error
        images = torch.as_tensor(data.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        splits.append(ImageSet(images.contiguous(), torch.as_tensor(data.targets, dtype=torch.int64), data.classes))
    return splits[0], splits[1]


def _from_idx(name: str, folder: Path) -> tuple[ImageSet, ImageSet]:
    """The four files of MNIST or Fashion-MNIST, unpacked or packed as they are distributed."""
    import torchvision

    classes = list(getattr(torchvision.datasets, TORCHVISION[name][0]).classes)
    splits = []
    for prefix in ("train", "t10k"):
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1).long()
        if len(images) != len(labels):
            raise FsclError(f"{folder}: {len(images)} images but {len(labels)} labels for {prefix}; get them again")
        if int(labels.max()) >= len(classes):
            raise FsclError(
                f"{folder}: a label of {prefix} is {labels.max()} of {len(classes)} classes; get them again"
            )
        splits.append(ImageSet(images[:, None], labels, classes))
    return splits[0], splits[1]


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of bytes: two zero bytes, 8, the number of dimensions; sizes as big-endian int32; the values."""
    packed = path.with_name(f"{path.name}.gz")
    file_path = path if path.is_file() else packed
    try:
        with open(file_path, "rb") if file_path == path else gzip.open(file_path) as file:
            magic, *sizes = struct.unpack(f">{1 + dimensions}I", file.read(4 + 4 * dimensions))
            if magic != 0x800 + dimensions or 0 in sizes:
                raise ValueError("not an IDX file")
            # an archive may unpack to a thousand times its size
            require_memory(f"{file_path}: its values", math.prod(sizes), "get it again")
            values = np.empty(sizes, np.uint8)
            remaining = values.data.cast("B")
            while count := file.readinto(remaining):
                remaining = remaining[count:]
            if len(remaining) or file.read(1):
                raise ValueError(f"not {'x'.join(map(str, sizes))} values, as its header says")
        return torch.from_numpy(values)
    except FsclError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, struct.error, zlib.error) as error:
        raise FsclError(f"{file_path}: damaged or missing ({error}); get it again") from error


@contextlib.contextmanager
def _network_timeout(seconds: float = 30.0) -> Iterator[None]:
    """Limits waits for the network: torchvision would hang behind a firewall that drops packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_sizes(name: str, train: ImageSet, test: ImageSet, image_size: int | None) -> None:
    (*_, height, width), (*_, test_height, test_width) = train.images.shape, test.images.shape
    if (height, width) != (test_height, test_width):
        raise FsclError(
            f"{name}: training images are {width}x{height}, test images {test_width}x{test_height}; "
            "set data.image_size in the recipe"
        )
    if image_size is not None and (height, width) != (image_size, image_size):
        raise FsclError(f"{name}: data.image_size is {image_size}, but only image folders are resized; leave it out")
