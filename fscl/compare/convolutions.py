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
    """The entries of a network, sorted for a comparison of filters.

    Attributes:
        filters: (out, in / groups, kh, kw) of each spatial convolution that can be compared, in the state's order.
        left_out: the spatial convolutions that cannot be compared.
        pointwise: 1x1 convolutions, which have no spatial part.
    """

    filters: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    pointwise: list[str] = field(default_factory=list)


@torch.no_grad()
def convolutions(name: str, state: State) -> Convolutions:
    """Sorts the entries of a network's :func:`effective state <fscl.compare.effective.effective_state>`.

    Filters are four-dimensional entries called ``weight`` with a kernel larger than 1x1. Other entries that may belong
    to a spatial convolution are listed as left out: integers, whose scale is not known; complex numbers; tensors
    without values; weights computed from entries in an unknown way; convolutions of three dimensions. A module tells
    more than a state: its parametrised weights can be computed, and a convolution with another forward pass is left
    out.

    Raises:
        FsclError: there are no filters that can be compared, a filter is not finite, or a module is lazy. The message
            begins with ``name``.
    """
    if isinstance(state, nn.Module):
        result = _of_module(name, state)
    elif isinstance(state, Mapping):
        result = _of_entries({k: t for k, t in state.items() if isinstance(k, str) and isinstance(t, Tensor)})
    else:
        raise FsclError(f"{name}: {type(state).__name__}; a state_dict or a module would do")
    if not result.filters:
        why = "".join(f"; layer {layer!r}: {reason}" for layer, (reason, _) in list(result.left_out.items())[:1])
        which = "that can be compared" if why else "(4-D weights with a kernel larger than 1x1)"
        raise FsclError(f"{name}: no spatial convolutions {which}{why}")
    for layer, filters in result.filters.items():
        # aminmax returns NaN if there is one, and copies nothing
        if not all(extreme.isfinite() for extreme in torch.aminmax(filters)):
            raise FsclError(f"{name}: the filters of layer {layer!r} are not all finite")
    return result


def same_layers(
    name: str,
    filters: Mapping[str, Tensor],
    other: str,
    others: Mapping[str, Tensor],
    left_out: Mapping[str, LeftOut] | None = None,
) -> None:
    """Raises :class:`FsclError` if the layers of two networks differ; the message names the first such layer.

    ``left_out`` are the layers of the first network that cannot be compared; the message gives the reason.
    """
    for layer in {**others, **filters}:
        shape, other_shape = (tuple(f[layer].shape) if layer in f else None for f in (filters, others))
        if shape != other_shape:
            why = f" ({left_out[layer].reason})" if left_out and layer in left_out else ""
            raise FsclError(
                f"{name}: layer {layer!r} has {f'filters {shape}' if shape else 'no filters'} here{why} and "
                f"{f'filters {other_shape}' if other_shape else 'none'} in {other}; only networks of one architecture "
                "can be compared"
            )


def misfit_of_kind(tensor: Tensor, expected: Tensor) -> str:
    """Why ``tensor`` cannot take the place of ``expected``, in a phrase; empty if it can.

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
    result = Convolutions()
    for key, tensor in entries.items():
        layer, _, leaf = key.rpartition(".")
        if tensor.ndim not in (4, 5) or not tensor.numel():
            continue
        if all(size == 1 for size in tensor.shape[2:]):
            result.pointwise.extend([layer] * (leaf == "weight"))
            continue
        place = layer if leaf == "weight" else _owner(key)
        if reason := _hindrance(key, tensor, beside.get(place, "")):
            values = max(tensor.numel(), result.left_out[place].values if place in result.left_out else 0)
            result.left_out[place] = LeftOut(reason, values)
        else:
            result.filters[layer] = tensor.detach()
    return result


def _owner(key: str) -> str:
    """The layer whose weight the entry is a part of; the entry's own name if it is not a part of a weight."""
    layer, parametrised, _ = key.partition("parametrizations.weight.")
    if parametrised:
        return layer.removesuffix(".")
    layer, _, leaf = key.rpartition(".")
    return layer if leaf.startswith("weight_") else key


def _beside(entries: Mapping[str, Tensor]) -> dict[str, str]:
    """By layer, an entry from which the layer's weight is computed in an unknown way."""
    by_layer: dict[str, str] = {}
    for key in entries:
        for mark in (".parametrizations.weight.", ".weight_"):
            layer, marked, _ = f".{key}".partition(mark)
            if marked:
                by_layer[layer.removeprefix(".")] = key
    return by_layer


def _hindrance(key: str, tensor: Tensor, beside: str) -> str:
    """Why a tensor of four or five dimensions cannot be compared as filters; empty if it can be."""
    if beside:
        return f"its weight is computed by {beside!r}, in an unknown way"
    if key.rpartition(".")[2] != "weight":
        return "an entry of an unknown kind of layer"
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
    """The convolutions of a module. It tells more than its state: other forward passes, and parametrised weights."""
    for layer, module in model.named_modules():
        if any(nn.parameter.is_lazy(parameter) for parameter in module._parameters.values()):
            raise FsclError(f"{name}: {layer} is lazy and has no filters yet; run the model once")
    modules = dict(model.named_modules())
    again = {n for n, _ in model.named_modules(remove_duplicate=False)} - modules.keys()  # second names of modules
    state = {key: t for key, t in model.state_dict().items() if isinstance(t, Tensor)}
    result = _of_entries({key: t for key, t in state.items() if key.rpartition(".")[0] not in again})
    for layer, module in modules.items():
        if layer in result.left_out and hasattr(module, "parametrizations"):
            # a copy, because computing the weight in training mode may change the module
            weight = copy.deepcopy(module).eval().weight
            if isinstance(weight, Tensor) and weight.ndim == 4:
                del result.left_out[layer]
                result.filters[layer] = weight.detach()
        if layer in result.filters and isinstance(module, nn.Conv2d) and not _is_plain(type(module)):
            reason = f"{type(module).__name__} overrides nn.Conv2d's forward"
            result.left_out[layer] = LeftOut(reason, result.filters.pop(layer).numel())
    order = {layer: place for place, layer in enumerate(modules)}
    filters = dict(sorted(result.filters.items(), key=lambda item: order.get(item[0], len(order))))
    return replace(result, filters=filters)


def _is_plain(cls: type[nn.Conv2d]) -> bool:
    return cls.forward is nn.Conv2d.forward and cls._conv_forward is nn.Conv2d._conv_forward
