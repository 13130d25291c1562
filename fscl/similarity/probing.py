"""How alike features are, by the name of the measure: the yardsticks that need data and forward passes.

Every measure takes feature matrices of the same n samples in the same order, (n, p) and (n, q), of any real type, and
works both ways: `f(x, y)` is a float, `f([x1, ..., xN])` the float64 matrix of all pairs, exactly symmetric and exactly
1 on the diagonal, with what concerns one network alone (centring, decomposition) done once for each. A convolution's
features (n, c, h, w) need `maps`, for the answer depends on how they are flattened, see `flatten_maps`. All is computed
in float64 on the device of the features (on the CPU for MPS, which has no float64).
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

    Holds a float64 copy of all features; `rbf_cka` n^2 values for each network, `minibatch_cka` one batch of them all.

    Args:
        features: one (n, p_i) or (n, c_i, h_i, w_i) for each of N networks, on the same samples.
        metric: one of `PROBES`: the functions of these names say what each is.
        maps: how (n, c, h, w) is flattened, see `flatten_maps`.
        bandwidth: of `rbf_cka`.
        batch_size: of `minibatch_cka`.
        keep: of `svcca`.

    Returns:
        (N, N) in float64.

    Raises:
        FsclError: an unknown metric; no features; as the measure itself.

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
    plain = {
        "linear_cka": linear_cka,
        "mean_cca": mean_cca,
        "pwcca": pwcca,
        "procrustes": procrustes,
        "aligned_cosine": aligned_cosine,
    }
    if metric not in plain:
        raise FsclError(f"unknown metric {metric!r}; known: {', '.join(PROBES)}")
    return plain[metric](features, maps=maps)
