"""Image data sets as uint8 tensors in memory, from torchvision's layout or from image folders."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

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
            return load()
    looked = "; ".join(where for where, _, _ in _finders(name, base))
    if name in TORCHVISION and download:
        try:
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
                lambda: _from_torchvision(name, base, download=False),
            ),
        )
    if name == "fmnist":
        raw = DEBIAN_FASHION_MNIST
        finders.append(
            (f"{raw} (Debian: dataset-fashion-mnist)", (raw / "train-images-idx3-ubyte.gz").exists, _debian_fmnist)
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
        except (RuntimeError, EOFError, ValueError) as error:
            if download:
                raise
            raise FsclError(f"{base}: damaged copy of {name!r} ({error})") from error
        images = torch.as_tensor(data.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        splits.append(ImageSet(images.contiguous(), torch.as_tensor(data.targets, dtype=torch.int64), data.classes))
    return splits[0], splits[1]


def _debian_fmnist() -> tuple[ImageSet, ImageSet]:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.mnist import read_image_file, read_label_file

    splits = []
    for prefix in ("train", "t10k"):
        with_gz = (DEBIAN_FASHION_MNIST / f"{prefix}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1"))
        images, labels = (
            read(_gunzipped(path)) for read, path in zip((read_image_file, read_label_file), with_gz, strict=True)
        )
        splits.append(ImageSet(images[:, None].contiguous(), labels.long(), list(FashionMNIST.classes)))
    return splits[0], splits[1]


def _gunzipped(path: Path) -> str:
    """torchvision's readers take paths of unpacked files only."""
    import gzip
    import tempfile

    target = Path(tempfile.gettempdir()) / f"fscl-{os.getpid()}-{path.stem}"
    target.write_bytes(gzip.decompress(path.read_bytes()))
    return str(target)


def _from_folder(folder: Path, image_size: int | None) -> ImageSet:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not classes:
        raise FsclError(f"{folder}: no class folders in it; expected {folder}/<class>/*")
    arrays, labels = [], []
    for index, name in enumerate(classes):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise FsclError(f"{folder / name}: no images in it; known endings: {' '.join(SUFFIXES)}")
        arrays += [_read(path, image_size) for path in files]
        labels += [index] * len(files)
    sizes = {a.shape for a in arrays}
    if len(sizes) > 1:
        example = ", ".join(sorted(f"{s[1]}x{s[0]}" for s in sizes)[:3])
        raise FsclError(f"{folder}: images of {len(sizes)} sizes ({example}, ...); set data.image_size in the recipe")
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(labels), classes)


def _read(path: Path, image_size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            if image_size is not None and rgb.size != (image_size, image_size):
                rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, reducing_gap=3.0)
            return np.asarray(rgb, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FsclError(f"{path}: not a readable image ({error})") from error
