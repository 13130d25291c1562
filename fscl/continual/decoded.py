"""Image folders as they were decoded last time; reading 60,000 small files anew for each run takes too long."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fscl.errors import FsclError
from fscl.files import write_atomically

__all__ = ["cache_folder", "cached_pixels"]

FORMAT = 1


def cache_folder() -> Path:
    """Where decoded images are kept: ``$FSCL_CACHE``, else ``fscl`` in the user's cache folder. It may be deleted."""
    if own := os.environ.get("FSCL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fscl"


def cached_pixels(
    folder: Path, files: Sequence[Path], image_size: int | None, decode: Callable[[], np.ndarray]
) -> np.ndarray:
    """What ``decode`` returns, uint8 (N, C, H, W), taken from the cache if it is of the very same files.

    Files are the same if their names, sizes and times of change are. A folder, which need not be there, has one copy in
    the cache at most; one that cannot be read is made anew, and a cache that cannot be written is done without.
    """
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    stamps = hashlib.sha256(f"{FORMAT} {image_size}".encode())
    for path in files:
        about = path.stat()
        stamps.update(f"\0{path.parent.name}/{path.name}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    try:
        copy = cache_folder() / f"{place}-{stamps.hexdigest()[:16]}.npy"
    except RuntimeError:  # a user without a home
        return decode()
    with contextlib.suppress(OSError, ValueError, EOFError):
        pixels = np.load(copy, allow_pickle=False)
        if pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == len(files):
            return pixels
    pixels = decode()
    with contextlib.suppress(OSError, FsclError):
        write_atomically(copy, lambda temporary: _save(temporary, pixels))
        for old in copy.parent.glob(f"{place}-*.npy"):
            if old != copy:
                old.unlink(missing_ok=True)
    return pixels


def _save(path: os.PathLike[str], pixels: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, pixels, allow_pickle=False)
