"""Reads image files as one uint8 tensor. They are decoded by all cores, and cached for the next time.

Without the cache, each run would read 60,000 small files again.
"""

import contextlib
import hashlib
import math
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from platformdirs import user_cache_path
from torch import Tensor

from fscl.data.images import require_memory
from fscl.errors import FsclError
from fscl.files import remove_stale, write_atomically

__all__ = ["FORMATS", "SUFFIXES", "cache_folder", "cached_copies", "cached_pixels", "read_each", "read_images"]

# No other format is tried, whatever the name of a file: Pillow passes PostScript to Ghostscript, which runs programs.
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

LARGE = 2**24  # pixels; larger images are decoded one after another, or each core would need memory for one
_one_large_image = threading.Lock()
_SAMPLE_FORMAT, _BITS, _PHOTOMETRIC = 339, 258, 262  # TIFF tags


def read_images(place: Path, files: Sequence[Path], image_size: int | None = None) -> Tensor:
    """All files as RGB, uint8 (N, 3, H, W), in order, as torchvision's ``ImageFolder`` reads them, but upright.

    Images are turned as their EXIF data says. Transparency is dropped: a pixel has the colour that the file stores.
    Only the first frame or page is read. Greys of 10 to 16 bits are scaled to 8 bits by the depth that the file
    declares. Floating-point, signed and 32-bit pixels are refused, because the file does not say which value is white.

    Args:
        place: the name of these files in the cache: their folder, or a name below it if the files of a folder are read
            in several portions.
        files: at least one file.
        image_size: side in pixels to which images are resized; None keeps their size.

    Raises:
        FsclError: a file is not a readable image, or has more than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) pixels;
            images differ in size; or they do not fit into memory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (4, 2), "red").save(path)
        >>> read_images(path.parent, [path])[0, :, 0, 0].tolist()
        [255, 0, 0]
    """
    return torch.from_numpy(cached_pixels(place, files, image_size, lambda: _decoded(place, files, image_size)))


def read_each(files: Sequence[Path], image_shape: tuple[int, int, int]) -> Tensor:
    """Files that need not have one size, resized to a shape (C, H, W): uint8 (N, C, H, W). They are not cached.

    With one channel, colours become grey (ITU-R 601).

    Raises:
        FsclError: a file is not a readable image, or the shape has neither one nor three channels.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (4, 2), "red").save(path)
        >>> read_each([path], (1, 2, 2)).flatten().tolist()
        [76, 76, 76, 76]
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise FsclError(f"images have 1 or 3 channels; the network takes {channels}")
    require_memory(f"{len(files)} images of {width}x{height}", len(files) * channels * height * width, "give fewer")
    images = torch.empty(len(files), *image_shape, dtype=torch.uint8)
    for image, file in zip(images, files, strict=True):
        rgb = Image.fromarray(_read(file, None)).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        pixels = np.asarray(rgb.convert("L"))[None] if channels == 1 else np.asarray(rgb).transpose(2, 0, 1)
        image.copy_(torch.from_numpy(pixels.copy()))
    return images


def _decoded(place: Path, files: Sequence[Path], image_size: int | None) -> np.ndarray:
    if image_size is not None:  # checked before the first image is resized
        _room(place, len(files), image_size, image_size)
    # threads will do, because decoders release Python's lock
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # about odd metadata, which is not used
        first = _read(files[0], image_size)
        pixels = _room(place, len(files), *first.shape[:2])

        def put(i: int, image: np.ndarray) -> tuple[int, int]:
            if image.shape == first.shape:
                pixels[i] = image.transpose(2, 0, 1)
            return image.shape[:2]

        remaining = pool.map(lambda i: put(i, _read(files[i], image_size)), range(1, len(files)))
        sizes = {put(0, first), *remaining}
    if len(sizes) > 1:
        example = ", ".join(sorted(f"{width}x{height}" for height, width in sizes)[:3])
        raise FsclError(f"{place}: images of {len(sizes)} sizes ({example}, ...); set data.image_size in the recipe")
    return pixels


def _room(place: Path, count: int, height: int, width: int) -> np.ndarray:
    """An array for all images. One image more must fit into memory, for decoding."""
    images, remedy = f"{place}: {count} images of {width}x{height}", "set a smaller data.image_size in the recipe"
    require_memory(images, (count + 1) * 3 * height * width, remedy)
    try:
        return np.empty((count, 3, height, width), np.uint8)
    except MemoryError as error:
        raise FsclError(f"{images} do not fit into memory; {remedy}") from error


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
    except Exception as error:  # damaged bytes can make a decoder raise anything
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"no {', '.join(FORMATS)} that Pillow reads" if unknown else str(error) or type(error).__name__
        raise FsclError(f"{path}: not a readable image ({reason})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode of 8 bits. Pillow's own conversion would clip values above 255.

    The depth is the one that the file declares. It is never guessed from values: a dark image of 16 bits looks like one
    of 8 bits.

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
    if inverted:  # Pillow inverts such images of 8 bits, but not of 16
        raise ValueError(f"its pixels are {bits}-bit numbers with 0 as white; save it with 0 as black")
    values = np.asarray(image)
    if 0 < values.max() < 2 ** (bits - 8):
        raise ValueError(f"its pixels are {bits}-bit numbers of at most {values.max()}, which are all black; {remedy}")
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """``rgb``, the converted ``image``, turned as the EXIF data of ``image`` says."""
    if image.format == "TIFF":  # Pillow has turned it already
        return rgb
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data; like all viewers, use the image as it is stored
        return rgb
    if orientation == 1:
        return rgb
    rgb.info = {}  # without its EXIF data, as Pillow would fail to write odd EXIF data again
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rgb)


FORMAT = 2  # version of the cached copies, and of how files are decoded to pixels
CHECKSUM_BYTES = 4
COPY = re.compile("[0-9a-f]{16}-[0-9a-f]{16}.npy")  # names of cached copies: their folder, and its files


def cache_folder() -> Path:
    """The folder of decoded images: ``$FSCL_CACHE``, or ``fscl`` in the user's cache folder. It may be deleted.

    Raises:
        FsclError: the user has no home folder.
    """
    if chosen := os.environ.get("FSCL_CACHE"):
        return Path(chosen)
    try:
        folder = user_cache_path("fscl", appauthor=False)
    except RuntimeError:  # raised by newer platformdirs; older ones return a path that begins with "~"
        folder = Path("~")
    if not folder.is_absolute():
        raise FsclError("this user has no home folder; set FSCL_CACHE to a folder for decoded images")
    return folder


def cached_copies() -> list[Path]:
    """The files of decoded images in the cache. Other files in its folder are none of fscl's."""
    folder = cache_folder()
    return sorted(file for file in folder.glob("*.npy") if COPY.fullmatch(file.name)) if folder.is_dir() else []


