"""Prepares feature matrices for the probing measures: flattens, checks and centres them, then compares pairs."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["Maps", "flatten_maps"]

Maps = Literal["positions", "features", "pooled"]
MAPS = get_args(Maps)
PAIR = ("x", "y")
EPS = torch.finfo(torch.float64).eps
Named = tuple[str, Tensor]  # a feature matrix, and its name in errors
Prepared = TypeVar("Prepared")


class Centred(NamedTuple):
    """Centred features of one network, scaled to a largest absolute value of 1, so that no square or fourth power
    overflows.

    All measures but `rbf_cka` use only inner products of features over the samples. So they accept any matrix with the
    same inner products in place of the features, such as the triangular factor of :class:`fscl.similarity.scatter.
    Scatter`.
    """

    name: str  # in errors
    values: Tensor  # (n, p), or (r, p) with the same inner products of columns
    samples: int  # n


@dataclass(frozen=True)
class Measure(Generic[Prepared]):
    """A measure of two networks: what is computed once for each network, and how two of these results compare."""

    prepare: Callable[[Centred], Prepared]
    compare: Callable[[Prepared, Prepared], Tensor]

    def of_pair(self, x: Centred, y: Centred) -> float:
        return float(self.compare(self.prepare(x), self.prepare(y)))

    def __call__(self, x: Tensor | Iterable[Tensor], y: Tensor | None, maps: "Maps | None") -> float | Tensor:
        """The measure of a pair (x, y); or, if x is a list and y is None, the (N, N) matrix of all its pairs."""
        named = named_features(x, y, maps)
        prepared = [self.prepare(centred_and_scaled(features)) for features in named]
        if y is not None:
            return float(self.compare(*prepared))
        matrix = torch.eye(len(named), dtype=torch.float64, device=named[0][1].device)
        for i, j in itertools.combinations(range(len(named)), 2):
            matrix[i, j] = matrix[j, i] = self.compare(prepared[i], prepared[j])
        return matrix


def flatten_maps(x: Tensor, how: Maps) -> Tensor:
    """The feature maps (n, c, h, w) of a convolution as a matrix (samples, features). Similarities depend on `how`.

    Args:
        x: (n, c, h, w). A matrix (n, p) is returned unchanged.
        how: "positions": every position of every image is a sample, (n*h*w, c), image by image; "features": every
            position of every channel is a feature, (n, c*h*w); "pooled": means over the positions, (n, c), in float32
            or, if x has it, float64.

    Raises:
        FsclError: `how` is unknown, or x has another shape.

    >>> x = torch.arange(16.0).reshape(1, 2, 2, 4)
    >>> [tuple(flatten_maps(x, how).shape) for how in ("positions", "features", "pooled")]
    [(8, 2), (1, 16), (1, 2)]
    >>> flatten_maps(x, "pooled")
    tensor([[ 3.5000, 11.5000]])
    """
    if how not in MAPS:
        raise FsclError(f"maps is {how!r}; {', '.join(map(repr, MAPS))} would do")
    if x.ndim == 2:
        return x
    if x.ndim != 4:
        raise FsclError(f"features of shape {tuple(x.shape)}; (n, c, h, w) or (n, p) would do")
    if how == "positions":
        return x.movedim(1, -1).flatten(0, -2)
    return x.flatten(1) if how == "features" else x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def check_maps(maps: Maps | None) -> None:
    if maps is not None and maps not in MAPS:
        raise FsclError(f"maps is {maps!r}; None, {', '.join(map(repr, MAPS))} would do")


def named_features(x: object, y: Tensor | None, maps: Maps | None) -> list[Named]:
    """The features of a pair (x, y), or of a list x, checked and named."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return checked((x, y), PAIR, maps)
    if isinstance(x, Tensor) or y is not None or not isinstance(x, Iterable):
        kinds = f"x is {type(x).__name__}, y is {type(y).__name__}"
        raise FsclError(f"{kinds}; give two tensors x and y, or one list of tensors")
    features = list(x)
    if not features:
        raise FsclError("0 feature matrices; one or more would do")
    return checked(features, [f"features[{i}]" for i in range(len(features))], maps)


def checked(features: Sequence[Tensor], names: Sequence[str], maps: Maps | None) -> list[Named]:
    """The features as matrices with their names, on one device that has float64."""
    check_maps(maps)
    if not isinstance(features, Sequence) or len(features) != len(names):
        actual = f"{len(features)} feature matrices" if isinstance(features, Sequence) else type(features).__name__
        raise FsclError(f"{actual}; {len(names)} feature matrices would do: ({', '.join(names)})")
    matrices: list[Named] = []
    for name, values in zip(names, features, strict=True):
        matrices.append((name, _matrix(name, values, maps)))
        if len(matrices[-1][1]) != len(matrices[0][1]):
            raise FsclError(
                f"{name} has {len(matrices[-1][1])} samples, {names[0]} has {len(matrices[0][1])}; they need the "
                "same number"
            )
    first = matrices[0][1].device
    device = torch.device("cpu") if first.type == "mps" else first  # MPS has no float64
    return [(name, values.to(device)) for name, values in matrices]


def _matrix(name: str, values: Tensor, maps: Maps | None) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim not in (2, 4) or 0 in values.shape or values.is_complex():
        actual = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        complex_note = " and complex values" if isinstance(values, Tensor) and values.is_complex() else ""
        raise FsclError(f"{name}: {actual}{complex_note}; a real tensor (samples, features) or (n, c, h, w) would do")
    if values.ndim == 4:
        if maps is None:
            n, c, h, w = values.shape
            raise FsclError(
                f"{name}: shape {(n, c, h, w)}; say what are samples and what features: maps='positions' compares "
                f"{(n * h * w, c)}, maps='features' {(n, c * h * w)}, maps='pooled' {(n, c)}"
            )
        values = flatten_maps(values, maps)
    if not values.isfinite().all():
        raise FsclError(f"{name} holds values that are not finite; leave it out or repair the network")
    return values.detach()


def centred(features: Tensor) -> Tensor:
    """Columns minus their means. Constant columns are set to 0: whitening would magnify the rounding left in them."""
    precise = features.double()
    centred_features = precise - precise.mean(0)
    centred_features[:, only_rounding(centred_features.abs().amax(0), precise.abs().amax(0))] = 0
    return centred_features


def only_rounding(deviation: Tensor, size: Tensor) -> Tensor:
    """Which columns are constant, from the largest distance of their values to the mean, and their largest value."""
    return deviation <= 16 * EPS * size


def centred_and_scaled(named: Named) -> Centred:
    name, features = named
    return scaled(name, centred(features), len(features))


def scaled(name: str, centred_features: Tensor, samples: int) -> Centred:
    """Scales a matrix of centred features in place."""
    largest = centred_features.abs().max() if len(centred_features) else 0
    if largest == 0:
        raise FsclError(f"{name}: all {samples} samples have the same features; leave it out")
    return Centred(name, centred_features.div_(largest), samples)
