"""Reading checkpoint files: a network's state, whatever it is nested in and however its entries are prefixed."""

import glob
import os
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fscl.atoms.filters import same_layers, spatial_filters
from fscl.errors import FsclError

if TYPE_CHECKING:  # it takes Avalanche, which takes seconds
    from fscl.suite.architecture import Architecture

__all__ = ["Checkpoints", "find_checkpoints", "load_checkpoints", "read_checkpoint"]

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors")
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
PREFIXES = ("module.", "model.")  # of DataParallel, and of what a Lightning module calls its network


@dataclass(frozen=True)
class Checkpoints:
    """The states of the networks that can be compared, by name.

    Attributes:
        states: every network's entries.
        files: where each was read from.
        layers: the convolutions to compare, in order.
        left_out: files that could not be used, with the reason.
    """

    states: dict[str, dict[str, Tensor]]
    files: dict[str, Path]
    layers: list[str]
    left_out: dict[Path, str] = field(default_factory=dict)


def load_checkpoints(
    paths: Sequence[Path], architecture: "Architecture | None" = None, skip_broken: bool = False
) -> Checkpoints:
    """Reads files, and folders of files, that hold networks of one architecture.

    Args:
        paths: checkpoint files; a folder stands for all of them in it, sorted.
        architecture: what they must fit, and what gives the layers their order; by default they must have the spatial
            convolutions that most of them have, which are compared in the order of the first of those.
        skip_broken: leave out files that cannot be used, where otherwise the first is an error.

    Raises:
        FsclError: a file cannot be used, is given twice, or fewer than two are left.
    """
    files = list(find_checkpoints(paths).values())
    usable: dict[Path, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    left_out: dict[Path, str] = {}

    def leave_out(path: Path, error: FsclError) -> None:
        if not skip_broken:
            raise FsclError(f"{error}{'; --skip-broken goes on without it' * (len(files) > 2)}") from error
        left_out[path] = str(error).removeprefix(f"{path}: ")

    for path in files:
        try:
            usable[path] = _usable(path, architecture)
        except FsclError as error:
            leave_out(path, error)
    first = _commonest({path: filters for path, (_, filters) in usable.items()})
    for path, (_, filters) in list(usable.items()):
        try:
            same_layers(str(path), filters, str(first), usable[first][1])
        except FsclError as error:
            leave_out(path, error)
            del usable[path]
    if len(usable) < 2:
        why = "".join(f"; {path}: {reason}" for path, reason in list(left_out.items())[:1])
        raise FsclError(f"{len(usable)} checkpoint{'s' * (len(usable) != 1)} to compare; it takes at least 2{why}")
    named = dict(zip(_names(list(usable)), usable, strict=True))
    states = {name: usable[path][0] for name, path in named.items()}
    return Checkpoints(states, named, list(usable[first][1]), {p: left_out[p] for p in files if p in left_out})


def find_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """The files that are meant, by short names that differ: the file's, or with folders and suffix where they must be.

    Raises:
        FsclError: there is no such file, a folder holds none, a suffix is unknown, or a file is given twice.
    """
    files: list[Path] = []
    for path in (each for given in paths for each in _expanded(given)):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if _kind(p) and p.is_file() and not p.name.startswith("."))
            if not inside:
                raise FsclError(f"{path}: no checkpoint files in this folder ({', '.join(SUFFIXES)})")
            files += inside
        elif not path.exists():
            raise FsclError(f"{path}: no such file or folder")
        elif not _kind(path):
            raise FsclError(f"{path}: unknown kind of checkpoint; known: {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    whole = [Path(os.path.abspath(file)) for file in files]
    if twice := [file for i, file in enumerate(files) if whole[i] in whole[:i]]:
        raise FsclError(f"{twice[0]}: given twice")
    return dict(zip(_names(files), files, strict=True))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of the network in a file, by the names under which they lie there. No code is executed.

    Raises:
        FsclError: there is no such file, it is damaged, holds no state of a network, or more than tensors and plain
            values.
    """
    if not path.is_file():
        raise FsclError(f"{path}: no such file")
    found = _read_safetensors(path) if _kind(path) == ".safetensors" else _read_pickle(path)
    nested: Any = found
    while isinstance(nested, Mapping):
        inner = [nested[key] for key in NESTED if isinstance(nested.get(key), Mapping)]
        if not inner and not _tensors(nested):  # under a name of its own, if there is but one
            inner = [value for value in nested.values() if isinstance(value, Mapping) and _tensors(value)]
            inner = inner if len(inner) == 1 else []
        if not inner:
            break
        nested = inner[0]
    state = _tensors(nested) if isinstance(nested, Mapping) else {}
    if not state:
        keys = f" with {', '.join(map(str, list(found)[:6]))}" if isinstance(found, Mapping) else ""
        raise FsclError(f"{path}: not the state of a network, but {type(found).__name__}{keys}")
    return {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}  # torch.compile's, at any depth


def _expanded(path: Path) -> list[Path]:
    """The path itself, or what matches it where no shell has looked: in quotes, or on Windows."""
    return [path] if path.exists() else sorted(map(Path, glob.glob(str(path)))) or [path]


def _kind(path: Path) -> str:
    """The known suffix of a file, in small letters; empty if it has none of them."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def _names(files: Sequence[Path]) -> list[str]:
    whole = [Path(os.path.abspath(file)) for file in files]
    bare = [p.with_name(p.name[: -len(_kind(p))] or p.name) for p in whole]
    common = Path(os.path.commonpath([p.parent for p in whole])) if whole else Path()
    for names in (
        [p.name for p in bare],
        [p.name for p in whole],
        [p.relative_to(common).as_posix() for p in bare],
        [p.relative_to(common).as_posix() for p in whole],
    ):
        if len(set(names)) == len(names):
            break
    return names


def _commonest(filters: Mapping[Path, Mapping[str, Tensor]]) -> Path:
    """The first of the files whose layers most of them have: one stranger is left out, wherever in the row it is."""
    kinds = {path: frozenset((n, t.shape) for n, t in found.items()) for path, found in filters.items()}
    most = Counter(kinds.values()).most_common(1)
    return next((path for path, kind in kinds.items() if kind == most[0][0]), Path())


def _usable(path: Path, architecture: "Architecture | None") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's state and its filters, without the prefixes of wrappers."""
    states = list(_without_prefixes(read_checkpoint(path)))
    if architecture is None:
        return states[-1], spatial_filters(str(path), states[-1])
    for state in states:
        if not architecture.misfit(state):
            break
    else:
        raise FsclError(f"{path}: {architecture.misfit(states[-1])}")
    found = spatial_filters(str(path), state)
    return state, {layer: found[layer] for layer in architecture.layers}


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state, and what is left of it as prefixes that all its filters have are taken off, one after another."""
    yield state
    while True:
        filters = [key for key, tensor in state.items() if tensor.ndim == 4] or list(state)
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in filters)), None)
        if prefix is None:
            return
        # what does not have it is not the network: a loss, or a counter of averaged models
        state = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
        yield state


def _tensors(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if (file.metadata() or {}).get("format") == "fscl.AtomBank":
                raise FsclError(f"{path}: an atom bank, not a checkpoint; see `fscl heatmap`")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        why = _strange_beginning(path) or str(error)
        raise FsclError(f"{path}: damaged or truncated, not readable as safetensors ({why})") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # mapped, so that an optimizer's state beside the network is not read; only the newer format allows it
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise FsclError(
                f"{path}: holds {refused[1]}, which is not loaded, for that could run code; save the state alone, with "
                "torch.save(model.state_dict(), ...)"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FsclError:
    # torch says much else besides when it refuses a pickle
    text = re.sub(r".*?WeightsUnpickler error:|PytorchStreamReader", "", str(error), count=1, flags=re.DOTALL).strip()
    reason = text.splitlines()[0].split(". ")[0] if re.search("[a-z]", text) else type(error).__name__
    why = _strange_beginning(path) or reason[:120]
    return FsclError(f"{path}: damaged or truncated, or not a checkpoint of torch.save ({why})")


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
