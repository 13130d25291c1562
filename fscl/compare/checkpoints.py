"""Reads networks from checkpoint files: finds the state in what contains it, and removes prefixes of wrappers."""

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
from fscl.compare.convolutions import LeftOut, common_layers, convolutions, is_spatial, same_layers
from fscl.compare.effective import effective_state
from fscl.errors import FsclError
from fscl.text import printable

__all__ = ["Checkpoints", "find_checkpoints", "load_checkpoints", "read_checkpoint"]

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors")
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
# of DataParallel and Lightning modules: if all filters have one, entries without it are not part of the network
PREFIXES = ("module.", "model.")


@dataclass(frozen=True)
class Checkpoints:
    """The states of the networks that can be compared, by name.

    Attributes:
        states: each network's entries, after :func:`fscl.compare.effective.effective_state`.
        files: the file that each network was read from.
        layers: the layers to compare, in order.
        left_out: files that cannot be used, with the reason.
        not_compared: layers that cannot be compared in some network, with the reason.
    """

    states: dict[str, dict[str, Tensor]]
    files: dict[str, Path]
    layers: list[str]
    left_out: dict[Path, str] = field(default_factory=dict)
    not_compared: dict[str, LeftOut] = field(default_factory=dict)


@dataclass
class _Network:
    """The state in a file, the weights of its layers, and the layers that cannot be compared."""

    state: dict[str, Tensor]
    filters: dict[str, Tensor]
    left_out: dict[str, LeftOut]


def load_checkpoints(
    paths: Sequence[Path], architecture: Architecture | None = None, skip_broken: bool = False
) -> Checkpoints:
    """Reads files, and folders of files, that hold networks of one architecture.

    Args:
        paths: checkpoint files. A folder stands for all checkpoint files in it, sorted by name.
        architecture: the network that all must fit; its order of layers is used. By default all files must have the
            layers that most of them have, and the first of these files gives the order.
        skip_broken: leave out files that cannot be used. If False, the first such file is an error.

    Raises:
        FsclError: a file cannot be used or is given twice, or fewer than two files are left.
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
    layers, differing = common_layers([network.filters for network in (usable[first], *usable.values())])
    return Checkpoints(
        {name: usable[path].state for name, path in named.items()},
        named,
        layers,
        {path: left_out[path] for path in files if path in left_out},
        not_compared | differing,
    )


def find_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """The checkpoint files, by short names: file names, with suffix and folders only where they are needed to differ.

    Raises:
        FsclError: a file does not exist, a folder has no checkpoint files, a suffix is unknown, or a file is given
            twice.
    """
    files: list[Path] = []
    for path in (expanded for given in paths for expanded in _expanded(given)):
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
    """All tensors of the network in a file, by their names in the file. No code is executed.

    Raises:
        FsclError: the file does not exist, is damaged, holds no state of a network, or holds more than tensors and
            plain values.
    """
    content = read_container(path, safetensors=_kind(path) == ".safetensors")
    file = printable(str(path))
    has_tensors: dict[int, bool] = {}  # by id, as one mapping may be held by many
    nested: Any = content
    passed: set[int] = set()
    while isinstance(nested, Mapping):
        if id(nested) in passed:
            raise FsclError(f"{file}: not the state of a network, but a mapping that holds itself")
        passed.add(id(nested))
        inner = [nested[key] for key in NESTED if isinstance(nested.get(key), Mapping)]
        if not inner and not _tensors(nested):  # an unknown name will do, if only one mapping holds tensors
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
        keys = (
            f" with {printable(', '.join(map(str, list(content)[:6])))[:200]}" if isinstance(content, Mapping) else ""
        )
        raise FsclError(f"{file}: not the state of a network, but {type(content).__name__}{keys}")
    check_claims(path, state)
    # torch.compile adds this prefix at any depth
    compiled = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}
    if len(compiled) < len(state):
        raise FsclError(f"{file}: has entries of torch.compile ('_orig_mod.') beside entries of the same names")
    return compiled


def _expanded(path: Path) -> list[Path]:
    """The path, or the files that match it as a pattern: quotes and Windows leave patterns unexpanded."""
    return [path] if path.exists() else sorted(map(Path, glob.glob(str(path)))) or [path]


def _kind(path: Path) -> str:
    """The longest of ``SUFFIXES`` that a file name ends with; empty if there is none."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def _names(files: Sequence[Path]) -> list[str]:
    full = [Path(os.path.abspath(file)) for file in files]
    without_suffix = [p.with_name(p.name[: -len(_kind(p))] or p.name) for p in full]
    common = Path(os.path.commonpath([p.parent for p in full])) if full else Path()
    for candidates in (
        [p.name for p in without_suffix],
        [p.name for p in full],
        [p.relative_to(common).as_posix() for p in without_suffix],
        [p.relative_to(common).as_posix() for p in full],
    ):
        names = list(map(printable, candidates))
        if len(set(names)) == len(names):
            return names
    # two names differ only in characters that are escaped alike
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _commonest(networks: Mapping[Path, _Network]) -> Path:
    """The first file of the largest group with the same layers, so that the order of files does not matter."""
    shapes_by_path = {
        path: frozenset((n, t.shape if is_spatial(t) else t.shape[1:]) for n, t in network.filters.items())
        for path, network in networks.items()
    }
    most = Counter(shapes_by_path.values()).most_common(1)
    return next((path for path, shapes in shapes_by_path.items() if shapes == most[0][0]), Path())


