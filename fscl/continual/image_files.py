"""Image files as one uint8 tensor, decoded by all cores and kept for the next time."""

import contextlib
import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fscl.continual.decoded import cached_pixels
from fscl.continual.images import require_memory
from fscl.errors import FsclError

__all__ = ["FORMATS", "SUFFIXES", "read_images"]

# No others are tried, whatever a file is called: Pillow gives PostScript to Ghostscript, which runs it as a program.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

LARGE = 2**24  # pixels; so many are decoded one image after another, or each core would need as much memory
_one_large_image = threading.Lock()
_SAMPLE_FORMAT, _BITS, _PHOTOMETRIC = 339, 258, 262  # TIFF tags


def read_images(place: Path, files: Sequence[Path], image_size: int | None = None) -> Tensor:
    """All files as RGB, uint8 (N, 3, H, W), in their order, as torchvision's ``ImageFolder`` reads them but upright.

    Images are turned as their EXIF data says. Transparency is dropped: a pixel has the colour that the file gives it.
    Of several frames or pages the first is read. Greys of 10 to 16 bits are scaled to 8 by the depth that the file
    declares. Floating-point, signed and 32-bit pixels are refused, for nothing in the file says which value is white.

    Args:
        place: what the files are called together, by which they are kept in the cache: their folder, or a name below
            it where a folder's files are read in several portions.
        files: at least one.
        image_size: side in pixels to which images are resized; None keeps them as they are.

    Raises:
        FsclError: a file is not a readable image or of more than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) pixels,
            images are of different sizes, or they do not fit into memory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (4, 2), "red").save(path)
        >>> read_images(path.parent, [path])[0, :, 0, 0].tolist()
        [255, 0, 0]
    """
    return torch.from_numpy(cached_pixels(place, files, image_size, lambda: _decoded(place, files, image_size)))


def _decoded(place: Path, files: Sequence[Path], image_size: int | None) -> np.ndarray:
    if image_size is not None:  # before an image is resized to it
        _room(place, len(files), image_size, image_size)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):  # decoders work outside of Python's lock
        warnings.simplefilter("ignore")  # of odd metadata, which is not used
        first = _read(files[0], image_size)
        pixels = _room(place, len(files), *first.shape[:2])

        def put(i: int, image: np.ndarray) -> tuple[int, int]:
            if image.shape == first.shape:
                pixels[i] = image.transpose(2, 0, 1)
            return image.shape[:2]

        rest = pool.map(lambda i: put(i, _read(files[i], image_size)), range(1, len(files)))
        sizes = {put(0, first), *rest}
    if len(sizes) > 1:
        example = ", ".join(sorted(f"{width}x{height}" for height, width in sizes)[:3])
        raise FsclError(f"{place}: images of {len(sizes)} sizes ({example}, ...); set data.image_size in the recipe")
    return pixels


def _room(place: Path, count: int, height: int, width: int) -> np.ndarray:
    """An array for all images; one of them more must fit into memory."""
    what, remedy = f"{place}: {count} images of {width}x{height}", "set a smaller data.image_size in the recipe"
    require_memory(what, (count + 1) * 3 * height * width, remedy)
    try:
        return np.empty((count, 3, height, width), np.uint8)
    except MemoryError as error:
        raise FsclError(f"{what} do not fit into memory; {remedy}") from error


def _read(path: Path, image_size: int | None) -> np.ndarray:
    """RGB, uint8 (H, W, 3)."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            pixels = image.width * image.height
            if not 0 < pixels <= (Image.MAX_IMAGE_PIXELS or pixels):
                raise ValueError(f"{image.width}x{image.height} pixels; up to {Image.MAX_IMAGE_PIXELS} would do")
            with _one_large_image if pixels > LARGE else contextlib.nullcontext():
                rgb = _upright(_eight_bits(image).convert("RGB"), image)
                if image_size is not None and rgb.size != (image_size, image_size):
                    rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, reducing_gap=3.0)
                return np.asarray(rgb, dtype=np.uint8)
    except Exception as error:  # a decoder raises whatever damaged bytes lead it to
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"no {', '.join(FORMATS)} that Pillow reads" if unknown else str(error) or type(error).__name__
        raise FsclError(f"{path}: not a readable image ({reason})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode of 8 bits; Pillow would cut off all that is above 255.

    A file's own declaration decides, never its values: a dark image of 16 bits looks like one of 8.

    Raises:
        ValueError: the file does not say which value is white.
    """
    remedy = "save it with 8 or 16 unsigned bits, scaled so that the largest value is white"
    bits, inverted, unsigned = 16, False, image.mode != "F"
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, inverted = max(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC) == 0
        unsigned = unsigned and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    if not unsigned:
        raise ValueError(f"its pixels are signed or floating-point numbers; {remedy}")
    if bits > 16:
        raise ValueError(f"its pixels are {bits}-bit numbers; {remedy}")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    if inverted:  # which Pillow heeds for 8 bits, and for 16 it does not
        raise ValueError(f"its pixels are {bits}-bit numbers of which 0 is white; save it with 0 as black")
    values = np.asarray(image)
    if 0 < values.max() < 2 ** (bits - 8):
        raise ValueError(f"its pixels are {bits}-bit numbers of at most {values.max()}, which all are black; {remedy}")
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """``rgb``, which was ``image``, turned as its EXIF data says."""
    if image.format == "TIFF":  # which Pillow turns as it reads it
        return rgb
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of EXIF data that is damaged; as all viewers do, the image is shown as it is stored
        return rgb
    if orientation == 1:
        return rgb
    rgb.info = {}  # or Pillow writes the EXIF data anew, which fails where it is odd
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rgb)
