"""Reads networks from checkpoints: finds the state in what contains it, and removes prefixes of wrappers."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from fscl.compare.checkpoints.architecture import Architecture
from fscl.compare.checkpoints.choice import choose_network
from fscl.compare.checkpoints.containers import check_claims, check_regular, read_container, read_shards
from fscl.compare.checkpoints.files import (
    INDEX,
    check_enough,
    find_checkpoints,
    kind_of,
    shard_of,
    short_file_names,
    weights_file,
)
from fscl.compare.checkpoints.stand_ins import NumberArray
from fscl.compare.effective import effective_state
from fscl.compare.layers import LeftOut, common_layers, comparable_layers, is_spatial, same_layers
from fscl.errors import FsclError, printable

__all__ = ["Checkpoints", "load_checkpoints", "read_checkpoint"]

# of DataParallel and Lightning modules: if all filters have one, entries without it are not renamed
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
        unread: other networks in the files that were read, which ``state`` would choose.
    """

    states: dict[str, dict[str, Tensor]]
    files: dict[str, Path]
    layers: list[str]
    left_out: dict[Path, str] = field(default_factory=dict)
    not_compared: dict[str, LeftOut] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        networks, layers, left_out = len(self.states), len(self.layers), len(self.left_out)
        return f"Checkpoints({networks} networks, {layers} layers, {left_out} files left out)"


@dataclass
class _Network:
    """The state in a file, the weights of its layers, and the layers that cannot be compared."""

    state: dict[str, Tensor]
    filters: dict[str, Tensor]
    left_out: dict[str, LeftOut]
    unread: list[str]


def load_checkpoints(
    paths: Sequence[str | Path],
    architecture: Architecture | None = None,
    skip_broken: bool = False,
    state: str | None = None,
    progress: bool = False,
) -> Checkpoints:
    """Reads files, and folders of files, that hold networks of one architecture.

    Args:
        paths: checkpoints, see :func:`fscl.compare.checkpoints.find_checkpoints`. A folder of checkpoints stands
            for all in it, sorted by name.
        architecture: the network that all must fit; its order of layers is used. By default all files must have the
            layers that most of them have, and the first of these files gives the order.
        skip_broken: leave out files that cannot be used. If False, the first such file is an error.
        state: which network of each file, see :func:`read_checkpoint`.
        progress: show a progress bar on stderr, if that is a terminal.

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

    for path in _tracked(files) if progress else files:
        try:
            usable[path] = _read_network(path, architecture, state)
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
    check_enough(
        len(usable), "".join(f"; {printable(str(path))}: {reason}" for path, reason in list(left_out.items())[:1])
    )
    named = dict(zip(short_file_names(list(usable)), usable, strict=True))
    not_compared = {layer: why for network in usable.values() for layer, why in network.left_out.items()}
    layers, differing = common_layers([network.filters for network in (usable[first], *usable.values())])
    return Checkpoints(
        {name: usable[path].state for name, path in named.items()},
        named,
        layers,
        {path: left_out[path] for path in files if path in left_out},
        not_compared | differing,
        list(dict.fromkeys(key for network in usable.values() for key in network.unread)),
    )


def read_checkpoint(path: str | Path, state: str | None = None) -> dict[str, Tensor]:
    """All tensors of a network in a file, or in a folder of one network, by their names there. No code is executed.

    Args:
        path: a file, an index of shards, or a folder with one of both.
        state: which network, if there are several: the key that holds it (``state_dict_ema``), keys joined by dots, or
            what the names of its entries begin with (``generator`` for ``generator.0.weight``). By default it is the
            only one, or the one under a usual key such as ``state_dict`` or ``model``.

    Raises:
        FsclError: the file does not exist, is damaged, holds no state of a network, holds several networks of which
            none is chosen, or holds more than tensors and plain data.
    """
    return _read(Path(path), state)[0]


def _read(path: Path, key: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a network, and how the other networks in the file are called."""
    file = printable(str(path))
    try:
        weights = (weights_file(path) if path.is_dir() else None) or path
    except OSError as error:
        raise FsclError(f"{file}: {error.strerror}") from error
    kind = kind_of(weights)
    content: Any
    if kind in INDEX:
        content = read_shards(weights)
    elif shards := shard_of(weights):
        check_regular(weights)
        raise FsclError(f"{file}: one of {shards} shards of a network; give its index (*.index.json), or its folder")
    else:
        content = read_container(weights, safetensors=kind == ".safetensors")
    chosen = choose_network(file, content, key)
    state = _tensors(file, chosen.state)
    if key is not None and not state:
        raise FsclError(f"{file}: no tensors in {key!r}")
    if not state:
        keys = (
            f" with {printable(', '.join(map(str, list(content)[:6])))[:200]}" if isinstance(content, Mapping) else ""
        )
        raise FsclError(f"{file}: not the state of a network, but {type(content).__name__}{keys}")
    if kind not in INDEX:
        check_claims(weights, state)
    # torch.compile adds this prefix at any depth
    compiled = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    if len(compiled) < len(state):
        raise FsclError(f"{file}: has entries of torch.compile ('_orig_mod.') beside entries of the same names")
    return compiled, chosen.unread


