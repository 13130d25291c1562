"""Image folders as they were decoded last time; reading 60,000 small files anew for each run takes too long."""

import contextlib
import hashlib
import math
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from fscl.continual.images import require_memory
from fscl.errors import FsclError
from fscl.files import remove_stale, write_atomically

__all__ = ["cache_folder", "cached_pixels"]

FORMAT = 2  # of the copies, and of the pixels that files are decoded to
CHECKSUM_BYTES = 4


def cache_folder() -> Path:
    """Where decoded images are kept: ``$FSCL_CACHE``, else ``fscl`` in the user's cache folder. It may be deleted.

    Raises:
        FsclError: the user has no home.
    """
    if own := os.environ.get("FSCL_CACHE"):
        return Path(own)
    try:
        folder = user_cache_path("fscl", appauthor=False)
    except RuntimeError:  # of newer platformdirs; of older ones, the path begins with "~"
        folder = Path("~")
    if not folder.is_absolute():
        raise FsclError("this user has no home folder, and FSCL_CACHE does not say where else to keep images")
    return folder


def cached_pixels(
    folder: Path, files: Sequence[Path], image_size: int | None, decode: Callable[[], np.ndarray]
) -> np.ndarray:
    """What ``decode`` returns, uint8 (N, C, H, W), taken from the cache if it is of the very same files.

    Files are the same if their names, sizes and times of change are. A folder, which need not be there, has one copy in
    the cache at most; one that cannot be read or that changed since is made anew, and a cache that cannot be written is
    done without.

    Raises:
        FsclError: a file is not there or no ordinary file, or as ``decode`` does.
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
    remove_stale(copy.parent)  # each may be as large as the data set
    # whatever is wrong with a copy, it can be made anew
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
    """Other bytes for another file, or for the file after a change."""
    try:
        about = path.stat()
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(about.st_mode):  # a pipe would wait for its writer, a device might never end
        raise FsclError(f"{path}: not a file but a folder, pipe, socket or device; remove it")
    times = f"\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ctime_ns}"
    return os.fsencode(f"\0{path.parent.name}/{path.name}{times}")


def _save(path: Path, key: str, pixels: np.ndarray) -> None:
    """A NumPy file with a checksum behind its end."""
    with open(path, "wb") as file:
        np.save(file, pixels, allow_pickle=False)
        file.write(_checksum(key, pixels))


def _load(path: Path, key: str, count: int) -> np.ndarray:
    """What was saved.

    Raises:
        Exception: of any kind, if it is not what was saved with this key.
    """
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("of another version of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = math.prod(shape)
        whole = file.tell() + size + CHECKSUM_BYTES == os.fstat(file.fileno()).st_size
        if not whole or dtype != np.uint8 or len(shape) != 4 or shape[0] != count:
            raise ValueError("not these images")
        require_memory(f"{path}: its images", size, "make it anew")
        pixels = np.fromfile(file, np.uint8, size).reshape(shape)
        if file.read() != _checksum(key, pixels):
            raise ValueError("changed since it was written")
    return pixels


def _checksum(key: str, pixels: np.ndarray) -> bytes:
    """0.1 s for 200 MB; with the key, so that another folder's copy is none of this one."""
    return zlib.crc32(pixels.data, zlib.crc32(f"{key} {pixels.shape}".encode())).to_bytes(CHECKSUM_BYTES, "little")
