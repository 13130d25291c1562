"""How alike features are: the yardsticks that need data and forward passes.

Every measure takes feature matrices of the same n samples in the same order, (n, p) and (n, q), of any real type.
A convolution's features (n, c, h, w) have to be flattened first, and the answer depends on how: positions as samples
(`x.movedim(1, -1).flatten(0, -2)`), positions as features (`x.flatten(1)`) or pooled (`x.mean((2, 3))`).

A measure is a preparation of one feature matrix, done once for each network, and a comparison of two prepared ones.
All are computed in float64 on the device of the features (on the CPU for MPS, which has no float64).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["SVCCA", "linear_cka", "mean_cca", "minibatch_cka", "probing_matrix", "svcca"]

PROBES = ("linear_cka", "minibatch_cka", "mean_cca", "svcca")
PAIR = ("x", "y")
Named = tuple[str, Tensor]  # what errors call a feature matrix, and the matrix
_EPS = torch.finfo(torch.float64).eps


class SVCCA(NamedTuple):
    """A similarity, and how many singular directions of either side it compares."""

    similarity: float
    kept_x: int
    kept_y: int


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment, |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), in [0, 1] (Kornblith et al. 2019).

    Args:
        x, y: (n, p) and (n, q). Rotations and a common scale of the features change nothing; other linear maps do.

    Raises:
        FsclError: shapes that do not fit; values that are not finite; features that are the same for all samples.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(linear_cka(x, 5 - 2 * x), 6), round(linear_cka(x, x[:, :1]), 6)
    (1.0, 0.790569)
    """
    return float(_aligned(*map(_unit_covariance, _checked((x, y), PAIR))))


def mean_cca(x: Tensor, y: Tensor) -> float:
    """Mean canonical correlation over the smaller rank, in [0, 1] (Raghu et al. 2017; Kornblith et al. 2019).

    Args:
        x, y: (n, p) and (n, q), with n > p and n > q. Invertible linear maps of the features change nothing.

    Raises:
        FsclError: as `linear_cka`; no more samples than features, which makes the answer 1 whatever they hold.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, -3.0]])
    >>> round(mean_cca(x, x @ torch.tensor([[2.0, 1.0], [0.0, 1.0]])), 6)
    1.0
    """
    return float(_correlated(*map(_whole_basis, _checked((x, y), PAIR))))


def svcca(x: Tensor, y: Tensor, keep: float = 0.99) -> SVCCA:
    """Mean canonical correlation of the leading singular directions of either side (Raghu et al. 2017).

    Args:
        x, y: (n, p) and (n, q).
        keep: the least number of directions is compared that holds this share of the variance; in (0, 1].

    Raises:
        FsclError: as `linear_cka`; a `keep` out of range; directions that take up all n samples.

    >>> x = torch.tensor([[1.0, 0.01], [2.0, -0.01], [-3.0, 0.0], [4.0, 0.02]])
    >>> similarity, kept_x, kept_y = svcca(x, x[:, :1])
    >>> round(similarity, 6), kept_x, kept_y
    (1.0, 1, 1)
    """
    left, right = (_leading_basis(named, keep) for named in _checked((x, y), PAIR))
    return SVCCA(float(_correlated(left, right)), left.shape[1], right.shape[1])


def minibatch_cka(x: Tensor | Iterable[tuple[Tensor, Tensor]], y: Tensor | None = None, batch_size: int = 256) -> float:
    """Linear CKA from small batches, without the bias of small samples (Nguyen, Raghu, Kornblith 2021).

    The numerator HSIC_1 (Song et al. 2012) and both self terms are summed over the batches before their ratio is
    taken. In [-1, 1]; about 0, of either sign, for unrelated features.

    Args:
        x, y: (n, p) and (n, q); or, with `y` left out, `x` as an iterable of batches (x, y), read once.
        batch_size: samples in a batch when two matrices are given, or less, for batches of like size.

    Raises:
        FsclError: as `linear_cka`; no batches; a batch of fewer than 4 samples.

    >>> x = torch.arange(32.0).reshape(16, 2).sin()
    >>> round(minibatch_cka(x, 3 * x, batch_size=8), 6)
    1.0
    >>> round(minibatch_cka((part, 3 * part) for part in x.split(8)), 6)
    1.0
    """
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return float(_unbiased(_batches(_checked((x, y), PAIR), batch_size))[0, 1])
    if isinstance(x, Tensor) or y is not None:
        raise FsclError(f"x is {type(x).__name__}, y is {type(y).__name__}; give two tensors, or only batches (x, y)")
    return float(_unbiased(_checked(batch, PAIR) for batch in x)[0, 1])


