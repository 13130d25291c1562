"""What a checkpoint file holds, as ``torch.load`` reads it; or one line that says why it is not read.

No code in a file is run, and no more memory is taken than the file may need, whatever it says.
"""

import errno
import io
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from fscl.errors import FsclError
from fscl.text import printable

__all__ = ["check_claims", "check_regular", "read_container"]

ROOM = 2**28  # bytes that any file may unpack to, 256 MiB, beside EXPANSION times its own size
EXPANSION = 8
PICKLE_ROOM = 2**23  # the same for a pickle alone, which takes a microsecond a byte
ALIGNMENT = 64  # of tensors in the files of torch.save


def read_container(path: Path, safetensors: bool) -> Any:
    """All that lies in a file, as ``torch.load(path, weights_only=True)`` has it.

    Tensors lie in the mapped file where it keeps them as they are, so that what is not used is not read into memory.

    Raises:
        FsclError: it cannot be opened, is damaged, or holds more than tensors and plain values.
    """
    check_regular(path)
    try:
        return _read_safetensors(path) if safetensors else _read_pickle(path)
    except MemoryError as error:
        raise FsclError(f"{printable(str(path))}: takes more memory than there is") from error


def check_regular(path: Path) -> None:
    """Raises :class:`FsclError` for what is no file that can be read, without waiting for what may never come."""
    file = printable(str(path))
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kinds = (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")
            kind = next((name for is_kind, name in kinds if is_kind(found.st_mode)), "a device")
            raise FsclError(f"{file}: {kind}, not a file")
        with open(path, "rb"):
            pass
    except FsclError:
        raise
    except ValueError as error:  # a null character in its name
        raise FsclError(f"{file}: no such file") from error
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ELOOP)
        if missing and path.is_symlink():
            raise FsclError(f"{file}: a link to a file that is not there") from error
        raise FsclError(f"{file}: {'no such file' if missing else error.strerror}") from error


