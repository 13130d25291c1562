"""Random damage of the bytes of a file, and of the values of plain data."""

import copy
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["as_json", "flip_bit", "mutate_bytes", "mutate_values"]


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Damaged ``data``: bits flipped, or a part cut off, left out, overwritten, moved, repeated or set to zero.

    >>> mutate_bytes(b"0123456789", Random(0)) != b"0123456789"
    True
    """
    for _ in range(100):
        mutated = rng.choice(DAMAGES)(bytearray(data), rng)
        if mutated != data:
            return bytes(mutated)
    return bytes(data) + b"\0"


def flip_bit(data: bytes, rng: Random) -> bytes:
    """``data`` with one bit flipped."""
    flipped = bytearray(data)
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _flip(data: bytearray, rng: Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 16))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _cut(data: bytearray, rng: Random) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _leave_out(data: bytearray, rng: Random) -> bytearray:
    start, stop = _range(data, rng)
    return data[:start] + data[stop:]


def _overwrite(data: bytearray, rng: Random) -> bytearray:
    start, stop = _range(data, rng)
    data[start:stop] = rng.randbytes(stop - start)
    return data


def _zero(data: bytearray, rng: Random) -> bytearray:
    start, stop = _range(data, rng)
    data[start:stop] = bytes(stop - start)
    return data


def _repeat(data: bytearray, rng: Random) -> bytearray:
    start, stop = _range(data, rng)
    return data[:stop] + data[start:]


def _swap(data: bytearray, rng: Random) -> bytearray:
    start, stop = _range(data, rng)
    middle = (start + stop) // 2
    return data[:start] + data[middle:stop] + data[start:middle] + data[stop:]


def _append(data: bytearray, rng: Random) -> bytearray:
    return data + rng.randbytes(rng.randint(1, 64))


DAMAGES: tuple[Callable[[bytearray, Random], bytearray], ...] = (
    _flip, _flip, _flip, _cut, _leave_out, _overwrite, _zero, _repeat, _swap, _append,
)  # fmt: skip


def _range(data: bytearray, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 256, 4096)))


def mutate_values(tree: Any, rng: Random) -> Any:
    """A copy of nested dicts and lists with values replaced, or keys dropped, added or renamed.

    >>> mutate_values({"a": [1, 2]}, Random(0)) != {"a": [1, 2]}
    True
    """
    tree = {"": copy.deepcopy(tree)}
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        places = list(_places(tree))
        owner, key = rng.choice(places)
        act = rng.randrange(8)
        if owner is tree or act < 5:
            owner[key] = _strange(rng, owner[key])
        elif act == 5:
            del owner[key]
        elif isinstance(owner, dict):
            owner[rng.choice(STRANGE_KEYS)] = owner.pop(key) if act == 6 else _strange(rng, owner[key])
        else:
            owner.insert(key, _strange(rng, owner[key]))
    return tree.get("")


def as_json(value: Any) -> bytes:
    """Plain data as the bytes of a JSON file; bytes that are refused if they cannot be written."""
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):  # nested too deep or too many digits for the JSON writer
        return b"[" * 200_000


def _places(tree: Any) -> Any:
    """(owner, key) of all values to a depth of 8. Earlier mutations may have put in values that are nested deeper."""
    stack = [(tree, 0)]
    while stack:
        owner, depth = stack.pop()
        for key in list(owner) if isinstance(owner, dict) else range(len(owner)):
            yield owner, key
            if isinstance(owner[key], dict | list) and depth < 8:
                stack.append((owner[key], depth + 1))


def _nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


STRANGE_KEYS = ("", "x", "__class__", "a.b", "n\0l", "x" * 5000, "\ud83d\ude00", "../x", "=1+1", "<b>", "a\nb")
STRANGE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**9, -(10**9), 2**31, 2**63, 2**64, 10**30, 10**400, 0.0, 0.5, -0.5, 1e-320,
    1e308, math.nan, math.inf, -math.inf, "", "0", "x", "x" * 10_000, "a\0b", "../../x", "/x", "a\nb", "<script>",
    "=1+1", "$\\frac{a$", "\u202e", "\u82b1", "nan", "1e999", [], [[]], [0], [None], ["x"] * 1000, {}, {"x": 1},
    {"": {}},
)  # fmt: skip


def _strange(rng: Random, value: Any) -> Any:
    """A value to replace ``value``: a similar value, or any value of any type."""
    if rng.random() < 0.25:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return value + rng.choice((-1, 1, 7))
        if isinstance(value, float):
            return -value or 1.0
        if isinstance(value, str) and value:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice(("", "x", "/", " ", "\u82b1")) + value[at + 1 :]
        if isinstance(value, list) and value:
            return value[:-1] if rng.random() < 0.5 else value + value
    if rng.random() < 0.03:
        return _nested(rng.choice((3, 100, 5000)))
    return copy.deepcopy(rng.choice(STRANGE_VALUES))
