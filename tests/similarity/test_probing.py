import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity import linear_cka, mean_cca, minibatch_cka, probing_matrix, svcca


def svcca_value(x: Tensor, y: Tensor) -> float:
    return svcca(x, y).similarity


def in_batches(x: Tensor, y: Tensor) -> float:
    return minibatch_cka(x, y, batch_size=16)


MEASURES = [linear_cka, in_batches, mean_cca, svcca_value]
CKAS = [linear_cka, in_batches]
METRICS = ["linear_cka", "minibatch_cka", "mean_cca", "svcca"]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Features (64, 6) and (64, 4) that share some of their variance, in directions of unlike strength."""
    shared = random(64, 3)
    x = shared @ random(3, 6, seed=1) + random(64, 6, seed=2) * torch.tensor([1.0, 1, 0.5, 0.5, 0.2, 0.2])
    return x, shared @ random(3, 4, seed=3) + random(64, 4, seed=4)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=9)).Q


# Identities and invariances


@pytest.mark.parametrize("measure", MEASURES)
def test_symmetric_bounded_and_one_with_itself(measure, pair):
    x, y = pair
    assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-12)
    assert 0.1 < measure(x, y) < 0.95
    assert measure(x, x) == pytest.approx(1, abs=1e-12)
    assert isinstance(measure(x, y), float)


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_shift_and_order_change_nothing(measure, pair):
    x, y = pair
    expected = measure(x, y)
    assert measure(x @ rotation(6), y) == pytest.approx(expected, abs=1e-9)
    assert measure(-30 * x, 1e-4 * y) == pytest.approx(expected, abs=1e-9)
    assert measure(x + 1e3, y - random(4)) == pytest.approx(expected, abs=1e-9)
    if measure is not in_batches:  # the order decides which samples share a batch
        order = torch.randperm(64)
        assert measure(x[order], y[order]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_samples_that_do_not_match_change_everything(measure, pair):
    x, y = pair
    assert measure(x, y) - measure(x, y.flip(0)) > 0.05


def test_invertible_maps_leave_cca_alone(pair):
    x, y = pair
    bent = x @ random(6, 6, seed=7)
    assert mean_cca(bent, y) == pytest.approx(mean_cca(x, y), abs=1e-9)
    for measure in [*CKAS, svcca_value]:
        assert abs(measure(bent, y) - measure(x, y)) > 0.01


# Independent oracles


def test_cka_is_the_alignment_of_centred_kernels(pair):
    x, y = (features.numpy() for features in pair)
    centring = np.eye(64) - 1 / 64
    hsic = {
        (a, b): np.trace(k @ centring @ m @ centring)
        for a, k in enumerate([x @ x.T, y @ y.T])
        for b, m in enumerate([x @ x.T, y @ y.T])
    }
    assert linear_cka(*pair) == pytest.approx(hsic[0, 1] / math.sqrt(hsic[0, 0] * hsic[1, 1]), abs=1e-12)


def test_cka_with_more_features_than_samples_is_that_of_a_rotation_to_fewer():
    x, y = random(12, 3), random(12, 5, seed=1)
    wide = x @ torch.linalg.qr(random(40, 3, seed=2)).Q.T
    assert linear_cka(wide, y) == pytest.approx(linear_cka(x, y), abs=1e-12)


def hsic_1(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, as printed: sums over distinct indices of kernels without diagonals."""
    n, one = len(k), np.ones(len(k))
    k, m = k * (1 - np.eye(n)), m * (1 - np.eye(n))
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
    return total / (n * (n - 3))


@pytest.mark.parametrize("size", [16, 20, 64, 1000])
def test_minibatch_cka_sums_each_term_over_batches_before_the_ratio(pair, size):
    parts = [(x.numpy(), y.numpy()) for x, y in zip(*(f.tensor_split(math.ceil(64 / size)) for f in pair), strict=True)]
    xy, xx, yy = (
        sum(hsic_1(part[a] @ part[a].T, part[b] @ part[b].T) for part in parts) for a, b in [(0, 1), (0, 0), (1, 1)]
    )
    expected = xy / math.sqrt(xx * yy)
    assert minibatch_cka(*pair, batch_size=size) == pytest.approx(expected, abs=1e-10)
    assert minibatch_cka((torch.tensor(x), torch.tensor(y)) for x, y in parts) == pytest.approx(expected, abs=1e-10)


def test_unrelated_features_have_no_minibatch_cka_where_the_full_one_is_biased():
    found = [minibatch_cka(random(32, 50, seed=s), random(32, 50, seed=1000 + s)) for s in range(200)]
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found) / math.sqrt(200))
    assert min(found) < 0
    assert linear_cka(random(32, 50), random(32, 50, seed=1)) > 0.5


def canonical(x: Tensor, y: Tensor) -> np.ndarray:
    """Cosines of the angles between the column spaces of centred features."""
    return np.cos(scipy.linalg.subspace_angles((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()))


def test_cca_is_the_mean_cosine_between_column_spaces(pair):
    assert mean_cca(*pair) == pytest.approx(canonical(*pair).mean(), abs=1e-10)


def test_one_feature_each_is_the_size_of_the_pearson_correlation():
    x, y = random(30, 1), random(30, 1, seed=1)
    r = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert mean_cca(x, y) == pytest.approx(abs(r))
    assert linear_cka(x, y) == pytest.approx(r**2)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99, 1.0])
