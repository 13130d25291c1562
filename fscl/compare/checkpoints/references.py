"""Reads which tensor data and which classes a pickle refers to, before ``torch.load`` reads it."""

import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch

__all__ = ["CopiesError", "References", "read_references"]

# plain values that a call, or an object that gets its state, may copy
COPIED = (str, bytes, bytearray, tuple, list, dict, set, frozenset)


class CopiesError(ValueError):
    """The calls in a pickle copy more values than a file of its size holds."""


def read_references(file: BinaryIO, room: int) -> "References":
    """Reads a pickle. Of its other content, only plain values are created.

    Args:
        file: where the pickle begins.
        room: the most values that its calls may copy. A call takes three bytes in a pickle, and its arguments may be
            a list or a text that thousands of other calls take, too.

    Raises:
        CopiesError: calls copy more values.
        ValueError: tensor data has two sizes or an unknown type.
        Exception: whatever a damaged pickle raises.
    """
    reader = References(file, room)
    reader.value = reader.load()
    return reader


class _Placeholder:
    """Stands in for any class that a pickle names."""

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...


def _counted(code: bytes, operands: int) -> Callable[[Any], None]:
    """What the unpickler does for an opcode that takes so many operands, which are counted first."""
    load = pickle._Unpickler.dispatch[code[0]]

    def count_and_load(reader: Any) -> None:  # the types of the standard library lack its stack
        for operand in reader.stack[-operands:]:
            values = itertools.chain([operand], operand if isinstance(operand, tuple) else ())
            reader.room -= sum(len(value) if isinstance(value, COPIED) else 1 for value in values)
        if reader.room < 0:
            raise CopiesError("its calls copy more values than the file holds")
        load(reader)

    return count_and_load


class References(pickle._Unpickler):
    """The unpickler in Python: the one in C allocates any size that a hostile index names.

    Attributes:
        value: the content of the pickle, without objects.
        sizes: by key, the bytes of tensor data that the pickle claims.
        names: module and name of the classes and functions that the pickle names.
        room: how many values calls may still copy.
    """

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _counted(pickle.REDUCE, 1),
        pickle.NEWOBJ[0]: _counted(pickle.NEWOBJ, 1),
        pickle.NEWOBJ_EX[0]: _counted(pickle.NEWOBJ_EX, 2),
        pickle.BUILD[0]: _counted(pickle.BUILD, 1),
    }

    def __init__(self, file: BinaryIO, room: int) -> None:
        super().__init__(file, encoding="utf-8")
        self.value: Any = None
        self.sizes: dict[str, int] = {}
        self.names: set[tuple[str, str]] = set()
        self.room = room

    def find_class(self, module: str, name: str) -> Any:
        self.names.add((module, name))
        if not (module in ("torch", "torch.storage") and name.endswith("Storage")):
            return _Placeholder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # typed storages are deprecated
            storage = getattr(torch, name)
            return getattr(storage, "dtype", None) or torch.uint8

    def persistent_load(self, reference: Any) -> _Placeholder:
        _, dtype, key, _, values, *_ = reference
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"tensor data of type {type(dtype).__name__}")
        size = values * dtype.itemsize
        if self.sizes.setdefault(str(key), size) != size:
            raise ValueError(f"tensor data {key!r} has two sizes")
        return _Placeholder()
