"""What belongs to each task of a network, what tasks share, and what cannot be stored."""

import hashlib
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fscl.atoms.entries import bytes_of, copied, fingerprint_of, live_state, within
from fscl.atoms.layers import AtomConv2d, atom_layers
from fscl.atoms.learning import freeze, freeze_coefficients
from fscl.errors import FsclError

__all__ = ["KINDS", "Ownership", "entry_kinds", "unkept_values", "warn_of_unkept"]

KINDS = ("atoms", "normalisation", "head", "other")
NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Ownership:
    """What belongs to each task of a network, and the values of what tasks share.

    Attributes:
        layers: dotted names of the atom layers, from input to output.
        kinds: the entries of a task in the network that the bank was made from, with their kinds.
        heads: the modules or entries that hold the heads of all tasks.
        shared: the tensors that all tasks share, frozen copies.
        fingerprint: SHA-256 of the shared coefficients.
    """

    layers: list[str]
    kinds: dict[str, str]
    heads: list[str]
    shared: dict[str, Tensor]
    fingerprint: str

    @classmethod
    def of(cls, layers: list[str], kinds: dict[str, str], heads: list[str], shared: dict[str, Tensor]) -> Self:
        names = [f"{layer}.coefficients" for layer in layers]
        return cls(layers, kinds, heads, shared, fingerprint_of({name: shared[name] for name in names}))

    @classmethod
    def frozen_in(cls, model: nn.Module, heads: Sequence[str] | None, own: Collection[str]) -> Self:
        """Freezes what tasks share in a network. The arguments and errors are those of :class:`~fscl.AtomBank`."""
        if not atom_layers(model):
            raise FsclError(f"{type(model).__name__} has no atom layers; call fscl.decompose on it first")
        _check_names("heads", heads or [])
        _check_names("own", own)
        owners = _head_owners(model, heads)
        if not owners and heads is None:
            warnings.warn(
                f"{type(model).__name__} has no nn.Linear that could be a task's head, so tasks share its last "
                "layers; name the heads (heads=[...]), or pass heads=[] if there are none",
                stacklevel=3,
            )
        kinds = entry_kinds(model, owners, own)
        state = live_state(model)
        shared = {name: tensor for name, tensor in state.items() if name not in kinds}
        _check_ties(state, shared)
        freeze_coefficients(model)
        copies = {name: copied(tensor) for name, tensor in shared.items()}
        for tensor in shared.values():
            if isinstance(tensor, nn.Parameter):
                freeze(tensor)
        return cls.of(list(atom_layers(model)), kinds, owners, copies)

    def parameters(self, model: nn.Module, head: Sequence[str] | None) -> list[nn.Parameter]:
        """The parameters that belong to one task, each once.

        Args:
            model: the network.
            head: the heads of this task; None takes all heads.

        Raises:
            FsclError: the network lacks a shared entry, or ``head`` names something that is not a head.
        """
        state = live_state(model)
        if missing := next((name for name in self.shared if name not in state), None):
            raise FsclError(
                f"{type(model).__name__} has no entry {missing!r}; give the network that the bank was made with, not a "
                "wrapper of it"
            )
        self._check_head(model, head)
        frozen = {id(state[name]) for name in self.shared}  # by identity, since a tied parameter has several names
        parameters = {
            id(parameter): parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) not in frozen and (head is None or within(name, head) or not within(name, self.heads))
        }
        return list(parameters.values())

    def kinds_in(self, model: nn.Module, head: Sequence[str] | None) -> dict[str, str]:
        """The entries of one task in a network, with their kinds.

        Args:
            model: the network.
            head: the heads of this task; None takes all heads.

        Raises:
            FsclError: an entry is neither shared nor a task's own, or ``head`` names something that is not a head.
        """
        self._check_head(model, head)
        own = [entry for entry, kind in self.kinds.items() if kind == "other"]
        kinds = entry_kinds(model, self.heads if head is None else head, own)
        kinds = {entry: kind for entry, kind in kinds.items() if kind == "head" or not within(entry, self.heads)}
        for entry in live_state(model):
            if entry not in self.shared and entry not in kinds and not within(entry, self.heads):
                raise FsclError(
                    f"{entry} of this network was not there when the bank was made, so it would be lost; make a new "
                    "bank of this network, and name the entry in `own` if each task has its own"
                )
        return kinds

    def check_layer(self, layer: str) -> None:
        """Refuses a layer whose atoms are not stored."""
        if layer not in self.layers:
            raise FsclError(f"the bank has no layer {layer!r}; layers: {', '.join(self.layers)}")

    def check_shared(self, model: nn.Module) -> None:
        """Refuses a network whose shared entries differ from those that the stored tasks were learned with."""
        state = live_state(model)
        coefficients = {f"{layer}.coefficients" for layer in self.layers}
        for name in sorted(self.shared, key=lambda name: name not in coefficients):
            if _is_equal(state.get(name), self.shared[name]):
                continue
            advice = (
                "make a new bank for a network with other coefficients"
                if name in coefficients
                else "name it in the bank's `own`, so that each task keeps its own"
            )
            raise FsclError(
                f"{name} of this network differs from the bank's, and all tasks share it: train only "
                f"bank.parameters(model), or {advice}"
            )

    def check_mergeable(self, other: "Ownership") -> None:
        """Refuses another bank's ownership whose shared tensors differ, so that no network could serve all tasks."""
        if other.fingerprint != self.fingerprint:
            raise FsclError(
                f"these banks have different coefficients (fingerprints {self.fingerprint[:12]} and "
                f"{other.fingerprint[:12]}), so their atoms cannot be compared; compare tasks of one bank, or "
                "train the second from the first one's network"
            )
        for name in {**self.shared, **other.shared}:
            if not _is_equal(other.shared.get(name), self.shared.get(name)):
                raise FsclError(
                    f"{name!r} differs between these banks although their tasks share it, so no network can serve "
                    "all of them; their atoms can still be compared with fscl.similarity_matrix"
                )

    def _check_head(self, model: nn.Module, head: Sequence[str] | None) -> None:
        _check_names("head", head or [])
        state = live_state(model)
        for name in head or []:
            if not within(name, self.heads) or not any(within(entry, [name]) for entry in state):
                known = ", ".join(self.heads) or "none"
                raise FsclError(f"{name!r} is no head of {type(model).__name__}; its heads: {known}")


