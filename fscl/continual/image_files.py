"""Image files as one uint8 tensor, decoded by all cores and kept for the next time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fscl.continual.decoded import cached_pixels
from fscl.errors import FsclError

__all__ = ["SUFFIXES", "read_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def read_images(place: Path, files: Sequence[Path], image_size: int | None = None) -> Tensor:
    """All files as RGB, uint8 (N, 3, H, W), in their order.

    Args:
        place: what the files are called together, by which they are kept in the cache: their folder, or a name below
            it where a folder's files are read in several portions.
        files: at least one.
        image_size: side in pixels to which images are resized; None keeps them as they are.

    Raises:
        FsclError: a file is not a readable image, images are of different sizes, or they do not fit into memory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (4, 2), "red").save(path)
        >>> read_images(path.parent, [path])[0, :, 0, 0].tolist()
        [255, 0, 0]
    """
    return torch.from_numpy(cached_pixels(place, files, image_size, lambda: _decoded(place, files, image_size)))


def _decoded(place: Path, files: Sequence[Path], image_size: int | None) -> np.ndarray:
    pixels: np.ndarray | None = None
    sizes = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders work outside of Python's lock
        for i, image in enumerate(pool.map(lambda path: _read(path, image_size), files)):
            sizes.add(image.shape[:2])
            if pixels is None:
                pixels = _room(place, len(files), *image.shape[:2])
            if len(sizes) == 1:
                pixels[i] = image.transpose(2, 0, 1)
    if len(sizes) > 1:
        example = ", ".join(sorted(f"{width}x{height}" for height, width in sizes)[:3])
        raise FsclError(f"{place}: images of {len(sizes)} sizes ({example}, ...); set data.image_size in the recipe")
    assert pixels is not None
    return pixels


def _room(place: Path, count: int, height: int, width: int) -> np.ndarray:
    try:
        return np.empty((count, 3, height, width), np.uint8)
    except MemoryError as error:
        raise FsclError(
            f"{place}: {count} images of {width}x{height} do not fit into memory; set data.image_size in the recipe"
        ) from error


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
