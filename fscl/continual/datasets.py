"""Image data sets as uint8 tensors in memory, from torchvision's layout or from image folders."""

import gzip
import os
import pickle
import socket
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fscl.continual.decoded import cached_pixels
from fscl.errors import FsclError

__all__ = ["ImageSet", "data_root", "find_data", "load_images"]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
# torchvision's class, and the file by which its layout is known
TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py/batches.meta"),
    "cifar100": ("CIFAR100", "cifar-100-python/meta"),
    "mnist": ("MNIST", "MNIST/raw/train-images-idx3-ubyte"),
    "fmnist": ("FashionMNIST", "FashionMNIST/raw/train-images-idx3-ubyte"),
}


@dataclass(frozen=True)
class ImageSet:
    """Images of one split.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N), indices into ``classes``.
        classes: names in the data set's own order.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]


def data_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: the argument, else ``$FSCL_DATA``, else ``./data``."""
    return Path(folder or os.environ.get("FSCL_DATA") or "data")


def find_data(name: str, root: str | os.PathLike[str] | None = None) -> str | None:
    """Where a data set was found, as a phrase for people, or None."""
    found = _finders(name, data_root(root))
    return next((where for where, present, _ in found if present()), None)


def load_images(
    name: str, root: str | os.PathLike[str] | None = None, image_size: int | None = None, download: bool = True
) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of a data set.

    Args:
        name: ``digits``, ``mnist``, ``fmnist``, ``cifar10``, ``cifar100`` or the name of an image folder
            ``<root>/<name>/{train,test}/<class>/*``.
        root: the data folder, see :func:`data_root`.
        image_size: side in pixels to which image folders are resized; None keeps images as they are.
        download: whether torchvision may download what is nowhere.

    Raises:
        FsclError: it is nowhere and cannot be downloaded, a class has no images, or a file is not a readable image.
    """
    base = data_root(root)
    for _, present, load in _finders(name, base, image_size):
        if present():
            train, test = load()
            _check_sizes(name, train, test, image_size)
            return train, test
    looked = "; ".join(where for where, _, _ in _finders(name, base))
    if name in TORCHVISION and download:
        try:
            with _impatient():
                return _from_torchvision(name, base, download=True)
        except Exception as error:  # torchvision raises whatever its transport raises
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise FsclError(
                f"data set {name!r} was not found (looked for: {looked}) and could not be downloaded ({reason}); "
                f"put it into one of these places, or name its folder with --data or FSCL_DATA"
            ) from error
    raise FsclError(f"data set {name!r} was not found (looked for: {looked}); name its folder with --data or FSCL_DATA")


Finder = tuple[str, Callable[[], bool], Callable[[], tuple[ImageSet, ImageSet]]]


def _finders(name: str, base: Path, image_size: int | None = None) -> list[Finder]:
    if name == "digits":
        return [("scikit-learn", lambda: True, _digits)]
    folder = base / name
    finders: list[Finder] = [
        (
            f"{folder}/train/<class>/* and {folder}/test/<class>/*",
            lambda: (folder / "train").is_dir() and (folder / "test").is_dir(),
            lambda: (_from_folder(folder / "train", image_size), _from_folder(folder / "test", image_size)),
        )
    ]
    if name in TORCHVISION:
        mark = TORCHVISION[name][1]
        finders.insert(
            0,
            (
                f"{base}/{mark}",
                lambda: (base / mark).exists() or (base / f"{mark}.gz").exists(),
                lambda: (
                    _from_idx(name, (base / mark).parent)
                    if name.endswith("mnist")
                    else _from_torchvision(name, base, download=False)
                ),
            ),
        )
    if name == "fmnist":
        raw = DEBIAN_FASHION_MNIST
        finders.append(
            (
                f"{raw} (Debian: dataset-fashion-mnist)",
                (raw / "train-images-idx3-ubyte.gz").exists,
                lambda: _from_idx(name, raw),
            )
        )
    return finders


def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1,797 digits; every fifth image of a class is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    rank = torch.zeros_like(labels)
    for c in range(10):
        rank[labels == c] = torch.arange(int((labels == c).sum()))
    test = rank % 5 == 4
    classes = [str(c) for c in range(10)]
    return ImageSet(images[~test], labels[~test], classes), ImageSet(images[test], labels[test], classes)


def _from_torchvision(name: str, base: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    import torchvision

    kind = getattr(torchvision.datasets, TORCHVISION[name][0])
    splits = []
    for train in (True, False):
        try:
            data = kind(base, train=train, download=download)
        except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
            if download:
                raise
            folder = (base / TORCHVISION[name][1]).parent
            raise FsclError(f"{folder}: damaged or incomplete copy of {name!r}; delete it and get it anew") from error
        images = torch.as_tensor(data.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        splits.append(ImageSet(images.contiguous(), torch.as_tensor(data.targets, dtype=torch.int64), data.classes))
    return splits[0], splits[1]


def _from_idx(name: str, folder: Path) -> tuple[ImageSet, ImageSet]:
    """The four files of MNIST and its kin, unpacked or as they are distributed."""
    import torchvision

    classes = list(getattr(torchvision.datasets, TORCHVISION[name][0]).classes)
    splits = []
    for prefix in ("train", "t10k"):
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1).long()
        if len(images) != len(labels):
            raise FsclError(f"{folder}: {len(images)} images but {len(labels)} labels for {prefix}; get them anew")
        splits.append(ImageSet(images[:, None], labels, classes))
    return splits[0], splits[1]


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of bytes: two zero bytes, 8, the number of dimensions; sizes as big-endian int32; the values."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError("not an IDX file")
        sizes = np.frombuffer(content, ">i4", dimensions, offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        return torch.from_numpy(values.reshape(sizes).copy())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise FsclError(f"{path if path.exists() else packed}: damaged or missing ({error}); get it anew") from error


@contextmanager
def _impatient(seconds: float = 30.0) -> Iterator[None]:
    """Network waits end: behind a firewall that drops packets torchvision would hang."""
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


def _from_folder(folder: Path, image_size: int | None) -> ImageSet:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise FsclError(f"{folder}: no class folders in it; expected {folder}/<class>/*")
    files, labels = [], []
    for index, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise FsclError(f"{folder / name}: no images in it; known endings: {' '.join(SUFFIXES)}")
        files += found
        labels += [index] * len(found)
    images = cached_pixels(folder, files, image_size, lambda: _decoded(folder, files, image_size))
    return ImageSet(torch.from_numpy(images), torch.tensor(labels), classes)


def _decoded(folder: Path, files: list[Path], image_size: int | None) -> np.ndarray:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders work outside of Python's lock
        arrays = list(pool.map(lambda path: _read(path, image_size), files, chunksize=64))
    sizes = {a.shape for a in arrays}
    if len(sizes) > 1:
        example = ", ".join(sorted(f"{s[1]}x{s[0]}" for s in sizes)[:3])
        raise FsclError(f"{folder}: images of {len(sizes)} sizes ({example}, ...); set data.image_size in the recipe")
    return np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits, scaled; Pillow would cut off everything above 255."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def _read(path: Path, image_size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            rgb = _eight_bits(image).convert("RGB")
            if image_size is not None and rgb.size != (image_size, image_size):
                rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, reducing_gap=3.0)
            return np.asarray(rgb, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FsclError(f"{path}: not a readable image ({error})") from error