def _read_network(path: Path, architecture: Architecture | None) -> _Network:
    """The network in a file, without prefixes of wrappers."""
    states = list(_without_prefixes(effective_state(read_checkpoint(path))))
    if architecture is None:
        state = [state for state, is_whole in states if is_whole][-1]
        result = convolutions(printable(str(path)), state)
        return _Network(state, result.weights, result.left_out)
    fitting = [state for state, _ in states if not architecture.misfit(state)]
    if not fitting:
        # the message is about the prefix with which most entries fit
        nearest = max((state for state, _ in states), key=architecture.entries_in_common)
        raise FsclError(f"{printable(str(path))}: {architecture.misfit(nearest)}")
    state = fitting[0]
    result = convolutions(printable(str(path)), state)
    computed = architecture.computed_filters(state, [n for n in architecture.layers if n in result.left_out])
    for layer, filters in computed.items():  # they replace the entries that they are computed from
        state = {key: t for key, t in state.items() if not key.startswith(f"{layer}.parametrizations.weight.")}
        state[f"{layer}.weight"] = filters
    filters_by_layer = {**result.weights, **result.head, **computed}
    left_out = {layer: why for layer, why in result.left_out.items() if layer not in computed}
    compared = {layer: filters_by_layer[layer] for layer in architecture.layers if layer in filters_by_layer}
    return _Network(state, compared, {**left_out, **architecture.left_out})


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """The state, then the state without each prefix that all its filters have, one prefix after another.

    Each comes with whether it is still the whole network, as far as this can be told without the architecture.
    """
    is_whole = True
    while True:
        yield state, is_whole
        filters = [key for key, tensor in state.items() if tensor.ndim == 4] or list(state)
        prefix = "".join(filters[0].partition(".")[:2])
        if not prefix.endswith(".") or not all(key.startswith(prefix) for key in filters):
            return
        inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        # entries of known wrappers that lack the prefix belong to a loss, or count averaged models
        # false for a single layer, which keeps its name
        has_names = all("." in key.removeprefix(prefix) for key in filters)
        is_whole = is_whole and (prefix in PREFIXES or (len(inside) == len(state) and has_names))
        state = inside


def _align(network: _Network, other: _Network) -> None:
    """Renames the entries of a network to those of another, if all names differ by one and the same prefix."""
    names, other_names = ({f"{layer}.weight" for layer in n.filters} for n in (network, other))
    to_remove, to_add = _prefix(names, other_names), _prefix(other_names, names)
    if not to_remove and not to_add:
        return
    tables: tuple[dict[str, Any], ...] = (network.state, network.filters, network.left_out)
    for entries in tables:
        part = [(key, entry) for key, entry in entries.items() if f"{key}.".startswith(to_remove)]
        entries.clear()
        entries.update((to_add + key[len(to_remove) :], entry) for key, entry in part)


def _prefix(names: Collection[str], others: Collection[str]) -> str:
    """The prefix that turns ``others`` into ``names``; empty if there is none.

    >>> _prefix({"net.0.weight", "net.2.weight"}, {"0.weight", "2.weight"}), _prefix({"a.0.weight"}, {"2.weight"})
    ('net.', '')
    """
    prefix = min(names).removesuffix(min(others))
    return prefix if prefix.endswith(".") and {prefix + name for name in others} == set(names) else ""


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)}
