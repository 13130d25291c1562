"""Compares kernels of features, X X^T or Gaussian ones: centred kernel alignment, and Procrustes."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity.matrices import PAIR, Centred, Maps, Measure, Named, centred, checked, named_features

__all__ = ["aligned_cosine", "linear_cka", "minibatch_cka", "procrustes", "rbf_cka"]


@overload
def linear_cka(x: Tensor, y: Tensor, *, maps: Maps | None = None) -> float: ...
@overload
def linear_cka(x: Sequence[Tensor], y: None = None, *, maps: Maps | None = None) -> Tensor: ...
def linear_cka(x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, maps: Maps | None = None) -> float | Tensor:
    """Linear centred kernel alignment, `|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`, in [0, 1] (Kornblith et al. 2019).

    The value is invariant to orthogonal maps, shifts and a common scale of the features, but not to other linear maps.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: shapes do not fit, or are (n, c, h, w) without `maps`; values are not finite; or all samples have the
            same features.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(linear_cka(x, 5 - 2 * x), 6), round(linear_cka(x, x[:, :1]), 6)
    (1.0, 0.790569)
    >>> linear_cka([x, x[:, :1], -x])
    tensor([[1.0000, 0.7906, 1.0000],
            [0.7906, 1.0000, 0.7906],
            [1.0000, 0.7906, 1.0000]], dtype=torch.float64)
    """
    return LINEAR_CKA(x, y, maps)


@overload
def rbf_cka(x: Tensor, y: Tensor, *, bandwidth: float = 0.5, maps: Maps | None = None) -> float: ...
@overload
def rbf_cka(x: Sequence[Tensor], y: None = None, *, bandwidth: float = 0.5, maps: Maps | None = None) -> Tensor: ...
def rbf_cka(
    x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, bandwidth: float = 0.5, maps: Maps | None = None
) -> float | Tensor:
    """Centred alignment of Gaussian kernels exp(-d^2 / 2 sigma^2), in [0, 1] (Kornblith et al. 2019; biased HSIC).

    The value is invariant to orthogonal maps, shifts and a common scale of the features, but not to other linear maps.
    For a wide bandwidth it tends to linear CKA. For a very narrow bandwidth it tends to 1 for all features, because
    each sample is then similar only to itself. It needs n^2 float64 values for each network: use thousands of samples,
    not hundreds of thousands.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
        bandwidth: sigma as a multiple of the median Euclidean distance between two different samples; above 0.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: as `linear_cka`; the bandwidth is out of range, or the median distance is 0.

    >>> x = torch.arange(12.0).reshape(6, 2).sin()
    >>> round(rbf_cka(x, 5 - 2 * x), 6), round(rbf_cka(x, x[:, :1]), 6)
    (1.0, 0.838635)
    """
    if not 0 < bandwidth < math.inf:
        raise FsclError(f"bandwidth is {bandwidth}; a finite multiple of the median distance above 0 would do")
    return Measure(partial(_unit_gaussian, bandwidth=bandwidth), _inner_of_kernels)(x, y, maps)


@overload
def procrustes(x: Tensor, y: Tensor, *, maps: Maps | None = None) -> float: ...
@overload
def procrustes(x: Sequence[Tensor], y: None = None, *, maps: Maps | None = None) -> Tensor: ...
def procrustes(x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, maps: Maps | None = None) -> float | Tensor:
    """How well a rotation maps one set of features onto the other, in [0, 1] (Schönemann 1966; Williams et al. 2021).

    It is nu, the nuclear norm of X^T Y for centred features of unit Frobenius norm. 1 - nu^2 is the disparity of
    `scipy.spatial.procrustes`, and arccos(nu) is a metric. The value is invariant to orthogonal maps, shifts and a
    common scale of the features, but not to other linear maps.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: as `linear_cka`.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(procrustes(x, 5 - 2 * x), 6), round(procrustes(x, x[:, :1]), 6)
    (1.0, 0.790569)
    """
    return PROCRUSTES(x, y, maps)


@overload
def minibatch_cka(x: Tensor, y: Tensor, *, batch_size: int = 256, maps: Maps | None = None) -> float: ...
@overload
def minibatch_cka(
    x: Sequence[Tensor], y: None = None, *, batch_size: int = 256, maps: Maps | None = None
) -> Tensor: ...
@overload
def minibatch_cka(
    x: Iterable[tuple[Tensor, Tensor]], y: None = None, *, batch_size: int = 256, maps: Maps | None = None
) -> float: ...
def minibatch_cka(
    x: Tensor | Sequence[Tensor] | Iterable[tuple[Tensor, Tensor]],
    y: Tensor | None = None,
    *,
    batch_size: int = 256,
    maps: Maps | None = None,
) -> float | Tensor:
    """Linear CKA from small batches, without the bias of small samples (Nguyen, Raghu, Kornblith 2021).

    The numerator HSIC_1 (Song et al. 2012) and both self terms are summed over the batches before their ratio is taken.
    It is in [-1, 1], and about 0, of either sign, for unrelated features. It is invariant to orthogonal maps, shifts
    and a common scale of the features, but not to other linear maps. It depends on which samples share a batch.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64; or
            an iterable of batches (x, y) as `x`, without `y`, read once, for a float.
        batch_size: largest number of samples in a batch, if matrices are given. Batches have nearly equal sizes.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: as `linear_cka`; there are no batches, or a batch has fewer than 4 samples.

    >>> x = torch.arange(32.0).reshape(16, 2).sin()
    >>> round(minibatch_cka(x, 3 * x, batch_size=8), 6)
    1.0
    >>> round(minibatch_cka((part, 3 * part) for part in x.split(8)), 6)
    1.0
    """
    if y is None and isinstance(x, Iterable) and not isinstance(x, Tensor):
        remaining: Iterator[Any] = iter(x)
        first = next(remaining, None)
        if first is None:
            raise FsclError("no features and no batches; give a list of tensors, or batches (x, y)")
        x = itertools.chain([first], remaining)
        if not isinstance(first, Tensor):
            return float(_unbiased(checked(batch, PAIR, maps) for batch in x)[0, 1])
    matrix = _unbiased(_batches(named_features(x, y, maps), batch_size))
    return float(matrix[0, 1]) if y is not None else matrix.fill_diagonal_(1)


@overload
def aligned_cosine(x: Tensor, y: Tensor, *, maps: Maps | None = None) -> float: ...
@overload
def aligned_cosine(x: Sequence[Tensor], y: None = None, *, maps: Maps | None = None) -> Tensor: ...
def aligned_cosine(
    x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, maps: Maps | None = None
) -> float | Tensor:
    """Squared cosine of centred features, channel by channel: `<X, Y>^2 / (|X|^2 |Y|^2)`, in [0, 1].

    It is for networks that share their coefficients, so that their channels correspond. `similarity_matrix`
    approximates it from the atoms. It is squared to be of the same degree as CKA, and is at most the square of
    `procrustes`, which may rotate the features first. The value is invariant to shifts, a common scale, and an
    orthogonal map applied to both sides, but not to an orthogonal map of one side.

    Args:
        x, y: (n, p) both for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: as `linear_cka`; numbers of features differ.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(aligned_cosine(x, 5 - 2 * x), 6), round(aligned_cosine(x, x.flip(1)), 6)
    (1.0, 0.25)
    """
    if y is None and not isinstance(x, Tensor):
        x = list(x)  # an iterator could not be read twice
    check_channels({name: values.shape[1] for name, values in named_features(x, y, maps)})
    return ALIGNED_COSINE(x, y, maps)


def check_channels(sizes: dict[str, int]) -> None:
    if len(set(sizes.values())) > 1:
        raise FsclError(f"features have {sizes} columns; channel by channel they need the same number; use linear_cka")


def _unit_columns(features: Centred) -> Tensor:
    return features.values / torch.linalg.matrix_norm(features.values)


def _unit_features(features: Centred) -> Tensor:
    """Centred features X with |X|_F = 1. If there are more than n columns, n columns with the same X X^T."""
    unit = _unit_columns(features)
    return torch.linalg.qr(unit.mT, mode="r").R.mT if unit.shape[1] > len(unit) else unit


def _unit_covariance(features: Centred) -> Tensor:
    """Features as from :func:`_unit_features`, but scaled to |X^T X|_F = 1."""
    unit = _unit_features(features)
    return unit / torch.linalg.matrix_norm(unit.mT @ unit).sqrt()


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """The inner product of the kernels X X^T and Y Y^T."""
    return (y.mT @ x).square().sum().clamp(0, 1)


def _inner_of_kernels(k: Tensor, m: Tensor) -> Tensor:
    return torch.tensordot(k, m, 2).clamp(0, 1)


def _nuclear(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.mT @ y).sum().clamp(0, 1)


def _squared_cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.tensordot(x, y, 2).square().clamp(0, 1)


LINEAR_CKA = Measure(_unit_covariance, _inner)
PROCRUSTES = Measure(_unit_features, _nuclear)
ALIGNED_COSINE = Measure(_unit_columns, _squared_cosine)


def _unit_gaussian(centred_features: Centred, bandwidth: float) -> Tensor:
    """The centred Gaussian kernel (n, n) of unit Frobenius norm."""
    name, features, _ = centred_features
    kernel, median = _distances(features, "use_mm_for_euclid_dist")
    # such small distances are lost in the rounding of a matrix product
    if median**2 < 1e-8 * features.square().sum(1).max():
        kernel, median = _distances(features, "donot_use_mm_for_euclid_dist")
    if median == 0:
        raise FsclError(
            f"{name}: at least half of all pairs of its {len(features)} samples have the same features, which "
            "leaves no median distance to set the bandwidth by; use linear_cka, or samples that differ"
        )
    # expm1, not exp: centring removes the 1 anyway, and it costs precision if the bandwidth is wide
    kernel.div_(median * bandwidth).square_().div_(-2).expm1_()
    means = kernel.mean(1)
    kernel.sub_(means[:, None]).sub_(means).add_(means.mean())
    return kernel.div_(torch.linalg.matrix_norm(kernel))


def _distances(features: Tensor, compute_mode: str) -> tuple[Tensor, Tensor]:
    """Euclidean distances (n, n), and the median over pairs of different samples."""
    distances = torch.cdist(features, features, compute_mode=compute_mode).fill_diagonal_(0)
    off_diagonal = distances[~torch.eye(len(distances), dtype=torch.bool, device=distances.device)]
    # the number of values is even; torch's median is the lower middle one, and of negated values the upper one
    return distances, (off_diagonal.median() - (-off_diagonal).median()) / 2


def _batches(named: Sequence[Named], batch_size: int) -> Iterator[list[Named]]:
    n = len(named[0][1])
    if batch_size < 4 or n < 4:
        raise FsclError(f"batch_size {batch_size} for {n} samples; HSIC_1 needs 4 samples or more in a batch")
    count = min(math.ceil(n / batch_size), n // 4)
    # nearly equal sizes: a short last batch would be mostly noise
    parts = [values.tensor_split(count) for _, values in named]
    return ([(name, part[i]) for (name, _), part in zip(named, parts, strict=True)] for i in range(count))


def _unbiased(batches: Iterable[Sequence[Named]]) -> Tensor:
    """Unbiased CKA of all pairs of networks, from batches of the features of all of them: (N, N)."""
    total, names = torch.zeros(()), [""]
    for batch in batches:
        terms, names = hsic_terms(batch), [name for name, _ in batch]
        total = total.to(terms) + terms
    return ratio_of_terms(total, names)


def hsic_terms(batch: Sequence[Named]) -> Tensor:
    """HSIC_1 of all pairs of networks for one batch: (N, N)."""
    n = len(batch[0][1])
    if n < 4:
        raise FsclError(f"a batch of {n} samples; HSIC_1 needs 4 samples or more in a batch")
    # HSIC_1 of two kernels is the inner product of their U-centred forms over n(n-3) (Szekely and Rizzo 2014), so one
    # matrix product gives it for all pairs
    kernels = torch.stack([_u_centred_kernel(features).flatten() for _, features in batch])
    return kernels @ kernels.mT / (n * (n - 3))


def ratio_of_terms(total: Tensor, names: Sequence[str]) -> Tensor:
    """Unbiased CKA of all pairs of networks, from the sums of their HSIC_1 over batches: (N, N)."""
    self_terms = total.diagonal()
    if not self_terms.all():
        constant = names[int((self_terms == 0).nonzero()[0])]
        raise FsclError(f"{constant}: all samples of each batch have the same features; leave it out")
    if not self_terms.isfinite().all():
        huge = names[int((~self_terms.isfinite()).nonzero()[0])]
        raise FsclError(f"{huge}: fourth powers of its features overflow float64; features below 1e70 would do")
    roots = self_terms.sqrt()  # their product may overflow where the product of roots does not
    ratio = total / (roots[:, None] * roots)
    return ((ratio + ratio.mT) / 2).clamp(-1, 1)


def _u_centred_kernel(features: Tensor) -> Tensor:
    """The U-centred linear kernel (n, n) of (n, p): zero diagonal, and rows and columns that sum to zero."""
    n, shifted = len(features), centred(features)  # U-centring removes the mean, but a large one costs precision
    kernel = (shifted @ shifted.mT).fill_diagonal_(0)
    rows = kernel.sum(1) / (n - 2)
    return kernel.sub_(rows[:, None]).sub_(rows).add_(rows.sum() / (n - 1)).fill_diagonal_(0)
