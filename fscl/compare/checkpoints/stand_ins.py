"""Stand-ins for the classes of plain data that checkpoints hold beside tensors, so that no code of a file runs.

``torch.load(weights_only=True)`` refuses a file that names a class it does not know, such as the ``argparse.Namespace``
of timm's checkpoints. It is given a stand-in for each class on the list below. A stand-in keeps nothing, but for
mappings, lists and arrays of numbers, which may hold a network's entries. So the class itself is never imported,
created or called.
"""

import _compat_pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["STAND_INS", "NumberArray", "is_enumeration", "stand_ins"]


NUMBERS = re.compile(r"[<>=|](b1|[iu][1248]|f[248]|c8|c16)")  # order of bytes, kind and size


class _Inert:
    """Stands in for an object whose content no comparison needs."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Mapping:
    """Stands in for a class of mappings. ``torch.load`` fills ordered dictionaries, but no subclasses of ``dict``."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _List:
    """Stands in for a class of lists."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        return []


class _Bytes:
    """Stands in for ``bytes``, whose call creates the empty ones of protocol 2."""

    def __new__(cls, *_: Any) -> bytes:  # type: ignore[misc]
        return b""


class _DType:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class NumberArray:
    """Stands in for a NumPy array. It keeps the bytes that the file holds, whatever shape the file claims."""

    def __init__(self, *_: Any) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self._state = tuple(state)

    @property
    def ndim(self) -> int:
        """The number of dimensions that the file claims."""
        shape = self._state[1] if len(self._state) == 5 else ()
        return len(shape) if isinstance(shape, tuple) else 0

    def tensor(self) -> Tensor | None:
        """The array as a tensor of its own memory. None if it does not hold numbers.

        Raises:
            ValueError: the array claims another number of values than it holds.
        """
        if len(self._state) != 5:
            return None
        _, shape, dtype, is_fortran, content = self._state
        if not (
            isinstance(dtype, _DType) and isinstance(content, bytes) and NUMBERS.fullmatch(f"{dtype.order}{dtype.code}")
        ):
            return None
        stored = np.dtype(f"{dtype.order}{dtype.code}".replace("|", "="))
        try:
            values = np.frombuffer(content, stored).reshape(shape, order="F" if is_fortran else "C")
        except (TypeError, OverflowError) as error:  # the shape of a damaged file may be anything
            raise ValueError(str(error)) from error
        return torch.tensor(values.astype(stored.newbyteorder("=")))


class _Member:
    """Stands in for an enumeration, whose members are stored as a call with one plain value.

    A call of another form raises the error of ``torch.load`` for a class that is not allowed.
    """

    def __new__(cls, *values: Any) -> "_Member":
        if len(values) != 1 or not _is_plain(values[0]):
            raise UnpicklingError(f"Unsupported global: GLOBAL {cls.__name__}")
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None:
        raise UnpicklingError(f"Unsupported global: GLOBAL {type(self).__name__}")


PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
OMEGACONF = "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode UnionNode"
# by stand-in: the modules and the names of classes that it stands for. Some modules have moved between versions.
CLASSES: tuple[tuple[type, str, str], ...] = (
    (_Inert, "argparse", "Namespace"),
    (_Inert, "types", "SimpleNamespace"),
    (_Inert, "pathlib pathlib._local", PATHS),
    (_Inert, "datetime", "date datetime time timedelta timezone"),
    (_Inert, "decimal", "Decimal"),
    (_Inert, "fractions", "Fraction"),
    (_Inert, "uuid", "UUID SafeUUID"),
    (_Inert, "typing", "Any Dict List Union Optional"),
    (_Inert, "builtins", "bool float frozenset int object range slice str tuple"),
    (_Inert, "torch.torch_version", "TorchVersion"),
    (_Inert, "numpy.core.multiarray numpy._core.multiarray", "scalar"),
    (_Inert, "numpy", "ndarray bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"),
    (_DType, "numpy", "dtype"),
    (NumberArray, "numpy.core.multiarray numpy._core.multiarray", "_reconstruct"),
    (_Bytes, "builtins", "bytes"),
    (_Mapping, "builtins", "dict"),
    (_Mapping, "collections", "defaultdict"),
    (_List, "builtins", "list"),
    (_List, "collections", "deque"),
    # options of training, as Lightning, OpenMMLab, Detectron and others keep them
    (_Mapping, "pytorch_lightning.utilities.parsing lightning.pytorch.utilities.parsing", "AttributeDict"),
    (_Mapping, "lightning_fabric.utilities.data lightning.fabric.utilities.data", "AttributeDict"),
    (_Mapping, "easydict", "EasyDict"),
    (_Mapping, "addict.addict", "Dict"),
    (_Mapping, "mmcv.utils.config mmengine.config.config", "ConfigDict"),
    (_Mapping, "yacs.config fvcore.common.config detectron2.config.config", "CfgNode"),
    (_Inert, "omegaconf.dictconfig", "DictConfig"),
    (_Inert, "omegaconf.listconfig", "ListConfig"),
    (_Inert, "omegaconf.base", "ContainerMetadata Metadata"),
    (_Inert, "omegaconf.nodes", OMEGACONF),
)
STAND_INS = {
    (module, name): stand_in
    for stand_in, modules, names in CLASSES
    for module in modules.split()
    for name in names.split()
}


def stand_ins(names: Iterable[tuple[str, str]]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Stand-ins for those of these classes that are plain data, as ``torch.serialization.safe_globals`` takes them.

    Args:
        names: module and name of the classes and functions that a file names; ``STAND_INS`` has all that are listed.
    """
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for stored in names:
        # protocol 2 stores the names of Python 2; torch translates some of them
        module, name = _compat_pickle.NAME_MAPPING.get(stored, stored)
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full_name = f"{module}.{name}"
        stand_in = STAND_INS.get((module, name))
        if stand_in is None and is_enumeration(full_name):
            stand_in = type(full_name, (_Member,), {})
        if stand_in is not None:
            allowed += [(stand_in, spelling) for spelling in dict.fromkeys((full_name, ".".join(stored)))]
    return allowed


def is_enumeration(name: str) -> bool:
    """Whether a class may be an enumeration of a user's own, or of a library. Nothing is imported to find out.

    If its module is imported already, the class is looked up. Otherwise :class:`_Member` decides by its form in the
    file. The standard library's classes are no such enumerations: ``subprocess.Popen`` has that form, too.

    >>> is_enumeration("my_project.Stage"), is_enumeration("subprocess.Popen"), is_enumeration("my_project.run")
    (True, False, False)
    """
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] in ("", *sys.stdlib_module_names) or not attribute[:1].isupper():
        return False
    known = getattr(sys.modules.get(module), "__dict__", {}).get(attribute)  # getattr could import more
    return known is None or (isinstance(known, type) and issubclass(known, Enum))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, str | int | float | bytes | None) for item in value)
    return isinstance(value, str | int | float | bytes | None)