def cached_pixels(
    folder: Path, files: Sequence[Path], image_size: int | None, decode: Callable[[], np.ndarray]
) -> np.ndarray:
    """The result of ``decode``, uint8 (N, C, H, W), from the cache if the files have not changed.

    Files have not changed if their names, sizes and times of change are the same. The cache has at most one copy for a
    ``folder``, which need not exist. A copy that is unreadable or outdated is replaced. If the cache cannot be written,
    it is not used.

    Raises:
        FsclError: a file is missing or is not a regular file; and as ``decode``.
    """
    place = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    stamps = hashlib.sha256(f"{FORMAT} {image_size}".encode())
    for path in files:
        stamps.update(_stamp(path))
    key = stamps.hexdigest()
    try:
        copy = cache_folder() / f"{place}-{key[:16]}.npy"
    except FsclError:
        return decode()
    remove_stale(copy.parent)  # a stale file may be as large as the data set
    # any error is fine: an unusable copy is replaced
    with contextlib.suppress(Exception):
        return _load(copy, key, len(files))
    pixels = decode()
    with contextlib.suppress(OSError, FsclError):
        write_atomically(copy, lambda temporary: _save(temporary, key, pixels))
        for old in copy.parent.glob(f"{place}-*.npy"):
            if old != copy:
                old.unlink(missing_ok=True)
    return pixels


def _stamp(path: Path) -> bytes:
    """Bytes that differ for different files, and for a file before and after a change."""
    try:
        status = path.stat()
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe waits for its writer, and a device may never end
        raise FsclError(f"{path}: a folder, pipe, socket or device instead of a file; remove it")
    times = f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return os.fsencode(f"\0{path.parent.name}/{path.name}{times}")


def _save(path: Path, key: str, pixels: np.ndarray) -> None:
    """Writes a NumPy file, followed by a checksum."""
    with open(path, "wb") as file:
        np.save(file, pixels, allow_pickle=False)
        file.write(_checksum(key, pixels))


def _load(path: Path, key: str, count: int) -> np.ndarray:
    """Reads what :func:`_save` wrote.

    Raises:
        Exception: any exception, if the file is damaged or was saved with another key.
    """
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = math.prod(shape)
        has_right_size = file.tell() + size + CHECKSUM_BYTES == os.fstat(file.fileno()).st_size
        if not has_right_size or dtype != np.uint8 or len(shape) != 4 or shape[0] != count:
            raise ValueError("not these images")
        require_memory(f"{path}: its images", size, "delete it")
        pixels = np.fromfile(file, np.uint8, size).reshape(shape)
        if file.read() != _checksum(key, pixels):
            raise ValueError("changed since it was written")
    return pixels


def _checksum(key: str, pixels: np.ndarray) -> bytes:
    """A checksum of pixels and key, so that a copy of another folder does not match. It takes 0.1 s for 200 MB."""
    return zlib.crc32(pixels.data, zlib.crc32(f"{key} {pixels.shape}".encode())).to_bytes(CHECKSUM_BYTES, "little")