def test_svcca_is_cca_of_the_leading_principal_components(pair, keep):
    reduced = []
    for features in pair:
        variances, axes = np.linalg.eigh(np.cov(features.numpy(), rowvar=False))
        shares = np.cumsum(variances[::-1]) / variances.sum()
        k = next(k for k in range(1, len(shares) + 1) if shares[k - 1] >= keep - 1e-12)
        reduced.append(features @ torch.tensor(axes[:, ::-1][:, :k].copy()))
    found = svcca(*pair, keep=keep)
    assert (found.kept_x, found.kept_y) == tuple(r.shape[1] for r in reduced)
    assert found.similarity == pytest.approx(canonical(*reduced).mean(), abs=1e-9)


# Hard inputs


@pytest.mark.parametrize("measure", MEASURES)
def test_dead_neurons_and_repeated_ones_do_not_count_as_directions(measure, pair):
    x, y = pair
    dead = torch.cat([x, torch.full((64, 2), 1e3 / 3), torch.zeros(64, 3)], 1)
    assert measure(dead, y) == pytest.approx(measure(x, y), abs=1e-9)
    assert mean_cca(torch.cat([x, x[:, :2] - 3 * x[:, 2:4]], 1), y) == pytest.approx(mean_cca(x, y), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_large_means_and_strides(measure, dtype, pair):
    x, y = pair
    stored = (x + (1e3 if dtype == torch.float32 else 0)).to(dtype)
    scattered = stored.T.contiguous().T
    assert not scattered.is_contiguous()
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-3}[dtype]
    assert measure(scattered, y.to(dtype)) == pytest.approx(measure(x, y), abs=tolerance)
    assert measure(scattered, y.to(dtype)) == pytest.approx(measure(stored.double(), y.to(dtype).double()), abs=1e-12)


def test_no_gradient_is_recorded(pair):
    x, y = pair
    assert not probing_matrix([x.requires_grad_(), y]).requires_grad


# All pairs


@pytest.mark.parametrize("metric", METRICS)
def test_matrix_holds_what_the_measure_says_of_each_pair(metric, pair):
    features = [*pair, random(64, 5, seed=8), random(64, 3, seed=11, dtype=torch.float32)]
    measure = dict(zip(METRICS, MEASURES, strict=True))[metric]
    matrix = probing_matrix(features, metric, batch_size=16)
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 1).all()
    for i in range(4):
        for j in range(i):
            assert matrix[i, j] == pytest.approx(measure(features[i], features[j]), abs=1e-12)


# Mistakes


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (random(8, 2, 3, 3), random(8, 2), r"x: shape \(8, 2, 3, 3\); a real tensor \(samples, features\).*movedim"),
        (random(8, 2), random(8), r"y: shape \(8,\)"),
        (random(8, 2), random(9, 2), "y has 9 samples, x has 8"),
        (random(8, 2), random(8, 2) / 0, "y holds values that are not finite"),
        (torch.full((8, 2), 0.1), random(8, 2), "x: all .*samples.* have the same features"),
    ],
)
def test_features_that_do_not_fit(measure, x, y, message):
    with pytest.raises(FsclError, match=message):
        measure(x, y)


@pytest.mark.parametrize("n", [3, 6])
def test_cca_refuses_what_would_be_one_whatever_the_features(n):
    with pytest.raises(FsclError, match=rf"x: {n} samples of 6 features make mean CCA 1.*more than 6 samples"):
        mean_cca(random(n, 6), random(n, 2, seed=1))
    with pytest.raises(FsclError, match=r"x: 6 directions of 7 samples make CCA 1.*more than 7 samples"):
        mean_cca(random(7, 6), random(7, 2, seed=1))
    with pytest.raises(FsclError, match="x: 19 directions of 20 samples"):
        svcca(random(20, 300), random(20, 2, seed=1), keep=1)
    assert mean_cca(random(8, 6), random(8, 2, seed=1)) < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: svcca(x, x, keep=0), "keep is 0; a share"),
        (
            lambda x: probing_matrix([x], "cka"),
            "'cka'; known: linear_cka, minibatch_cka, mean_cca, svcca",
        ),
        (lambda x: probing_matrix([]), "0 feature matrices; one or more"),
        (lambda x: probing_matrix([x, x[:, 0]]), r"features\[1\]: shape \(8,\)"),
        (lambda x: minibatch_cka(x, x, batch_size=3), "batch_size 3 for 8 samples; HSIC_1 needs 4"),
        (lambda x: minibatch_cka(x[:3], x[:3]), "for 3 samples"),
        (lambda x: minibatch_cka([(x[:3], x[:3])]), "a batch of 3 samples"),
        (lambda x: minibatch_cka([]), "no batches"),
        (lambda x: minibatch_cka([(x,)]), "1 feature matrices; 2 would do"),
        (lambda x: minibatch_cka(x), "x is Tensor, y is NoneType; give two tensors, or only batches"),
        (lambda x: minibatch_cka([(x, x)], x), "x is list, y is Tensor"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(FsclError, match=message):
        call(random(8, 2))
