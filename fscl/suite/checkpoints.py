"""Reading checkpoint files: a network's state, whatever it is nested in and however its entries are prefixed."""

import os
import pickle
import re
import warnings
import zipfile
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

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (*PICKLED, ".safetensors")
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
        architecture: what they must fit, and what gives the layers their order; by default all spatial convolutions
            are compared, in the order of the first file.
        skip_broken: leave out files that cannot be used, where otherwise the first is an error.

    Raises:
        FsclError: a file cannot be used, is given twice, or fewer than two are left.
    """
    files = find_checkpoints(paths)
    states: dict[str, dict[str, Tensor]] = {}
    left_out: dict[Path, str] = {}
    first: tuple[str, dict[str, Tensor]] | None = None
    for name, path in files.items():
        try:
            state, filters = _usable(path, architecture)
            if first is not None:
                same_layers(str(path), filters, *first)
        except FsclError as error:
            if not skip_broken:
                raise
            left_out[path] = str(error).removeprefix(f"{path}: ")
            continue
        states[name] = state
        first = first or (str(path), filters)
    if len(states) < 2 or first is None:
        why = "".join(f"; {path}: {reason}" for path, reason in list(left_out.items())[:1])
        raise FsclError(f"{len(states)} checkpoint{'s' * (len(states) != 1)} to compare; it takes at least 2{why}")
    return Checkpoints(states, {name: files[name] for name in states}, list(first[1]), left_out)


def find_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """The files that are meant, by short names that differ: the file's, or with folders and suffix where they must be.

    Raises:
        FsclError: there is no such file, a folder holds none, a suffix is unknown, or a file is given twice.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise FsclError(f"{path}: no checkpoint files in this folder ({', '.join(SUFFIXES)})")
            files += inside
        elif not path.exists():
            raise FsclError(f"{path}: no such file or folder")
        elif path.suffix.lower() not in SUFFIXES:
            raise FsclError(f"{path}: unknown kind of checkpoint; known: {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    whole = [Path(os.path.abspath(file)) for file in files]
    if twice := [file for i, file in enumerate(files) if whole[i] in whole[:i]]:
        raise FsclError(f"{twice[0]}: given twice")
    common = Path(os.path.commonpath([p.parent for p in whole])) if whole else Path()
    inside_of = [p.relative_to(common) for p in whole]
    for names in (
        [p.stem for p in whole],
        [p.name for p in whole],
        [p.with_suffix("").as_posix() for p in inside_of],
        [p.as_posix() for p in inside_of],
    ):
        if len(set(names)) == len(names):
            break
    return dict(zip(names, files, strict=True))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of the network in a file, by the names under which they lie there. No code is executed.

    Raises:
        FsclError: there is no such file, it is damaged, holds no state of a network, or more than tensors and plain
            values.
    """
    if not path.is_file():
        raise FsclError(f"{path}: no such file")
    found = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
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
        raise FsclError(f"{path}: damaged or truncated, not readable as safetensors ({error})") from error


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
    return FsclError(f"{path}: damaged or truncated, or not a checkpoint of torch.save ({reason[:120]})")
