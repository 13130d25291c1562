"""Reads checkpoint files as ``torch.load`` does, or refuses them with a one-line reason.

No code in a file is run: objects of plain data are replaced by stand-ins. Memory is bounded by the size of the file,
whatever sizes the file claims.
"""

import errno
import io
import json
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

from fscl.compare.checkpoints.references import CopiesError, read_references
from fscl.compare.checkpoints.stand_ins import STAND_INS, stand_ins
from fscl.errors import FsclError, printable

__all__ = ["check_claims", "check_regular", "read_container", "read_shards"]

# a file may unpack to ROOM bytes (256 MiB) plus EXPANSION times its own size
ROOM = 2**28
EXPANSION = 8
# the limit in place of ROOM for a pickle, which takes up to 9 microseconds per byte; those of torchvision's networks
# with their optimizers unpack to 3 to 5 times their size
PICKLE_ROOM = 2**18
ALIGNMENT = 64  # of tensors in the files of torch.save


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of a network that is kept in several files, by an index as Hugging Face's libraries write it.

    Raises:
        FsclError: the index or a shard cannot be read, a shard is not in the index's folder, or an entry is missing.
    """
    file = printable(str(index))
    check_regular(index)
    try:
        shard_of_entry = json.loads(index.read_bytes())["weight_map"]
        named = dict.fromkeys(shard_of_entry.values())  # in the order of the index
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FsclError(f"{file}: not an index of shards, which maps entries to files under 'weight_map'") from error
    state: dict[str, Tensor] = {}
    for shard in named:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise FsclError(f"{file}: shard {printable(str(shard))!r} is not the name of a file in the index's folder")
        path = index.with_name(shard)
        content = read_container(path, safetensors=path.suffix == ".safetensors")
        tensors = content if isinstance(content, Mapping) else {}
        for entry in (entry for entry, of in shard_of_entry.items() if of == shard):
            if not isinstance(tensors.get(entry), Tensor):
                raise FsclError(
                    f"{printable(str(path))}: entry {printable(entry)!r} is missing, which {index.name} names"
                )
            state[entry] = tensors[entry]
    if not state:
        raise FsclError(f"{file}: an index of no entries")
    sizes = [index.with_name(str(shard)).stat().st_size for shard in named]
    _check_claims(file, sum(sizes), state)
    return state


def read_container(path: Path, safetensors: bool) -> Any:
    """The content of a file, as ``torch.load(path, weights_only=True)`` returns it.

    Objects of plain data (options, paths, dates, NumPy's numbers and arrays, enumerations) are replaced by stand-ins,
    see :mod:`fscl.compare.checkpoints.stand_ins`.

    If the file stores tensors uncompressed, it is mapped, so that unused tensors are not read into memory.

    Raises:
        FsclError: the file cannot be opened, is damaged, or holds more than tensors and plain values.
    """
    check_regular(path)
    try:
        return _read_safetensors(path) if safetensors else _read_pickle(path)
    except MemoryError as error:
        raise FsclError(f"{printable(str(path))}: takes more memory than is available") from error


def check_regular(path: Path) -> None:
    """Raises :class:`FsclError` for anything but a readable file. A pipe is not opened: that could block for ever."""
    file = printable(str(path))
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kinds = (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")
            kind_name = next((name for is_kind, name in kinds if is_kind(status.st_mode)), "a device")
            raise FsclError(f"{file}: {kind_name}, not a file")
        with open(path, "rb"):
            pass
    except FsclError:
        raise
    except ValueError as error:  # a null character in its name
        raise FsclError(f"{file}: no such file") from error
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ELOOP)
        if missing and path.is_symlink():
            raise FsclError(f"{file}: a link to a file that does not exist") from error
        raise FsclError(f"{file}: {'no such file' if missing else error.strerror}") from error


def check_claims(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises :class:`FsclError` if tensors have far more values than a file of this size can store.

    Strides can repeat values, and a sparse tensor stores only values that are not zero.
    """
    _check_claims(printable(str(path)), path.stat().st_size, state)


def _check_claims(file: str, size: int, state: Mapping[str, Tensor]) -> None:
    allowed = ROOM + EXPANSION * size
    for name, tensor in state.items():
        # counted as float32 at least, because narrower values may be converted to it
        allowed -= 0 if tensor.is_meta else tensor.numel() * max(4, tensor.element_size())
        if allowed < 0:
            raise FsclError(
                f"{file}: entry {printable(name)!r} {tuple(tensor.shape)} claims more values than a file of {size} "
                "bytes may have"
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
        why = _content_by_first_bytes(path) or _first_sentence(error)
        raise FsclError(f"{printable(str(path))}: damaged or truncated, not readable as safetensors ({why})") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                archive = file.read(4) == b"PK\3\4"
                names, mapped, problem = set[tuple[str, str]](), False, None
                try:
                    if archive:
                        names, mapped = _check_archive(file, path.stat().st_size)
                    else:
                        file.seek(0)
                        names = _names_in_older_format(file, PICKLE_ROOM + EXPANSION * path.stat().st_size)
                except Exception as error:
                    if archive or isinstance(error, MemoryError | CopiesError):
                        raise
                    # torch tells better what a file is that it did not write
                    names, problem = set(STAND_INS), error
                file.seek(0)
                mapped = mapped and _is_utf8(path)
                with torch.serialization.safe_globals(stand_ins(names)):
                    # a mapped file spares reading an optimizer's state beside the network
                    source = path if mapped else file
                    content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
                if problem is not None:
                    raise problem
            return content
    except pickle.UnpicklingError as error:
        if refused := _refused_class(error):
            raise FsclError(
                f"{printable(str(path))}: holds {refused}, which is not loaded, because that could run code; save only "
                "the state, with torch.save(model.state_dict(), ...)"
            ) from error
        raise _damaged(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise _damaged(path, error) from error


def _refused_class(error: pickle.UnpicklingError) -> str:
    """The full name of a class or function that ``torch.load`` refused; empty if it failed for another reason."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    return refused[1] if refused else ""


def _check_archive(file: BinaryIO, size: int) -> tuple[set[tuple[str, str]], bool]:
    """The classes that an archive names, and whether it can be mapped: its tensors are uncompressed and aligned.

    Checks it for damage first. ``torch.load`` does not verify checksums; in a mapped file it checks neither compression
    nor sizes of records.

    Raises:
        ValueError, zipfile.BadZipFile: the archive is damaged, or unpacks to more than its size allows.
    """
    archive = zipfile.ZipFile(file)
    records = archive.infolist()
    if len({record.filename.lower() for record in records}) < len(records):
        raise ValueError("two records have one name")
    root = records[0].filename.partition("/")[0]
    if any(record.filename == f"{root}/constants.pkl" for record in records):
        raise ValueError("a program of TorchScript, which is code: save the state_dict() of torch.jit.load")
    data = archive.getinfo(f"{root}/data.pkl")
    unpacked = sum(record.file_size for record in records)
    if unpacked > ROOM + EXPANSION * size or data.file_size > PICKLE_ROOM + EXPANSION * data.compress_size:
        raise ValueError(f"records that unpack to {unpacked} bytes, far more than its own {size}")
    checked = any(record.CRC for record in records)  # False after torch.serialization.set_crc32_options(False)
    for record in records:
        if not checked:
            del record.CRC  # or zipfile would compare the content with it
            continue
        with archive.open(record) as content:
            while content.read(2**20):
                pass  # zipfile compares the checksum at the end
    sizes = {record.filename: record.file_size for record in records}
    references = read_references(io.BytesIO(archive.read(data)), PICKLE_ROOM + EXPANSION * data.file_size)
    for key, claimed in references.sizes.items():
        if sizes.get(f"{root}/data/{key}") != claimed:
            raise ValueError(f"{claimed} bytes of tensor data {key!r} are missing")
    tensors = [record for record in records if record.filename.startswith(f"{root}/data/")]
    return references.names, all(_is_stored_aligned(record, file) for record in tensors)


def _is_utf8(path: Path) -> bool:
    """Whether libraries in other languages than Python can open a file of this name."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _names_in_older_format(file: BinaryIO, room: int) -> set[tuple[str, str]]:
    """The classes that a file of the older format names.

    Raises:
        ValueError: the file lacks values of a tensor, which torch leaves uninitialised.
    """
    *_, state, keys = [read_references(file, room) for _ in range(5)]  # after the format, its version and the machine
    if set(state.sizes) - set(keys.value):
        raise ValueError("tensor data is missing")
    return state.names


def _is_stored_aligned(record: zipfile.ZipInfo, file: BinaryIO) -> bool:
    file.seek(record.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return record.compress_type == zipfile.ZIP_STORED and not (record.header_offset + 30 + name + extra) % ALIGNMENT


def _damaged(path: Path, error: Exception) -> FsclError:
    why = _content_by_first_bytes(path) or _first_sentence(error)
    return FsclError(f"{printable(str(path))}: damaged or truncated, or not a checkpoint of torch.save ({why})")


def _first_sentence(error: Exception) -> str:
    # torch surrounds the reason with other text when it refuses a pickle
    text = re.sub(r".*?WeightsUnpickler error:|PytorchStreamReader", "", str(error), count=1, flags=re.DOTALL).strip()
    reason = text.splitlines()[0].split(". ")[0] if re.search("[a-z]", text) else type(error).__name__
    return printable(reason)[:120]


def _content_by_first_bytes(path: Path) -> str:
    """What an unreadable file is, in a phrase, if its first bytes tell; otherwise empty."""
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError:
        return ""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file, which `git lfs pull` fetches"
    if head[0] == 0x80 and head[1:2] > b"\2":  # torch.save writes a zip archive, or pickles of protocol 2
        return "a plain pickle, which is not loaded, because that could run code"
    line = head.strip().split(b"\n")[0].strip()
    text = line.isascii() and line.decode("ascii").isprintable() and len(line) > 3
    return f"it begins with the text {line[:40].decode('ascii')!r}" if text else ""