def _tracked(files: Sequence[Path]) -> Iterator[Path]:
    """The files, with a progress bar on stderr if that is a terminal."""
    console = Console(stderr=True)
    with ExitStack() as stack:
        bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True)
        if console.is_terminal:  # rich before 14.3 writes a line even for a bar that is disabled
            stack.enter_context(bar)
        task = bar.add_task("Reading", total=len(files))
        for file in files:
            yield file
            bar.advance(task)


def _commonest(networks: Mapping[Path, _Network]) -> Path:
    """The first file of the largest group with the same layers, so that the order of files does not matter."""
    shapes_by_path = {
        path: frozenset((n, t.shape if is_spatial(t) else t.shape[1:]) for n, t in network.filters.items())
        for path, network in networks.items()
    }
    most = Counter(shapes_by_path.values()).most_common(1)
    return next((path for path, shapes in shapes_by_path.items() if shapes == most[0][0]), Path())


def _read_network(path: Path, architecture: Architecture | None, key: str | None) -> _Network:
    """The network in a file, without prefixes of wrappers."""
    entries, unread = _read(path, key)
    states = list(_without_prefixes(effective_state(entries)))
    if architecture is None:
        inside, outside = [(state, outside) for state, outside in states if outside is not None][-1]
        state = {**inside, **outside}
        result = comparable_layers(printable(str(path)), state)
        return _Network(state, result.weights, result.left_out, unread)
    fitting = [state for state, _ in states if not architecture.misfit(state)]
    if not fitting:
        # the message is about the prefix with which most entries fit
        nearest = max((state for state, _ in states), key=architecture.entries_in_common)
        raise FsclError(f"{printable(str(path))}: {architecture.misfit(nearest)}")
    state = fitting[0]
    result = comparable_layers(printable(str(path)), state)
    computed = architecture.computed_filters(state, [n for n in architecture.layers if n in result.left_out])
    for layer, filters in computed.items():  # they replace the entries that they are computed from
        state = {key: t for key, t in state.items() if not key.startswith(f"{layer}.parametrizations.weight.")}
        state[f"{layer}.weight"] = filters
    filters_by_layer = {**result.weights, **result.head, **computed}
    left_out = {layer: why for layer, why in result.left_out.items() if layer not in computed}
    compared = {layer: filters_by_layer[layer] for layer in architecture.layers if layer in filters_by_layer}
    return _Network(state, compared, {**left_out, **architecture.left_out}, unread)


def _without_prefixes(
    state: dict[str, Tensor],
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor] | None]]:
    """The state, then the state without each prefix that all its filters have, one prefix after another.

    Each comes with the entries that lack the prefix, which belong to a loss or a head outside a wrapper. They are None
    if the rest is not the whole network, as far as this can be told without the architecture.
    """
    outside: dict[str, Tensor] | None = {}
    while True:
        yield state, outside
        filters = [key for key, tensor in state.items() if tensor.ndim == 4] or list(state)
        prefix = "".join(filters[0].partition(".")[:2])
        if not prefix.endswith(".") or not all(key.startswith(prefix) for key in filters):
            return
        inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        # counts, such as that of averaged models, are no part of any network
        without = {
            key: tensor
            for key, tensor in state.items()
            if not key.startswith(prefix) and (tensor.ndim or tensor.is_floating_point())
        }
        # false for a single layer, which keeps its name
        has_names = all("." in key.removeprefix(prefix) for key in filters)
        is_whole = prefix in PREFIXES or (len(inside) == len(state) and has_names)
        if outside is not None:
            outside = {**outside, **without} if is_whole and not {*outside, *without} & inside.keys() else None
        state = inside


def _align(network: _Network, other: _Network) -> None:
    """Renames the entries of a network to those of another, if all names differ by one and the same prefix."""
    names, other_names = ({f"{layer}.weight" for layer in n.filters} for n in (network, other))
    to_remove, to_add = _prefix(names, other_names), _prefix(other_names, names)
    if not to_remove and not to_add:
        return
    tables: tuple[dict[str, Any], ...] = (network.state, network.filters, network.left_out)
    for entries in tables:
        renamed = {
            to_add + key[len(to_remove) :] if f"{key}.".startswith(to_remove) else key: entry
            for key, entry in entries.items()
        }
        if len(renamed) < len(entries):  # an entry outside the prefix has the name of one inside
            renamed = {
                to_add + key[len(to_remove) :]: t for key, t in entries.items() if f"{key}.".startswith(to_remove)
            }
        entries.clear()
        entries.update(renamed)


def _prefix(names: Collection[str], others: Collection[str]) -> str:
    """The prefix that turns ``others`` into ``names``; empty if there is none.

    >>> _prefix({"net.0.weight", "net.2.weight"}, {"0.weight", "2.weight"}), _prefix({"a.0.weight"}, {"2.weight"})
    ('net.', '')
    """
    prefix = min(names).removesuffix(min(others))
    return prefix if prefix.endswith(".") and {prefix + name for name in others} == set(names) else ""


def _tensors(file: str, mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors in a mapping, and its NumPy arrays of numbers as tensors."""
    tensors: dict[str, Tensor] = {}
    for name, value in mapping.items():
        if not isinstance(name, str):
            continue
        try:
            tensor = value.tensor() if isinstance(value, NumberArray) else value
        except ValueError as error:
            raise FsclError(f"{file}: array {printable(name)!r}: {error}") from error
        if isinstance(tensor, Tensor):
            tensors[name] = tensor
    return tensors
