"""The layers of a network whose weights can be compared, convolutions and linear ones, and why some cannot."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fscl.compare.effective import effective_state
from fscl.errors import FsclError

__all__ = [
    "ComparableLayers",
    "LeftOut",
    "State",
    "common_layers",
    "comparable_layers",
    "is_spatial",
    "misfit_of_kind",
    "same_layers",
]

State = Mapping[str, Tensor] | nn.Module

# of nn.MultiheadAttention and of recurrent layers, which are no modules of their own
PACKED = re.compile(r"in_proj_weight|[qkv]_proj_weight|weight_(ih|hh|hr)_l\d+(_reverse)?")
HEADS = ("head", "heads", "fc", "classifier", "output", "linear", "logits", "lm_head", "score")  # of library networks
STATISTICS = ("running_mean", "running_var")  # which normalisation counts, and no gradient changes
COMPARED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LeftOut(NamedTuple):
    """Why a layer cannot be compared, and how many values its filters have."""

    reason: str
    values: int


@dataclass(frozen=True)
class ComparableLayers:
    """The layers of a network, sorted for a comparison of their weights.

    Attributes:
        weights: the weight of each layer that can be compared, in the state's order, without the head.
        left_out: the layers that cannot be compared.
        head: the weight of the layer that is taken as the head, which each task has for itself; empty if there is none.
        parameters: how many values the network learns, head included.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    parameters: int = 0

    @property
    def filters(self) -> dict[str, Tensor]:
        """(out, in / groups, kh, kw) of each spatial convolution."""
        return {layer: w for layer, w in self.weights.items() if is_spatial(w)}


def is_spatial(weight: Tensor) -> bool:
    """Whether a weight consists of two-dimensional filters that are larger than 1x1."""
    return weight.ndim == 4 and any(size > 1 for size in weight.shape[2:])


@torch.no_grad()
def comparable_layers(name: str, state: State) -> ComparableLayers:
    """Sorts the entries of a network's :func:`effective state <fscl.compare.effective.effective_state>`.

    Weights are entries called ``weight`` of two to four dimensions, and the packed weights of ``nn.MultiheadAttention``
    and of recurrent layers. Queries, keys and values that are projected by one matrix are three layers, as in networks
    that have a matrix for each. The last linear layer is taken as the head, or in networks without one a last 1x1
    convolution. Files do not always keep the order of layers, so a layer with the usual name of a head is preferred.

    Other entries that may belong to a layer are listed as left out: integers, whose scale is not known; complex
    numbers; tensors without values; weights computed from entries in an unknown way; convolutions of three dimensions.
    A module tells more than a state: its parametrised weights can be computed, and a layer with another forward pass is
    left out.

    Raises:
        FsclError: there is nothing that can be compared, a weight is not finite, or a module is lazy. The message
            begins with ``name``.
    """
    if isinstance(state, nn.Module):
        result = _of_module(name, state)
    elif isinstance(state, Mapping):
        result = _of_entries({k: t for k, t in state.items() if isinstance(k, str) and isinstance(t, Tensor)})
    else:
        raise FsclError(f"{name}: {type(state).__name__}; a state_dict or a module would do")
    if not result.weights:
        why = "".join(f"; layer {layer!r}: {reason}" for layer, (reason, _) in list(result.left_out.items())[:1])
        which = "that can be compared" if why else "(convolutions, or linear layers before the head)"
        raise FsclError(f"{name}: no layers {which}{why}")
    for layer, weight in result.weights.items():
        # aminmax returns NaN if there is one, and copies nothing
        if not all(extreme.isfinite() for extreme in torch.aminmax(weight)):
            raise FsclError(f"{name}: the {_noun(weight.shape)} of layer {layer!r} are not all finite")
    return result


