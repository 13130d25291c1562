"""Compares the spaces that features span: mean and weighted mean of canonical correlations."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, overload

import torch
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity.matrices import EPS, Centred, Maps, Measure, centred_and_scaled, checked

__all__ = ["kept_directions", "mean_cca", "pwcca", "svcca"]


@overload
def mean_cca(x: Tensor, y: Tensor, *, maps: Maps | None = None) -> float: ...
@overload
def mean_cca(x: Sequence[Tensor], y: None = None, *, maps: Maps | None = None) -> Tensor: ...
def mean_cca(x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, maps: Maps | None = None) -> float | Tensor:
    """Mean canonical correlation over the smaller rank, in [0, 1] (Raghu et al. 2017; Kornblith et al. 2019).

    It is invariant to invertible linear maps and shifts of either side's features.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
            All need more samples than features.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: shapes do not fit, or are (n, c, h, w) without `maps`; values are not finite; all samples have the
            same features; or there are no more samples than features, so that the result would be 1 for any values.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, -3.0]])
    >>> round(mean_cca(x, x @ torch.tensor([[2.0, 1.0], [0.0, 1.0]])), 6)
    1.0
    >>> mean_cca([x, x[:, :1], x.square()])
    tensor([[1.0000, 1.0000, 0.5483],
            [1.0000, 1.0000, 0.7456],
            [0.5483, 0.7456, 1.0000]], dtype=torch.float64)
    """
    return MEAN_CCA(x, y, maps)


@overload
def svcca(x: Tensor, y: Tensor, *, keep: float = 0.99, maps: Maps | None = None) -> float: ...
@overload
def svcca(x: Sequence[Tensor], y: None = None, *, keep: float = 0.99, maps: Maps | None = None) -> Tensor: ...
def svcca(
    x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, keep: float = 0.99, maps: Maps | None = None
) -> float | Tensor:
    """Mean canonical correlation of the leading singular directions of either side, in [0, 1] (Raghu et al. 2017).

    It is invariant to orthogonal maps, shifts and a common scale of the features. Other linear maps change which
    directions lead. `kept_directions` gives the number of directions that are compared.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
        keep: share of the variance, in (0, 1]; the smallest number of directions that hold it is compared.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: as `linear_cka`; `keep` is out of range; or the directions span all n samples, so that the result
            would be 1 for any values.

    >>> x = torch.tensor([[1.0, 0.01], [2.0, -0.01], [-3.0, 0.0], [4.0, 0.02]])
    >>> round(svcca(x, x[:, :1]), 6), kept_directions(x)
    (1.0, 1)
    """
    return svcca_measure(keep)(x, y, maps)


def kept_directions(x: Tensor, keep: float = 0.99, *, maps: Maps | None = None) -> int:
    """How many singular directions of (n, p) `svcca` compares: the fewest that hold the share `keep` of the variance.

    Raises:
        FsclError: as `linear_cka`; `keep` is out of range.

    >>> x = torch.eye(4) * torch.tensor([10.0, 2, 1, 0])
    >>> kept_directions(x, 0.9), kept_directions(x, 0.99), kept_directions(x, 1)
    (1, 2, 3)
    """
    (named,) = checked([x], ["x"], maps)
    features = centred_and_scaled(named)
    return _num_kept(torch.linalg.svdvals(features.values), features, _share(keep))


@overload
def pwcca(x: Tensor, y: Tensor, *, maps: Maps | None = None) -> float: ...
@overload
def pwcca(x: Sequence[Tensor], y: None = None, *, maps: Maps | None = None) -> Tensor: ...
def pwcca(x: Tensor | Sequence[Tensor], y: Tensor | None = None, *, maps: Maps | None = None) -> float | Tensor:
    """Projection-weighted mean canonical correlation, in [0, 1] (Morcos, Raghu, Bengio 2018).

    Each canonical direction h_i of x is weighted by its share in the neurons of x, `sum_j |<h_i, x_j>|`. The weights
    depend on x only, so pwcca(x, y) differs from pwcca(y, x). The matrix of all pairs is symmetric: its entries are the
    means of both.

    It is invariant to invertible linear maps and shifts of y. For x, it is invariant only to shifts, a common scale,
    and swapping or negating neurons. It is not invariant to rotations of x, because the weights are sums over single
    neurons. The matrix of all pairs has only the invariances of x. If correlations are exactly equal, their directions,
    and so their weights, are not unique.

    Args:
        x, y: (n, p) and (n, q) for a float; or a list of N such matrices as `x`, without `y`, for (N, N) in float64.
            All need more samples than features.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.

    Raises:
        FsclError: as `mean_cca`.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, -3.0]])
    >>> y = x.square()
    >>> round(pwcca(x, y), 4), round(pwcca(y, x), 4)
    (0.6934, 0.7837)
    >>> pwcca([x, y])
    tensor([[1.0000, 0.7386],
            [0.7386, 1.0000]], dtype=torch.float64)
    """
    return (PWCCA_OF_PAIR if y is not None else _PWCCA_OF_ALL)(x, y, maps)


class _Space(NamedTuple):
    basis: Tensor  # (n, k), orthonormal columns that span centred features X, or the leading part of them
    loadings: Tensor  # (p, k), X^T basis


def _whole_space(features: Centred) -> _Space:
    name, n, p = features.name, features.samples, features.values.shape[1]
    if n <= p:
        raise FsclError(
            f"{name}: {n} samples of {p} features make every canonical correlation 1 for any values; use more than "
            f"{p} samples, fewer features (maps='positions' or 'pooled'), svcca or linear_cka"
        )
    return _leading_space(features, keep=1.0)


def _leading_space(features: Centred, keep: float) -> _Space:
    """The fewest left singular vectors that hold the share `keep` of the variance."""
    left, strength, right = torch.linalg.svd(features.values, full_matrices=False)
    num_kept = _num_kept(strength, features, keep)
    if num_kept >= features.samples - 1:  # n centred samples span n - 1 dimensions: these contain any other features
        raise FsclError(
            f"{features.name}: {num_kept} directions of {features.samples} samples make every canonical correlation 1 "
            f"for any values; use more than {num_kept + 1} samples, fewer features, a lower keep of svcca, or "
            "linear_cka"
        )
    return _Space(left[:, :num_kept], right[:num_kept].mT * strength[:num_kept])


def _share(keep: float) -> float:
    if not 0 < keep <= 1:
        raise FsclError(f"keep is {keep}; a share of the variance above 0 and up to 1 would do, such as 0.99")
    return keep


def _num_kept(strength: Tensor, features: Centred, keep: float) -> int:
    """How many singular values hold the share `keep` of the variance. Values that are only rounding do not count."""
    longest = max(features.samples, features.values.shape[1])
    rank = int((strength > strength[0] * longest * EPS).sum())
    shares = strength[:rank].square().cumsum(0)
    return rank if keep == 1 else min(rank, int((shares < keep * shares[-1]).sum()) + 1)


def _mean(x: _Space, y: _Space) -> Tensor:
    return torch.linalg.svdvals(x.basis.mT @ y.basis).clamp(0, 1).mean()


def _weighted(x: _Space, y: _Space) -> Tensor:
    turn, correlations, _ = torch.linalg.svd(x.basis.mT @ y.basis, full_matrices=False)
    return _weighted_mean(correlations, x.loadings @ turn)


def _weighted_both_ways(x: _Space, y: _Space) -> Tensor:
    left, correlations, right = torch.linalg.svd(x.basis.mT @ y.basis, full_matrices=False)
    both = _weighted_mean(correlations, x.loadings @ left) + _weighted_mean(correlations, y.loadings @ right.mT)
    return both / 2


def _weighted_mean(correlations: Tensor, loadings: Tensor) -> Tensor:
    weights = loadings.abs().sum(0)
    return (weights * correlations.clamp(0, 1)).sum() / weights.sum()


MEAN_CCA = Measure(_whole_space, _mean)
PWCCA_OF_PAIR = Measure(_whole_space, _weighted)
_PWCCA_OF_ALL = Measure(_whole_space, _weighted_both_ways)


def svcca_measure(keep: float) -> Measure[_Space]:
    return Measure(partial(_leading_space, keep=_share(keep)), _mean)
