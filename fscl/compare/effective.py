"""The weights that a network computes with, where its state keeps what they are computed from."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["effective_state"]

PARAMETRISED = re.compile(r"(?P<owner>.*?)parametrizations\.(?P<leaf>\w+)\.(?P<part>.+)")
RENAMED = re.compile(r"(?P<owner>(?:.*\.)?)(?P<leaf>\w+)_(?P<part>orig|mask|g|u|v)")
ATOMS = re.compile(r"(?P<owner>(?:.*\.)?)(?P<part>coefficients|atoms)")


@torch.no_grad()
def effective_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state in which each weight that other entries determine stands in the place of these entries.

    Such are pruned weights (``weight_orig``, ``weight_mask``), weights under weight or spectral normalisation, by hooks
    or by parametrisations, as PyTorch computes them in evaluation, and coefficients times atoms. Sparse, quantised and
    8-bit floating point entries become ordinary ones of the same values. All else is left as it is.

    Example:
        >>> state = {"0.weight_orig": torch.ones(1, 1, 3, 3), "0.weight_mask": torch.eye(3).view(1, 1, 3, 3)}
        >>> effective_state(state)["0.weight"].sum()
        tensor(3.)
    """
    entries = {name: _ordinary(tensor) for name, tensor in state.items()}
    parts: dict[str, dict[str, str]] = {}  # by the name of a weight, the entries that it may have in its place
    for name in entries:
        if (place := _place(name)) is not None:
            parts.setdefault(place[0], {})[place[1]] = name
    weights: dict[str, tuple[str, Tensor] | None] = {}  # by entry; None for all but the first of a weight's entries
    for weight, names in parts.items():
        compute = WEIGHTS.get(frozenset(names))
        value = compute({part: entries[name] for part, name in names.items()}) if compute else None
        if value is not None and weight not in entries:
            first, *others = names.values()
            weights |= {first: (weight, value), **dict.fromkeys(others)}
    return dict(item for name, tensor in entries.items() if (item := weights.get(name, (name, tensor))) is not None)


def _place(name: str) -> tuple[str, str] | None:
    """The weight that an entry may be a part of, and which part."""
    if match := PARAMETRISED.fullmatch(name) or RENAMED.fullmatch(name):
        return match["owner"] + match["leaf"], match["part"]
    if match := ATOMS.fullmatch(name):
        return f"{match['owner']}weight", match["part"]
    return None


def _ordinary(tensor: Tensor) -> Tensor:
    try:
        if tensor.is_quantized:
            return tensor.dequantize()
        if tensor.layout != torch.strided and not tensor.is_meta:
            tensor = tensor.to_dense()
        narrow = tensor.is_floating_point() and tensor.element_size() == 1
        return tensor.float() if narrow and not tensor.is_meta else tensor
    except (RuntimeError, NotImplementedError):  # a type that cannot be converted
        return tensor


def _pruned(original: Tensor, mask: Tensor) -> Tensor | None:
    return original * mask if original.shape == mask.shape else None


def _of_weight_norm(length: Tensor, direction: Tensor) -> Tensor | None:
    """One length for each index of one dimension, or one for all."""
    shape = length.shape or (1,) * direction.ndim
    kept = [d for d, size in enumerate(shape) if size > 1]
    if (
        direction.ndim < 2
        or len(shape) != direction.ndim
        or len(kept) > 1
        or any(shape[d] != direction.shape[d] for d in kept)
    ):
        return None
    others = [d for d in range(direction.ndim) if d not in kept]
    return direction * (length / torch.linalg.vector_norm(direction, dim=others, keepdim=True))


def _of_spectral_norm(original: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """By the singular vectors that training has kept; rows are the first dimension, in transposed convolutions the
    second."""
    for dimension in range(min(2, original.ndim)):
        matrix = original.movedim(dimension, 0).flatten(1)
        if (left.shape, right.shape) == (matrix.shape[:1], matrix.shape[1:]):
            return original / torch.dot(left, torch.mv(matrix, right))
    return None


def _composed(coefficients: Tensor, atoms: Tensor) -> Tensor | None:
    if coefficients.ndim != 3 or atoms.ndim != 3 or coefficients.shape[2] != len(atoms):
        return None
    return torch.tensordot(coefficients, atoms, 1)


def _of(compute: Callable[..., Tensor | None], *parts: str) -> Callable[[Mapping[str, Tensor]], Tensor | None]:
    """Computes a weight of entries in this order, where they hold numbers for it."""

    def weight(entries: Mapping[str, Tensor]) -> Tensor | None:
        given = [entries[part] for part in parts]
        if not given[0].is_floating_point() or any(t.is_meta or t.layout != torch.strided for t in given):
            return None
        try:
            return compute(*given)
        except RuntimeError:  # types that do not go together
            return None

    return weight


# by the parts that there are: no others, for what they do to the weight is not known
WEIGHTS = {
    frozenset(parts): _of(compute, *parts)
    for compute, *parts in (
        (_pruned, "orig", "mask"),
        (_of_weight_norm, "g", "v"),
        (_of_weight_norm, "original0", "original1"),
        (_of_spectral_norm, "orig", "u", "v"),
        (_of_spectral_norm, "original", "0._u", "0._v"),
        (_composed, "coefficients", "atoms"),
    )
}
