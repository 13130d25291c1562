"""The weights that a network computes with, when its state holds only the entries that they are computed from."""

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
    """A network's state with computed weights in place of the entries that they are computed from.

    Computed are pruned weights (``weight_orig``, ``weight_mask``), weights under weight or spectral normalisation (by
    hooks or by parametrisations, as PyTorch computes them in evaluation), and coefficients times atoms. Sparse,
    quantised and 8-bit floating-point entries become ordinary tensors of the same values. All other entries stay as
    they are.

    Example:
        >>> state = {"0.weight_orig": torch.ones(1, 1, 3, 3), "0.weight_mask": torch.eye(3).view(1, 1, 3, 3)}
        >>> effective_state(state)["0.weight"].sum()
        tensor(3.)
    """
    entries = {name: _ordinary(tensor) for name, tensor in state.items()}
    parts: dict[str, dict[str, str]] = {}  # by weight, the entries that it may be computed from: part -> entry
    for name in entries:
        if (place := _place(name)) is not None:
            parts.setdefault(place[0], {})[place[1]] = name
    weights: dict[str, tuple[str, Tensor] | None] = {}  # what takes the place of an entry; None drops it
    for weight, names in parts.items():
        compute = WEIGHTS.get(frozenset(names))
        value = compute({part: entries[name] for part, name in names.items()}) if compute else None
        if value is not None and weight not in entries:
            first, *further = names.values()
            weights |= {first: (weight, value), **dict.fromkeys(further)}
    return dict(item for name, tensor in entries.items() if (item := weights.get(name, (name, tensor))) is not None)


def _place(name: str) -> tuple[str, str] | None:
    """The weight that an entry may be a part of, and the name of the part."""
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
    """``length`` has a value for each index of one dimension, or a single value."""
    shape = length.shape or (1,) * direction.ndim
    kept_dims = [d for d, size in enumerate(shape) if size > 1]
    if (
        direction.ndim < 2
        or len(shape) != direction.ndim
        or len(kept_dims) > 1
        or any(shape[d] != direction.shape[d] for d in kept_dims)
    ):
        return None
    norm_dims = [d for d in range(direction.ndim) if d not in kept_dims]
    return direction * (length / torch.linalg.vector_norm(direction, dim=norm_dims, keepdim=True))


def _of_spectral_norm(original: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """Uses the singular vectors that training has stored.

    Rows are the first dimension of the weight, or the second dimension in transposed convolutions.
    """
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
    """A function that computes a weight from these entries, or returns None if their values do not allow it."""

    def weight(entries: Mapping[str, Tensor]) -> Tensor | None:
        tensors = [entries[part] for part in parts]
        if not tensors[0].is_floating_point() or any(t.is_meta or t.layout != torch.strided for t in tensors):
            return None
        try:
            return compute(*tensors)
        except RuntimeError:  # dtypes that cannot be combined
            return None

    return weight


# by the set of parts, which must match exactly: an unknown further part may change the weight
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