def same_layers(
    name: str,
    weights: Mapping[str, Tensor],
    other: str,
    others: Mapping[str, Tensor],
    left_out: Mapping[str, LeftOut] | None = None,
) -> None:
    """Raises :class:`FsclError` if two networks are not of one architecture; the message names the first such layer.

    Spatial convolutions must be the same. Other layers may be missing, or have another number of outputs, as heads do;
    see :func:`common_layers`. ``left_out`` are the layers of the first network that cannot be compared; the message
    gives the reason.
    """
    for layer in {**others, **weights}:
        tensor, other_tensor = weights.get(layer), others.get(layer)
        shape, other_shape = (None if t is None else tuple(t.shape) for t in (tensor, other_tensor))
        if shape == other_shape:
            continue
        if not any(t is not None and is_spatial(t) for t in (tensor, other_tensor)) and (
            shape is None or other_shape is None or shape[1:] == other_shape[1:]
        ):
            continue
        why = f" ({left_out[layer].reason})" if left_out and layer in left_out else ""
        here, there = (f"{_noun(s)} {s}" if s else "" for s in (shape, other_shape))
        raise FsclError(
            f"{name}: layer {layer!r} has {here or f'no {_noun(other_shape or ())}'} here{why} and "
            f"{there or 'none'} in {other}; only networks of one architecture can be compared"
        )


def common_layers(networks: Sequence[Mapping[str, Tensor]]) -> tuple[list[str], dict[str, LeftOut]]:
    """The layers that all networks have with one shape, in the order of the first; other layers, with the reason.

    >>> first, second = ({"0": torch.ones(4, 4), "1": torch.ones(classes, 4)} for classes in (2, 3))
    >>> common_layers([first, second | {"2": torch.ones(4, 4)}])[0]
    ['0']
    """
    left_out: dict[str, LeftOut] = {}
    for layer, weight in {name: w for weights in reversed(networks) for name, w in weights.items()}.items():
        if not all(layer in weights for weights in networks):
            left_out[layer] = LeftOut("not in every network", weight.numel())
        elif any(weights[layer].shape != weight.shape for weights in networks):
            left_out[layer] = LeftOut("its number of outputs differs", weight.numel())
    layers = [layer for layer in networks[0] if layer not in left_out]
    return layers, {layer: left_out[layer] for weights in networks for layer in weights if layer in left_out}


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


def _noun(shape: Sequence[int]) -> str:
    return "filters" if len(shape) > 2 else "weights"


def _of_entries(state: Mapping[str, Tensor]) -> ComparableLayers:
    entries = effective_state(state)
    beside = _beside(entries)
    weights: dict[str, Tensor] = {}
    left_out: dict[str, LeftOut] = {}
    parameters = 0
    for key, tensor in entries.items():
        layer, _, leaf = key.rpartition(".")
        if (tensor.is_floating_point() or tensor.is_complex()) and leaf not in STATISTICS:
            parameters += tensor.numel()
        is_weight, packed = leaf == "weight", bool(PACKED.fullmatch(leaf))
        place = layer if is_weight else _owner(key)
        if not 2 <= tensor.ndim <= 5 or not tensor.numel():
            continue
        if not is_weight and not packed and place == key and (tensor.ndim < 4 or not _is_larger_than_1x1(tensor)):
            continue  # positions, scales and tables, which mix no channels
        if reason := _hindrance(key, tensor, "" if packed else beside.get(place, "")):
            values = max(tensor.numel(), left_out[place].values if place in left_out else 0)
            left_out[place] = LeftOut(reason, values)
        else:
            weights.update(_split(layer if is_weight else f"{layer}.{leaf}".removeprefix("."), tensor.detach()))
    head = _head(weights)
    return ComparableLayers(weights, left_out, {} if head is None else {head: weights.pop(head)}, parameters)


def _head(weights: Mapping[str, Tensor]) -> str | None:
    """The layer that is taken as the head: with a name of HEADS, or the last linear one or 1x1 convolution."""
    names = sorted(weights, key=_number) if all(name.partition(".")[0].isdigit() for name in weights) else list(weights)
    linear = [name for name in names if weights[name].ndim == 2]
    candidates = linear or [name for name in names if not is_spatial(weights[name])]
    parts = {name: name.split(".") for name in candidates}
    named = [n for n, p in parts.items() if p[0] in HEADS or (p[-1] in HEADS and len(p) == 2)]
    if named:
        return max(named, key=_number)
    return next((name for name in (linear or names)[-1:] if name in candidates), None)


