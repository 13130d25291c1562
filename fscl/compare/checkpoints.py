"""Reading checkpoint files: a network's state, whatever it is nested in and however its entries are prefixed."""

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fscl.compare.architecture import Architecture
from fscl.compare.containers import check_claims, read_container
from fscl.compare.convolutions import LeftOut, convolutions, same_layers
from fscl.compare.effective import effective_state
from fscl.errors import FsclError
from fscl.text import printable

__all__ = ["Checkpoints", "find_checkpoints", "load_checkpoints", "read_checkpoint"]

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors")
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
# of DataParallel, and of what a Lightning module calls its network: entries without them are no part of the network
PREFIXES = ("module.", "model.")


@dataclass(frozen=True)
class Checkpoints:
    """The states of the networks that can be compared, by name.

    Attributes:
        states: every network's entries, as :func:`fscl.compare.effective.effective_state` has them.
        files: where each was read from.
        layers: the convolutions to compare, in order.
        left_out: files that could not be used, with the reason.
        not_compared: spatial convolutions that cannot be compared in some network, with the reason.
    """

    states: dict[str, dict[str, Tensor]]
    files: dict[str, Path]
    layers: list[str]
    left_out: dict[Path, str] = field(default_factory=dict)
    not_compared: dict[str, LeftOut] = field(default_factory=dict)


@dataclass
class _Network:
    """A file's state, its filters, and the spatial convolutions that cannot be compared."""

    state: dict[str, Tensor]
    filters: dict[str, Tensor]
    left_out: dict[str, LeftOut]


