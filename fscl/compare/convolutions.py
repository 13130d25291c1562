"""The spatial convolutions of a network: the filters that can be compared, and why some cannot."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fscl.compare.effective import effective_state
from fscl.errors import FsclError

__all__ = ["Convolutions", "LeftOut", "State", "convolutions", "misfit_of_kind", "same_layers"]

State = Mapping[str, Tensor] | nn.Module

COMPARED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LeftOut(NamedTuple):
    """Why a layer cannot be compared, and how many values its filters have."""

    reason: str
    values: int


@dataclass(frozen=True)
class Convolutions:
    """What a network's entries are to a comparison of filters.

    Attributes:
        filters: (out, in / groups, kh, kw) of each spatial convolution that can be compared, in the state's order.
        left_out: the spatial convolutions that cannot.
        pointwise: convolutions of 1x1, which have no spatial part.
    """

    filters: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    pointwise: list[str] = field(default_factory=list)


@torch.no_grad()
def convolutions(name: str, state: State) -> Convolutions:
    """Sorts the entries of a network's :func:`effective state <fscl.compare.effective.effective_state>`.

    Filters are the entries called ``weight`` of four dimensions with a kernel larger than 1x1. Other entries that may
    be those of a spatial convolution are left out by name: integers, whose scale is not known, complex numbers, tensors
    without values, weights that are computed from entries in a way that is not known, convolutions of three dimensions.
    Of a module, any parametrisation's weight is known, and a convolution with another forward pass is left out.

    Raises:
        FsclError: there are no filters that can be compared, one is not finite, or a module is lazy; the message begins
            with ``name``.
    """
    if isinstance(state, nn.Module):
        found = _of_module(name, state)
    elif isinstance(state, Mapping):
        found = _of_entries({k: t for k, t in state.items() if isinstance(k, str) and isinstance(t, Tensor)})
    else:
        raise FsclError(f"{name}: {type(state).__name__}; a state_dict or a module would do")
    if not found.filters:
        why = "".join(f"; layer {layer!r}: {reason}" for layer, (reason, _) in list(found.left_out.items())[:1])
        which = "that can be compared" if why else "(4-D weights with a kernel larger than 1x1)"
        raise FsclError(f"{name}: no spatial convolutions {which}{why}")
    for layer, filters in found.filters.items():
        if not all(extreme.isfinite() for extreme in torch.aminmax(filters)):  # they pass NaN on, and copy nothing
            raise FsclError(f"{name}: the filters of layer {layer!r} are not all finite")
    return found


def same_layers(
    name: str,
    filters: Mapping[str, Tensor],
    other: str,
    others: Mapping[str, Tensor],
    left_out: Mapping[str, LeftOut] | None = None,
) -> None:
    """Raises :class:`FsclError` with the first layer in which two networks differ, and both shapes.

    ``left_out`` are the layers of the first network that cannot be compared, for the message.
    """
    for layer in {**others, **filters}:
        mine, theirs = (tuple(f[layer].shape) if layer in f else None for f in (filters, others))
        if mine != theirs:
            why = f" ({left_out[layer].reason})" if left_out and layer in left_out else ""
            raise FsclError(
                f"{name}: layer {layer!r} has {f'filters {mine}' if mine else 'no filters'} here{why} and "
                f"{f'filters {theirs}' if theirs else 'none'} in {other}; networks of one architecture can be compared"
            )


def misfit_of_kind(tensor: Tensor, expected: Tensor) -> str:
    """Why an entry's values cannot be taken for those of another, in a phrase; empty if they can.

    >>> misfit_of_kind(torch.zeros(2, dtype=torch.int8), torch.zeros(2))
    'holds int8 values, and float32'
    """
    if tensor.is_meta:
        return "is on the meta device, without values, and holds them"
    if expected.is_floating_point() and not tensor.is_floating_point():
        return f"holds {_kind(tensor)} values, and {_kind(expected)}"
    return ""


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _of_entries(state: Mapping[str, Tensor]) -> Convolutions:
    entries = effective_state(state)
    beside = _beside(entries)
    found = Convolutions()
    for key, tensor in entries.items():
        layer, _, leaf = key.rpartition(".")
        if tensor.ndim not in (4, 5) or not tensor.numel():
            continue
        if all(size == 1 for size in tensor.shape[2:]):
            found.pointwise.extend([layer] * (leaf == "weight"))
            continue
        place = layer if leaf == "weight" else _owner(key)
        if reason := _hindrance(key, tensor, beside.get(place, "")):
            values = max(tensor.numel(), found.left_out[place].values if place in found.left_out else 0)
            found.left_out[place] = LeftOut(reason, values)
        else:
            found.filters[layer] = tensor.detach()
    return found


def _owner(key: str) -> str:
    """The layer of an entry that is a part of a weight; the entry itself, if it is none."""
    layer, parametrised, _ = key.partition("parametrizations.weight.")
    if parametrised:
        return layer.removesuffix(".")
    layer, _, leaf = key.rpartition(".")
    return layer if leaf.startswith("weight_") else key


def _beside(entries: Mapping[str, Tensor]) -> dict[str, str]:
    """By layer, an entry from which its weight is computed in a way that is not known."""
    found: dict[str, str] = {}
    for key in entries:
        for mark in (".parametrizations.weight.", ".weight_"):
            layer, marked, _ = f".{key}".partition(mark)
            if marked:
                found[layer.removeprefix(".")] = key
    return found


def _hindrance(key: str, tensor: Tensor, beside: str) -> str:
    """Why a tensor of four or five dimensions cannot be compared as filters; empty if it can."""
    if beside:
        return f"its weight is computed by {beside!r}, in a way that is not known"
    if key.rpartition(".")[2] != "weight":
        return "an entry of no known kind of layer"
    if tensor.ndim == 5:
        return "a convolution of three dimensions"
    if tensor.is_meta:
        return "on the meta device, which holds no values"
    if tensor.dtype not in COMPARED or tensor.layout != torch.strided:
        return f"{_kind(tensor)} values, " + (
            "which are not real" if tensor.is_complex() else "whose scale is not known"
        )
    return ""


def _of_module(name: str, model: nn.Module) -> Convolutions:
    """Those of a module, which tells more than its state: other forward passes, and any parametrisation's weight."""
    for layer, module in model.named_modules():
        if any(nn.parameter.is_lazy(parameter) for parameter in module._parameters.values()):
            raise FsclError(f"{name}: {layer} is lazy and has no filters yet; run the model once")
    modules = dict(model.named_modules())
    again = {n for n, _ in model.named_modules(remove_duplicate=False)} - modules.keys()  # used twice under two names
    state = {key: t for key, t in model.state_dict().items() if isinstance(t, Tensor)}
    found = _of_entries({key: t for key, t in state.items() if key.rpartition(".")[0] not in again})
    for layer, module in modules.items():
        if layer in found.left_out and hasattr(module, "parametrizations"):
            weight = copy.deepcopy(module).eval().weight  # in training, to compute it may change the module
            if isinstance(weight, Tensor) and weight.ndim == 4:
                del found.left_out[layer]
                found.filters[layer] = weight.detach()
        if layer in found.filters and isinstance(module, nn.Conv2d) and not _is_plain(type(module)):
            reason = f"{type(module).__name__} overrides nn.Conv2d's forward"
            found.left_out[layer] = LeftOut(reason, found.filters.pop(layer).numel())
    order = {layer: place for place, layer in enumerate(modules)}
    filters = dict(sorted(found.filters.items(), key=lambda item: order.get(item[0], len(order))))
    return replace(found, filters=filters)


def _is_plain(kind: type[nn.Conv2d]) -> bool:
    return kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