def check_claims(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises :class:`FsclError` where tensors stand for far more values than a file of its size keeps.

    A tensor may repeat the values that it has, or have few that are not zero.
    """
    allowed = ROOM + EXPANSION * path.stat().st_size
    for name, tensor in state.items():
        # what is narrower than float32 may have to become it
        allowed -= 0 if tensor.is_meta else tensor.numel() * max(4, tensor.element_size())
        if allowed < 0:
            raise FsclError(
                f"{printable(str(path))}: entry {printable(name)!r} {tuple(tensor.shape)} stands for more values than "
                f"a file of {path.stat().st_size} bytes may have"
            )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        if not _is_utf8(path):
            return load(path.read_bytes())
        with safe_open(path, framework="pt", device="cpu") as file:
            if (file.metadata() or {}).get("format") == "fscl.AtomBank":
                raise FsclError(f"{printable(str(path))}: an atom bank, not a checkpoint; see `fscl heatmap`")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FsclError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        why = _strange_beginning(path) or _first_sentence(error)
        raise FsclError(f"{printable(str(path))}: damaged or truncated, not readable as safetensors ({why})") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                archive = file.read(4) == b"PK\3\4"
                # mapped, so that an optimizer's state beside the network is not read
                mapped = archive and _is_mappable(file, path.stat().st_size) and _is_utf8(path)
                file.seek(0)
                found = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
                if not archive:
                    file.seek(0)
                    _check_data_is_there(file)
            return found
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise FsclError(
                f"{printable(str(path))}: holds {refused[1]}, which is not loaded, for that could run code; save the "
                "state alone, with torch.save(model.state_dict(), ...)"
            ) from error
        raise _damaged(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise _damaged(path, error) from error


def _is_mappable(file: BinaryIO, size: int) -> bool:
    """Whether tensors can be used where they lie in an archive, which is found whole.

    ``torch.load`` looks at no checksum, and in a mapped file neither at compression nor at the size of a record.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged, or unpacks to more than its size allows.
    """
    archive = zipfile.ZipFile(file)
    records = archive.infolist()
    if len({record.filename.lower() for record in records}) < len(records):
        raise ValueError("two records of one name")
    root = records[0].filename.partition("/")[0]
    data = archive.getinfo(f"{root}/data.pkl")
    unpacked = sum(record.file_size for record in records)
    if unpacked > ROOM + EXPANSION * size or data.file_size > PICKLE_ROOM + EXPANSION * data.compress_size:
        raise ValueError(f"records that unpack to {unpacked} bytes, far more than its own {size}")
    checked = any(record.CRC for record in records)  # there are none after torch.serialization.set_crc32_options(False)
    for record in records:
        if not checked:
            del record.CRC  # with which it would be compared
            continue
        with archive.open(record) as content:
            while content.read(2**20):
                pass  # it is compared at the end
    sizes = {record.filename: record.file_size for record in records}
    for key, claimed in _references(io.BytesIO(archive.read(data))).sizes.items():
        if sizes.get(f"{root}/data/{key}") != claimed:
            raise ValueError(f"{claimed} bytes of tensor data {key!r} are not there")
    return all(_lies_open(record, file) for record in records if record.filename.startswith(f"{root}/data/"))


def _is_utf8(path: Path) -> bool:
    """Whether libraries in other languages than Python can open a file of this name."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_data_is_there(file: BinaryIO) -> None:
    """Raises ValueError if a file of the older format leaves the values of a tensor as memory happens to be."""
    *_, state, keys = [_references(file) for _ in range(5)]  # after the format, its version and the machine
    if set(state.sizes) - set(keys.value):
        raise ValueError("tensor data that is not there")


def _lies_open(record: zipfile.ZipInfo, file: BinaryIO) -> bool:
    file.seek(record.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return record.compress_type == zipfile.ZIP_STORED and not (record.header_offset + 30 + name + extra) % ALIGNMENT


def _references(file: BinaryIO) -> "_References":
    """The tensor data that a pickle refers to; of what else is in it, only plain values are made."""
    reader = _References(file, encoding="utf-8")
    reader.value = reader.load()
    return reader


class _Nothing:
    """Whatever a pickle asks for."""

    def __new__(cls, *_: Any, **__: Any) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...


class _References(pickle._Unpickler):
    """The unpickler in C would allocate whatever a hostile index asks for.

    Attributes:
        value: what is in the pickle, but for objects.
        sizes: bytes of the tensor data by key, as the pickle says.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.value: Any = None
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if not (module in ("torch", "torch.storage") and name.endswith("Storage")):
            return _Nothing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the typed ones are deprecated
            kind = getattr(torch, name)
            return getattr(kind, "dtype", None) or torch.uint8

    def persistent_load(self, reference: Any) -> _Nothing:
        _, dtype, key, _, values, *_ = reference
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"tensor data of type {type(dtype).__name__}")
        size = values * dtype.itemsize
        if self.sizes.setdefault(str(key), size) != size:
            raise ValueError(f"tensor data {key!r} of two sizes")
        return _Nothing()


def _damaged(path: Path, error: Exception) -> FsclError:
    why = _strange_beginning(path) or _first_sentence(error)
    return FsclError(f"{printable(str(path))}: damaged or truncated, or not a checkpoint of torch.save ({why})")


def _first_sentence(error: Exception) -> str:
    # torch says much else besides when it refuses a pickle
    text = re.sub(r".*?WeightsUnpickler error:|PytorchStreamReader", "", str(error), count=1, flags=re.DOTALL).strip()
    reason = text.splitlines()[0].split(". ")[0] if re.search("[a-z]", text) else type(error).__name__
    return printable(reason)[:120]


def _strange_beginning(path: Path) -> str:
    """What a file is that could not be read, where its first bytes tell; in a phrase."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError:
        return ""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in the place of the file, which `git lfs pull` fetches"
    if head[0] == 0x80 and head[1:2] > b"\2":  # torch.save writes protocol 2, if it does not write a zip archive
        return "a plain pickle, which is not loaded, for that could run code"
    line = head.strip().split(b"\n")[0].strip()
    text = line.isascii() and line.decode("ascii").isprintable() and len(line) > 3
    return f"it begins with the text {line[:40].decode('ascii')!r}" if text else ""