def load_checkpoints(
    paths: Sequence[Path], architecture: Architecture | None = None, skip_broken: bool = False
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
    usable: dict[Path, _Network] = {}
    left_out: dict[Path, str] = {}

    def leave_out(path: Path, error: FsclError) -> None:
        if not skip_broken:
            raise FsclError(f"{error}{'; --skip-broken goes on without it' * (len(files) > 2)}") from error
        left_out[path] = str(error).removeprefix(f"{printable(str(path))}: ")

    for path in files:
        try:
            usable[path] = _read_network(path, architecture)
        except FsclError as error:
            leave_out(path, error)
    first = _commonest(usable)
    for path, network in list(usable.items()):
        most = usable[first]
        _align(network, most)
        try:
            same_layers(printable(str(path)), network.filters, printable(str(first)), most.filters, network.left_out)
        except FsclError as error:
            leave_out(path, error)
            del usable[path]
    if len(usable) < 2:
        why = "".join(f"; {printable(str(path))}: {reason}" for path, reason in list(left_out.items())[:1])
        raise FsclError(f"{len(usable)} checkpoint{'s' * (len(usable) != 1)} to compare; it takes at least 2{why}")
    named = dict(zip(_names(list(usable)), usable, strict=True))
    not_compared = {layer: why for network in usable.values() for layer, why in network.left_out.items()}
    return Checkpoints(
        {name: usable[path].state for name, path in named.items()},
        named,
        list(usable[first].filters),
        {path: left_out[path] for path in files if path in left_out},
        not_compared,
    )


def find_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """The files that are meant, by short names that differ: the file's, or with folders and suffix where they must be.

    Raises:
        FsclError: there is no such file, a folder holds none, a suffix is unknown, or a file is given twice.
    """
    files: list[Path] = []
    for path in (each for given in paths for each in _expanded(given)):
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        except OSError as error:
            raise FsclError(f"{printable(str(path))}: {error.strerror}") from error
        if path.is_dir():
            inside = [p for p in inside if _kind(p) and not p.is_dir() and not p.name.startswith(".")]
            if not inside:
                raise FsclError(f"{printable(str(path))}: no checkpoint files in this folder ({', '.join(SUFFIXES)})")
        elif not inside:
            raise FsclError(f"{printable(str(path))}: no such file or folder")
        elif not _kind(path):
            raise FsclError(f"{printable(str(path))}: unknown kind of checkpoint; known: {', '.join(SUFFIXES)}")
        files += inside
    counts = Counter(os.path.abspath(file) for file in files)
    if twice := [file for file in files if counts[os.path.abspath(file)] > 1]:
        raise FsclError(f"{printable(str(twice[0]))}: given twice")
    return dict(zip(_names(files), files, strict=True))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of the network in a file, by the names under which they lie there. No code is executed.

    Raises:
        FsclError: there is no such file, it is damaged, holds no state of a network, or more than tensors and plain
            values.
    """
    found = read_container(path, safetensors=_kind(path) == ".safetensors")
    file = printable(str(path))
    has_tensors: dict[int, bool] = {}  # a mapping may be in many others
    nested: Any = found
    passed: set[int] = set()
    while isinstance(nested, Mapping):
        if id(nested) in passed:
            raise FsclError(f"{file}: not the state of a network, but a mapping that holds itself")
        passed.add(id(nested))
        inner = [nested[key] for key in NESTED if isinstance(nested.get(key), Mapping)]
        if not inner and not _tensors(nested):  # under a name of its own, if there is but one
            for value in nested.values():
                if isinstance(value, Mapping) and id(value) not in has_tensors:
                    has_tensors[id(value)] = bool(_tensors(value))
            inner = [value for value in nested.values() if has_tensors.get(id(value))]
            inner = inner if len(inner) == 1 else []
        if not inner:
            break
        nested = inner[0]
    state = _tensors(nested) if isinstance(nested, Mapping) else {}
    if not state:
        keys = f" with {printable(', '.join(map(str, list(found)[:6])))[:200]}" if isinstance(found, Mapping) else ""
        raise FsclError(f"{file}: not the state of a network, but {type(found).__name__}{keys}")
    check_claims(path, state)
    compiled = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}  # at any depth
    if len(compiled) < len(state):
        raise FsclError(f"{file}: has entries of torch.compile ('_orig_mod.') beside entries of the same names")
    return compiled


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
    for given in (
        [p.name for p in bare],
        [p.name for p in whole],
        [p.relative_to(common).as_posix() for p in bare],
        [p.relative_to(common).as_posix() for p in whole],
    ):
        names = list(map(printable, given))
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]  # one has what another's escapes look like


def _commonest(networks: Mapping[Path, _Network]) -> Path:
    """The first of the files whose layers most of them have: one stranger is left out, wherever in the row it is."""
    kinds = {path: frozenset((n, t.shape) for n, t in network.filters.items()) for path, network in networks.items()}
    most = Counter(kinds.values()).most_common(1)
    return next((path for path, kind in kinds.items() if kind == most[0][0]), Path())


def _read_network(path: Path, architecture: Architecture | None) -> _Network:
    """A file's network, without the prefixes of wrappers."""
    states = list(_without_prefixes(effective_state(read_checkpoint(path))))
    if architecture is None:
        state = [state for state, whole in states if whole][-1]
        found = convolutions(printable(str(path)), state)
        return _Network(state, found.filters, found.left_out)
    fitting = [state for state, _ in states if not architecture.misfit(state)]
    if not fitting:
        # the message is about the prefix with which most fits
        nearest = max((state for state, _ in states), key=architecture.entries_in_common)
        raise FsclError(f"{printable(str(path))}: {architecture.misfit(nearest)}")
    state = fitting[0]
    found = convolutions(printable(str(path)), state)
    computed = architecture.computed_filters(state, [n for n in architecture.layers if n in found.left_out])
    for layer, filters in computed.items():  # in the place of what they are computed from
        state = {key: t for key, t in state.items() if not key.startswith(f"{layer}.parametrizations.weight.")}
        state[f"{layer}.weight"] = filters
    known = {**found.filters, **computed}
    left_out = {layer: why for layer, why in found.left_out.items() if layer not in computed}
    compared = {layer: known[layer] for layer in architecture.layers if layer in known}
    return _Network(state, compared, {**left_out, **architecture.left_out})


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """The state, and what is left of it as the prefixes that all its filters have are taken off, one after another.

    Each comes with whether it is still the whole network, for all that is known without its architecture.
    """
    whole = True
    while True:
        yield state, whole
        filters = [key for key, tensor in state.items() if tensor.ndim == 4] or list(state)
        prefix = "".join(filters[0].partition(".")[:2])
        if not prefix.endswith(".") or not all(key.startswith(prefix) for key in filters):
            return
        inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        # of the known wrappers, what has no prefix is a loss, or a counter of averaged models
        named = all("." in key.removeprefix(prefix) for key in filters)  # a single layer keeps its name
        whole = whole and (prefix in PREFIXES or (len(inside) == len(state) and named))
        state = inside


def _align(network: _Network, other: _Network) -> None:
    """Takes off, or puts before all entries, the one prefix by which a network's layers differ from another's."""
    mine, theirs = ({f"{layer}.weight" for layer in each.filters} for each in (network, other))
    more, less = _prefix(mine, theirs), _prefix(theirs, mine)
    if not more and not less:
        return
    tables: tuple[dict[str, Any], ...] = (network.state, network.filters, network.left_out)
    for entries in tables:
        kept = [(key, entry) for key, entry in entries.items() if f"{key}.".startswith(more)]
        entries.clear()
        entries.update((less + key[len(more) :], entry) for key, entry in kept)


def _prefix(names: Collection[str], others: Collection[str]) -> str:
    """What all names have before the others, which else are the same; empty if they are not.

    >>> _prefix({"net.0.weight", "net.2.weight"}, {"0.weight", "2.weight"}), _prefix({"a.0.weight"}, {"2.weight"})
    ('net.', '')
    """
    prefix = min(names).removesuffix(min(others))
    return prefix if prefix.endswith(".") and {prefix + name for name in others} == set(names) else ""


def _tensors(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