def _is_equal(actual: Tensor | None, expected: Tensor | None) -> bool:
    if actual is None or expected is None or actual.dtype != expected.dtype:
        return False
    return torch.equal(actual, expected.to(actual.device))


def _check_names(argument: str, names: Collection[str]) -> None:
    """Refuses a text where a list of names is expected: each of its letters would be taken for a name."""
    if isinstance(names, str):
        raise FsclError(f"{argument} is the text {names!r}; a list of names would do, such as [{names!r}]")


def _check_ties(state: Mapping[str, Tensor], shared: Collection[str]) -> None:
    """Refuses a tied parameter that is shared under one name and belongs to a task under another."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        if len({name in shared for name in tied}) > 1:
            raise FsclError(
                f"{' and '.join(tied)} are one parameter, which tasks would both share and own; give each name a "
                "parameter of its own, or list all of these names in `own`"
            )


def entry_kinds(model: nn.Module, heads: Sequence[str] | None = None, own: Collection[str] = ()) -> dict[str, str]:
    """The entries of a network that belong to each task, with their kinds. All other entries are shared.

    Most parameters are shared, because they can be frozen. Buffers, and tensors that a module holds as plain
    attributes, belong to each task in any module: like the statistics of a normalisation, they may change in every
    forward pass in training.

    Args:
        model: a network with atom layers.
        heads: modules or entries that are heads; None takes the last ``nn.Linear``.
        own: further modules or entries that belong to each task. Their kind is "other", if no other kind applies.

    Raises:
        FsclError: a name is neither a module nor an entry of the network, or ``own`` names coefficients.
    """
    modules = dict(model.named_modules())
    state = live_state(model)
    heads = _head_owners(model, heads)
    kinds: dict[str, str] = {}
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        module = modules.get(owner)
        if within(name, heads):
            if isinstance(module, AtomConv2d):
                raise FsclError(f"{owner} cannot be part of a head: its coefficients are what tasks share")
            kinds[name] = "head"
        elif isinstance(module, AtomConv2d) and leaf == "atoms":
            kinds[name] = "atoms"
        elif isinstance(module, NORMALISATION):
            kinds[name] = "normalisation"
        elif (isinstance(module, AtomConv2d | nn.Conv2d) and leaf == "bias") or not isinstance(tensor, nn.Parameter):
            kinds[name] = "other"
        elif within(name, own):
            if isinstance(module, AtomConv2d):
                raise FsclError(f"{name} cannot be a task's own: coefficients are what tasks share")
            kinds[name] = "other"
    for role, owners in (("head", heads), ("own entry", own)):
        for owner in owners:
            if not any(within(name, [owner]) for name in state):
                raise FsclError(f"{role} {owner!r} is no module or entry of {type(model).__name__}")
    return kinds


def _head_owners(model: nn.Module, heads: Sequence[str] | None) -> list[str]:
    if heads is not None:
        return list(heads)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]


def warn_of_unkept(model: nn.Module, before: Mapping[str, str] | None) -> dict[str, str]:
    """The present :func:`unkept_values`. Warns, in the name of the caller's caller, if they differ from ``before``."""
    digests = unkept_values(model)
    changed = [name for name, digest in digests.items() if (before or digests).get(name) != digest]
    if changed:
        module = model.get_submodule(changed[0].rpartition(".")[0])
        warnings.warn(
            f"{', '.join(changed[:3])} changed since the bank was made and cannot be kept: {type(module).__name__} "
            "holds it as a plain value. If outputs depend on it, a restored task will differ; "
            "make it a buffer (register_buffer)",
            stacklevel=3,
        )
    return digests


def unkept_values(model: nn.Module) -> dict[str, str]:
    """Digests of values that may decide what a network computes but are not among its entries, by dotted name.

    These are floating-point numbers, NumPy arrays, and containers of them or of tensors, where a module holds them as
    plain attributes; and what ``get_extra_state`` returns. Integers are left out, because they are nearly always
    counters or sizes and do not change outputs.
    """
    values: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, AtomConv2d):  # its plain values are filters composed from entries
            continue
        attributes = {name: value for name, value in vars(module).items() if name not in _TORCH_ATTRIBUTES}
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            attributes["get_extra_state()"] = module.get_extra_state()
        for name, value in attributes.items():
            if not isinstance(value, Tensor) and (parts := list(_numbers_in(value))):
                values[f"{path}.{name}" if path else name] = hashlib.sha256(b"".join(parts)).hexdigest()
    return values


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))


def _numbers_in(value: Any, depth: int = 0) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        computed = isinstance(value, nn.Parameter) or value.grad_fn is not None
        if not computed and value.layout is torch.strided and not value.is_quantized:
            yield bytes_of(value)
    elif isinstance(value, float | complex):
        yield repr(value).encode()
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc":
        yield value.tobytes()
    elif isinstance(value, Mapping | list | tuple | set | deque) and depth < 4:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers_in(item, depth + 1)