@torch.no_grad()
def probing_matrix(
    features: Sequence[Tensor], metric: str = "linear_cka", *, batch_size: int = 256, keep: float = 0.99
) -> Tensor:
    """One measure for all pairs of networks: exactly symmetric, exactly 1 on the diagonal.

    What concerns one network alone (centring, decomposition, self terms) is done once for each, so that a float64 copy
    of all features is held, or with `minibatch_cka` of one batch of them.

    Args:
        features: one (n, p_i) for each of N networks, on the same samples.
        metric: "linear_cka", "minibatch_cka", "mean_cca" or "svcca".
        batch_size: of `minibatch_cka`.
        keep: of `svcca`.

    Returns:
        (N, N) in float64.

    Raises:
        FsclError: an unknown metric; no features; as the measure itself.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> probing_matrix([x, x[:, :1], -x])
    tensor([[1.0000, 0.7906, 1.0000],
            [0.7906, 1.0000, 0.7906],
            [1.0000, 0.7906, 1.0000]], dtype=torch.float64)
    """
    if metric not in PROBES:
        raise FsclError(f"unknown metric {metric!r}; known: {', '.join(PROBES)}")
    named = _checked(features, [f"features[{i}]" for i in range(len(features))])
    if metric == "minibatch_cka":
        return _unbiased(_batches(named, batch_size)).fill_diagonal_(1)
    measures: dict[str, tuple[Callable[[Named], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
        "linear_cka": (_unit_covariance, _aligned),
        "mean_cca": (_whole_basis, _correlated),
        "svcca": (partial(_leading_basis, keep=keep), _correlated),
    }
    prepare, compare = measures[metric]
    prepared = list(map(prepare, named))
    matrix = torch.eye(len(prepared), dtype=torch.float64, device=prepared[0].device)
    for i, j in itertools.combinations(range(len(prepared)), 2):
        matrix[i, j] = matrix[j, i] = compare(prepared[i], prepared[j])
    return matrix


def _checked(features: Sequence[Tensor], names: Sequence[str]) -> list[Named]:
    """The features with their names, on one device that has float64."""
    if len(features) != len(names) or not names:
        raise FsclError(f"{len(features)} feature matrices; {len(names) or 'one or more'} would do")
    for name, values in zip(names, features, strict=True):
        if not isinstance(values, Tensor) or values.ndim != 2 or 0 in values.shape or values.is_complex():
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise FsclError(
                f"{name}: {got}; a real tensor (samples, features) would do; flatten convolutions first, such as "
                "x.movedim(1, -1).flatten(0, -2) with positions as samples, or x.mean((2, 3))"
            )
        if len(values) != len(features[0]):
            raise FsclError(f"{name} has {len(values)} samples, {names[0]} has {len(features[0])}; they need the same")
        if not values.isfinite().all():
            raise FsclError(f"{name} holds values that are not finite; leave it out or mend the network")
    device = torch.device("cpu") if features[0].device.type == "mps" else features[0].device
    return [(name, values.detach().to(device)) for name, values in zip(names, features, strict=True)]


def _centred(features: Tensor) -> Tensor:
    """Columns less their means. What that leaves of a constant is rounding, which whitening would blow up: zeroed."""
    exact = features.double()
    centred = exact - exact.mean(0)
    centred[:, centred.abs().amax(0) <= 16 * _EPS * exact.abs().amax(0)] = 0
    return centred


def _varying(named: Named) -> Tensor:
    centred = _centred(named[1])
    if not centred.any():
        raise FsclError(f"{named[0]}: all {len(centred)} samples have the same features; leave it out")
    return centred


def _unit_covariance(named: Named) -> Tensor:
    """Centred features X with |X^T X|_F = 1; n columns in place of more, which leave X X^T as it is."""
    centred = _varying(named)
    if centred.shape[1] > len(centred):
        centred = torch.linalg.qr(centred.mT, mode="r").R.mT
    return centred / torch.linalg.matrix_norm(centred.mT @ centred).sqrt()


def _aligned(x: Tensor, y: Tensor) -> Tensor:
    return (y.mT @ x).square().sum().clamp(0, 1)


def _whole_basis(named: Named) -> Tensor:
    name, (n, p) = named[0], named[1].shape
    if n <= p:
        raise FsclError(
            f"{name}: {n} samples of {p} features make mean CCA 1 whatever they hold; use more than {p} samples, "
            "fewer features (positions as samples, or pooled), svcca or linear_cka"
        )
    return _leading_basis(named, keep=1.0)


def _leading_basis(named: Named, keep: float) -> Tensor:
    """Orthonormal columns: the fewest left singular vectors that hold the share `keep` of the variance."""
    if not 0 < keep <= 1:
        raise FsclError(f"keep is {keep}; a share of the variance above 0 and up to 1 would do, such as 0.99")
    name, features = named
    left, strength, _ = torch.linalg.svd(_varying(named), full_matrices=False)
    rank = int((strength > strength[0] * max(features.shape) * _EPS).sum())
    shares = strength[:rank].square().cumsum(0)
    kept = min(rank, int((shares < keep * shares[-1]).sum()) + 1) if keep < 1 else rank
    if kept >= len(features) - 1:  # centred samples span no more, so any other features lie within
        raise FsclError(
            f"{name}: {kept} directions of {len(features)} samples make CCA 1 whatever they hold; use more than "
            f"{kept + 1} samples, fewer features, a lower keep of svcca, or linear_cka"
        )
    return left[:, :kept]


def _correlated(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.mT @ y).clamp(0, 1).mean()


def _batches(named: Sequence[Named], batch_size: int) -> Iterator[list[Named]]:
    n = len(named[0][1])
    if batch_size < 4 or n < 4:
        raise FsclError(f"batch_size {batch_size} for {n} samples; HSIC_1 needs 4 samples or more in a batch")
    count = min(math.ceil(n / batch_size), n // 4)
    parts = [values.tensor_split(count) for _, values in named]  # of like size: a short last one would be mostly noise
    return ([(name, part[i]) for (name, _), part in zip(named, parts, strict=True)] for i in range(count))


@torch.no_grad()
def _unbiased(batches: Iterable[Sequence[Named]]) -> Tensor:
    """Unbiased CKA of all pairs of networks, from batches of the features of all of them: (N, N)."""
    total, names = torch.zeros(()), [""]
    for batch in batches:
        names, n = [name for name, _ in batch], len(batch[0][1])
        if n < 4:
            raise FsclError(f"a batch of {n} samples; HSIC_1 needs 4 samples or more in a batch")
        # HSIC_1 of two kernels is the inner product of their U-centred forms over n(n-3) (Szekely and Rizzo 2014), so
        # that one matrix product serves all pairs.
        kernels = torch.stack([_u_centred_kernel(features).flatten() for _, features in batch])
        total = total.to(kernels) + kernels @ kernels.mT / (n * (n - 3))
    if total.ndim == 0:
        raise FsclError("no batches; give one or more (x, y) of 4 samples or more")
    own = total.diagonal()
    if not own.all():
        still = names[int((own == 0).nonzero()[0])]
        raise FsclError(f"{still}: all samples of each batch have the same features; leave it out")
    ratio = total / (own[:, None] * own).sqrt()
    return ((ratio + ratio.mT) / 2).clamp(-1, 1)


def _u_centred_kernel(features: Tensor) -> Tensor:
    """The linear kernel (n, n) of (n, p) with its diagonal left out: zero there, rows and columns that sum to zero."""
    n, centred = len(features), _centred(features)  # the mean drops out anyway, but a large one costs precision
    kernel = (centred @ centred.mT).fill_diagonal_(0)
    rows = kernel.sum(1) / (n - 2)
    return kernel.sub_(rows[:, None]).sub_(rows).add_(rows.sum() / (n - 1)).fill_diagonal_(0)
