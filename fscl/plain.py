"""Checks of files from strangers: names that are safe for folders, plain data of bounded size, arrays of numbers."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fscl.errors import FsclError
from fscl.text import brief

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LONGEST", "array_of", "check_plain", "check_size", "lists_of", "name_fault", "read_json"]

DEEPEST = 16  # levels of tables and lists
LONGEST = 10_000  # characters of a text
NAME = 100  # characters of a name, in at most twice as many bytes: file systems allow 255
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows reserves these names for devices
FORBIDDEN = '<>:"/\\|?*'


def name_fault(name: str) -> str:
    """Why a name cannot be the name of a folder on every system, as the end of a sentence; empty if it can be.

    >>> name_fault("split_digits"), name_fault("../x")
    ('', "it contains '/'")
    """
    if not name:
        return "it is empty"
    if strange := next((c for c in name if c in FORBIDDEN or not c.isprintable()), None):
        return f"it contains {strange!a}"
    if len(name) > NAME or len(name.encode()) > 2 * NAME:
        return f"it is longer than {NAME} characters"
    if name != name.strip() or name.startswith((".", "-")) or name.endswith("."):
        return "it begins with a dot, a dash or a space, or ends with a dot or a space"
    if DEVICES.fullmatch(name):
        return "Windows keeps it for a device"
    return ""


def check_plain(where: object, data: Any, but: Collection[str] = ()) -> None:
    """Refuses values that are not plain data, are nested too deeply, or are too large.

    Plain data are texts, finite numbers, truth values, None, and lists and tables of plain data.

    Args:
        where: the name of the data, for the message.
        data: the values.
        but: keys of ``data`` that are not checked.

    Raises:
        FsclError: a value is refused; the message names its place.
    """
    unchecked: list[tuple[tuple[object, ...], Any]] = [((), data)]
    while unchecked:
        place, value = unchecked.pop()
        fault = ""
        if isinstance(value, dict):
            strange = next((key for key in value if not isinstance(key, str) or _text_fault(key)), None)
            fault = "" if strange is None else f"it has the key {brief(strange)}"
            unchecked += [((*place, key), item) for key, item in value.items() if place or key not in but]
        elif isinstance(value, list):
            unchecked += [((*place, number), item) for number, item in enumerate(value)]
        elif isinstance(value, str):
            fault = _text_fault(value)
        elif isinstance(value, float):
            fault = "" if math.isfinite(value) else "it is not a finite number"
        elif isinstance(value, int):
            fault = "" if -(2**63) <= value < 2**63 else "it is an integer of more than 64 bits"
        elif value is not None:
            fault = f"it is a {type(value).__name__}, not a number, a text, a list or a table"
        if len(place) > DEEPEST:
            fault = f"it is nested more than {DEEPEST} deep"
        if fault:
            at = ".".join(str(part) if str(part).isprintable() else ascii(part) for part in place)
            raise FsclError(f"{where}: {at[:200] or 'all of it'} = {brief(value)}: {fault}")


def check_size(path: Path, most: int) -> None:
    """Refuses a file of more than ``most`` bytes.

    Raises:
        FsclError: it is larger.
        OSError: it does not exist.
    """
    if (size := path.stat().st_size) > most:
        raise FsclError(f"{path}: {size} bytes are too many for a file of its kind; at most {most} would do")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FsclError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, too many digits, too deep
        raise FsclError(f"{path}: cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error


def array_of(values: Any, dimensions: int, low: float, high: float) -> NDArray[np.float64]:
    """Nested lists as an array. Null is NaN, and an empty list has no rows. An array is returned as it is.

    Raises:
        ValueError: the lists have another depth or unequal lengths, or hold anything but numbers from low to high.

    Example:
        >>> array_of([[0.5, None]], 2, 0, 1)
        array([[0.5, nan]])
    """
    import numpy as np  # commands that read no record start without it

    if isinstance(values, np.ndarray):
        return values
    if values is None or values == []:
        return np.empty((0,) * dimensions)
    flat = [values]
    for _ in range(dimensions):
        if not all(isinstance(row, list) for row in flat):
            raise ValueError("is not a rectangular list of numbers")
        flat = list(itertools.chain.from_iterable(flat))
    if any(type(value) not in (float, int, type(None)) for value in flat):
        raise ValueError("is not a rectangular list of numbers")
    if outside := next((v for v in flat if v is not None and not (low <= v <= high or v != v)), None):
        raise ValueError(f"has {brief(outside)}; its numbers are from {low:g} to {high:g}")
    try:
        return cast("NDArray[np.float64]", np.array(values, dtype=np.float64))
    except ValueError as error:
        raise ValueError("is not a rectangular list of numbers") from error


def lists_of(array: NDArray[np.float64]) -> list[Any]:
    """The inverse of :func:`array_of`."""
    import numpy as np

    return cast("list[Any]", np.where(np.isnan(array), cast(Any, None), array).tolist())


def _text_fault(text: str) -> str:
    if len(text) > LONGEST:
        return f"it is a text of more than {LONGEST} characters"
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return "it contains NUL, or half of a surrogate pair"
    return ""
