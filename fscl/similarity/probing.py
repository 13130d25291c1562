"""Measures of feature similarity by name. They need data and forward passes, and are the yardsticks for the others.

Every measure takes feature matrices (n, p) and (n, q) of the same n samples in the same order, of any real type. `f(x,
y)` returns a float. `f([x1, ..., xN])` returns the float64 matrix of all pairs, exactly symmetric and exactly 1 on the
diagonal; centring and decomposition are then done once for each network. A convolution's features (n, c, h, w) need
`maps`, because the result depends on how they are flattened, see `flatten_maps`. All is computed in float64 on the
device of the features (on the CPU for MPS, which has no float64).
"""

from collections.abc import Sequence

from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity.canonical import mean_cca, pwcca, svcca
from fscl.similarity.kernels import aligned_cosine, linear_cka, minibatch_cka, procrustes, rbf_cka
from fscl.similarity.matrices import Maps

__all__ = ["PROBES", "probing_matrix"]

PROBES = ("linear_cka", "rbf_cka", "minibatch_cka", "mean_cca", "svcca", "pwcca", "procrustes", "aligned_cosine")


def probing_matrix(
    features: Sequence[Tensor],
    metric: str = "linear_cka",
    *,
    maps: Maps | None = None,
    bandwidth: float = 0.5,
    batch_size: int = 256,
    keep: float = 0.99,
) -> Tensor:
    """One measure, by name, for all pairs of networks: exactly symmetric, exactly 1 on the diagonal.

    Memory: a float64 copy of all features; but n^2 values for each network for `rbf_cka`, and one batch of all networks
    for `minibatch_cka`.

    Args:
        features: one (n, p_i) or (n, c_i, h_i, w_i) for each of N networks, on the same samples.
        metric: one of `PROBES`. Each is documented in the function of the same name.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.
        bandwidth: for `rbf_cka`.
        batch_size: for `minibatch_cka`.
        keep: for `svcca`.

    Returns:
        (N, N) in float64.

    Raises:
        FsclError: the metric is unknown, or there are no features; and as the measure itself.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> probing_matrix([x, x[:, :1]], "procrustes")
    tensor([[1.0000, 0.7906],
            [0.7906, 1.0000]], dtype=torch.float64)
    """
    if metric == "rbf_cka":
        return rbf_cka(features, bandwidth=bandwidth, maps=maps)
    if metric == "minibatch_cka":
        return minibatch_cka(features, batch_size=batch_size, maps=maps)
    if metric == "svcca":
        return svcca(features, keep=keep, maps=maps)
    without_options = {
        "linear_cka": linear_cka,
        "mean_cca": mean_cca,
        "pwcca": pwcca,
        "procrustes": procrustes,
        "aligned_cosine": aligned_cosine,
    }
    if metric not in without_options:
        raise FsclError(f"unknown metric {metric!r}; known: {', '.join(PROBES)}")
    return without_options[metric](features, maps=maps)
