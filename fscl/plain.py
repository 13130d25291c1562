"""Files of strangers: names that are safe as a folder's, and values that are plain data of bounded size."""

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.text import brief

__all__ = ["LONGEST", "check_plain", "check_size", "name_fault", "read_json"]

DEEPEST = 16  # levels of tables and lists
LONGEST = 10_000  # characters of a text
NAME = 100  # characters of a name; twice as many bytes stay below the 255 of a file system
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # what Windows takes for no file
FORBIDDEN = '<>:"/\\|?*'


def name_fault(name: str) -> str:
    """Why a name cannot be the name of one folder on every system, as the end of a sentence; empty if it can.

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
    """Refuses what is no text, finite number, truth value, list or table of them, is nested deeply, or is huge.

    Args:
        where: what the data is of, for the message.
        data: the values.
        but: keys of ``data`` that are not looked at.

    Raises:
        FsclError: the first place of such a value.
    """
    left: list[tuple[tuple[object, ...], Any]] = [((), data)]
    while left:
        place, value = left.pop()
        fault = ""
        if isinstance(value, dict):
            strange = next((key for key in value if not isinstance(key, str) or _text_fault(key)), None)
            fault = "" if strange is None else f"it has the key {brief(strange)}"
            left += [((*place, key), item) for key, item in value.items() if place or key not in but]
        elif isinstance(value, list):
            left += [((*place, number), item) for number, item in enumerate(value)]
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
    """Refuses a file of more bytes than a file of its kind has.

    Raises:
        FsclError: it is larger.
        OSError: there is none.
    """
    if (size := path.stat().st_size) > most:
        raise FsclError(f"{path}: {size} bytes are too many for a file of its kind; at most {most} would do")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FsclError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, too many digits, too deep
        raise FsclError(f"{path}: cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error


def _text_fault(text: str) -> str:
    if len(text) > LONGEST:
        return f"it is a text of more than {LONGEST} characters"
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return "it contains NUL, or half of a surrogate pair"
    return ""