def _number(name: str) -> list[tuple[int, str]]:
    """A key that sorts names with numbers as people do."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _split(layer: str, weight: Tensor) -> dict[str, Tensor]:
    """By layer, the weights of queries, keys and values if one matrix projects all three; else the weight."""
    owner, _, name = layer.rpartition(".")
    if weight.ndim == 2 and len(weight) % 3 == 0 and name in ("in_proj_weight", "qkv"):
        names = (f"{layer}.{part}" for part in "qkv") if name == "qkv" else (f"{owner}.{part}_proj" for part in "qkv")
        return {n.removeprefix("."): part for n, part in zip(names, weight.chunk(3), strict=True)}
    return {layer.removesuffix("_weight") if PACKED.fullmatch(name) else layer: weight}


def _is_larger_than_1x1(tensor: Tensor) -> bool:
    return any(size > 1 for size in tensor.shape[2:])


def _owner(key: str) -> str:
    """The layer whose weight the entry is a part of; the entry's own name if it is not a part of a weight."""
    layer, parametrised, _ = key.partition("parametrizations.weight.")
    if parametrised:
        return layer.removesuffix(".")
    layer, _, leaf = key.rpartition(".")
    return layer if leaf.startswith("weight_") and not PACKED.fullmatch(leaf) else key


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
    """Why a tensor of two to five dimensions cannot be compared as a weight; empty if it can be."""
    if beside:
        return f"its weight is computed by {beside!r}, in an unknown way"
    leaf = key.rpartition(".")[2]
    if leaf != "weight" and not PACKED.fullmatch(leaf):
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


def _of_module(name: str, model: nn.Module) -> ComparableLayers:
    """The layers of a module. It tells more than its state: other forward passes, and parametrised weights."""
    for layer, module in model.named_modules():
        if any(nn.parameter.is_lazy(parameter) for parameter in module._parameters.values()):
            raise FsclError(f"{name}: {layer} is lazy and has no filters yet; run the model once")
    modules = dict(model.named_modules())
    again = {n for n, _ in model.named_modules(remove_duplicate=False)} - modules.keys()  # second names of modules
    state = {key: t for key, t in model.state_dict().items() if isinstance(t, Tensor)}
    result = _of_entries({key: t for key, t in state.items() if key.rpartition(".")[0] not in again})
    weights, left_out = {**result.weights, **result.head}, dict(result.left_out)
    for layer, module in modules.items():
        if layer in left_out and hasattr(module, "parametrizations"):
            # a copy, because computing the weight in training mode may change the module
            weight = copy.deepcopy(module).eval().weight
            if isinstance(weight, Tensor) and 2 <= weight.ndim <= 4:
                del left_out[layer]
                weights[layer] = weight.detach()
        if layer in weights and isinstance(module, nn.Conv2d | nn.Linear) and not _is_plain(type(module)):
            kind = "nn.Conv2d" if isinstance(module, nn.Conv2d) else "nn.Linear"
            reason = f"{type(module).__name__} overrides {kind}'s forward"
            left_out[layer] = LeftOut(reason, weights.pop(layer).numel())
    order = {layer: place for place, layer in enumerate(modules)}

    def place(layer: str) -> int:  # of the module, or of the module that holds a packed weight
        return order.get(layer, order.get(layer.rpartition(".")[0], len(order)))

    weights = dict(sorted(weights.items(), key=lambda item: place(item[0])))
    linear = [layer for layer, module in modules.items() if isinstance(module, nn.Linear)]
    head = linear[-1] if linear else next(iter(result.head), None)
    left_out = {layer: why for layer, why in left_out.items() if layer != head}
    return replace(
        result,
        weights={layer: w for layer, w in weights.items() if layer != head},
        left_out=left_out,
        head={layer: w for layer, w in weights.items() if layer == head},
    )


def _is_plain(cls: type[nn.Conv2d] | type[nn.Linear]) -> bool:
    if issubclass(cls, nn.Linear):
        return cls.forward is nn.Linear.forward
    return cls.forward is nn.Conv2d.forward and cls._conv_forward is nn.Conv2d._conv_forward
