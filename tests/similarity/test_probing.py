import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity import (
    PROBES,
    aligned_cosine,
    flatten_maps,
    kept_directions,
    linear_cka,
    mean_cca,
    minibatch_cka,
    probing_matrix,
    procrustes,
    pwcca,
    rbf_cka,
    svcca,
)

MEASURES = {
    "linear_cka": linear_cka,
    "rbf_cka": rbf_cka,
    "minibatch_cka": partial(minibatch_cka, batch_size=16),
    "mean_cca": mean_cca,
    "svcca": partial(svcca, keep=0.9),
    "pwcca": pwcca,
    "procrustes": procrustes,
}
Measure = Callable[..., float]
every = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)

# The declared invariances of each measure: to maps of x on the left, of y on the right. `signs` swaps and negates.
ROTATIONS = {"signs", "rotation", "scale", "shift"}
BLIND = dict.fromkeys(MEASURES, (ROTATIONS, ROTATIONS)) | {
    "mean_cca": (ROTATIONS | {"linear"}, ROTATIONS | {"linear"}),
    "pwcca": ({"signs", "scale", "shift"}, ROTATIONS | {"linear"}),
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def related(n: int = 64, p: int = 6, q: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (n, p) and (n, q) that share a part of their variance, in directions of different strength."""
    shared = random(n, 3, seed=5 * seed)
    x = shared @ random(3, p, seed=5 * seed + 1) + random(n, p, seed=5 * seed + 2) * torch.linspace(1, 0.2, p)
    return x, shared @ random(3, q, seed=5 * seed + 3) + random(n, q, seed=5 * seed + 4)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return related()


def mapped(features: Tensor, how: str, seed: int = 9) -> Tensor:
    size = features.shape[1]
    noise = random(size, size, seed=seed)
    if how == "signs":
        return features[:, noise[0].argsort()] * noise[0].sign()
    if how == "rotation":
        return features @ torch.linalg.qr(noise).Q
    if how == "scale":
        return -30 * features
    if how == "shift":
        return features + 5 * noise[0]
    bent = torch.linalg.qr(noise).Q * torch.linspace(0.5, 2, size)
    return features @ bent @ torch.linalg.qr(noise.T).Q


# Identities and invariances


@every
def test_measures_are_bounded_and_1_of_features_with_themselves(measure, pair):
    x, y = pair
    assert isinstance(measure(x, y), float)
    assert 0.1 < measure(x, y) < 0.95
    assert measure(x, x) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_all_measures_except_pwcca_are_symmetric(name, pair):
    x, y = pair
    gap = abs(MEASURES[name](x, y) - MEASURES[name](y, x))
    assert gap > 1e-3 if name == "pwcca" else gap < 1e-12


@pytest.mark.parametrize("how", sorted(ROTATIONS | {"linear"}))
@pytest.mark.parametrize("side", [0, 1], ids=["of_x", "of_y"])
@pytest.mark.parametrize("name", MEASURES)
def test_measures_have_exactly_the_declared_invariances(name, side, how, pair):
    measure, given_features = MEASURES[name], list(pair)
    expected = measure(*given_features)
    given_features[side] = mapped(given_features[side], how)
    gap = abs(measure(*given_features) - expected)
    assert gap < 1e-9 if how in BLIND[name][side] else gap > 1e-3


@pytest.mark.parametrize("name", MEASURES)
@given(
    n=st.integers(24, 40), p=st.integers(1, 8), q=st.integers(1, 8), seed=st.integers(0, 10**6), how=st.data()
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_declared_invariances_hold_for_random_sizes(name, n, p, q, seed, how):
    measure, (x, y) = MEASURES[name], related(n, p, q, seed)
    left, right = (how.draw(st.sampled_from(sorted(blind))) for blind in BLIND[name])
    expected = measure(x, y)
    assert -1 <= expected <= 1
    assert measure(mapped(x, left, seed), mapped(y, right, seed + 1)) == pytest.approx(expected, abs=1e-8)


@every
def test_only_minibatch_cka_depends_on_the_order_of_samples(measure, pair):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    gap = abs(measure(*(features[order] for features in pair)) - measure(*pair))
    assert gap > 1e-4 if measure is MEASURES["minibatch_cka"] else gap < 1e-9
    assert minibatch_cka(*(features[order] for features in pair)) == pytest.approx(minibatch_cka(*pair), abs=1e-9)


@every
def test_measures_change_if_samples_are_permuted_on_one_side(measure, pair):
    x, y = pair
    assert measure(x, y) - measure(x, y.flip(0)) > 0.05


def test_rbf_cka_tends_to_linear_cka_when_wide_and_to_1_when_narrow(pair):
    assert rbf_cka(*pair, bandwidth=1e5) == pytest.approx(linear_cka(*pair), abs=1e-8)
    assert abs(rbf_cka(*pair) - linear_cka(*pair)) > 0.01
    assert rbf_cka(*pair, bandwidth=1e-3) == pytest.approx(1)


def test_minibatch_cka_of_unrelated_features_is_0_where_linear_cka_is_biased():
    found = [minibatch_cka(random(32, 50, seed=s), random(32, 50, seed=1000 + s)) for s in range(200)]
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found) / math.sqrt(200))
    assert min(found) < 0
    assert linear_cka(random(32, 50), random(32, 50, seed=1)) > 0.5


# Independent oracles


def test_cka_agrees_with_ckatorch(pair):
    core = pytest.importorskip("ckatorch.core", reason="ckatorch is no dependency")
    assert linear_cka(*pair) == pytest.approx(core.cka_base(*pair).item(), abs=1e-12)
    # its median includes the distances of samples to themselves; on a grid both medians are equal
    x, y = (torch.randint(0, 3, (40, size), generator=torch.Generator().manual_seed(size)).double() for size in (5, 7))
    y[:, :3] = x[:, :3]
    for features in (x, y):
        gaps = torch.cdist(features, features)
        assert gaps.median() == np.median(scipy.spatial.distance.pdist(features))
    for bandwidth in (0.2, 0.5, 1.0, 3.0):
        expected = core.cka_base(x, y, "rbf", threshold=bandwidth).item()
        assert rbf_cka(x, y, bandwidth=bandwidth) == pytest.approx(expected, abs=1e-9)


def test_linear_cka_agrees_with_rsatoolbox(pair):
    pytest.importorskip("rsatoolbox", reason="rsatoolbox is no dependency")
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    distances = [calc_rdm(Dataset(features.numpy()), method="euclidean") for features in pair]
    assert linear_cka(*pair) == pytest.approx(compare(*distances, method="cosine_cov").item(), abs=1e-12)


def test_mean_cca_agrees_with_statsmodels(pair):
    cancorr = pytest.importorskip("statsmodels.multivariate.cancorr", reason="statsmodels is no dependency")
    x, y = (features.numpy() for features in pair)
    assert mean_cca(*pair) == pytest.approx(cancorr.CanCorr(y, x).cancorr.mean(), abs=1e-10)


def test_procrustes_agrees_with_scipy(pair):
    x, y = pair
    padded = torch.cat([y, torch.zeros(64, 2)], 1)
    disparity = scipy.spatial.procrustes(x.numpy(), padded.numpy())[2]
    assert procrustes(x, y) == pytest.approx(math.sqrt(1 - disparity), abs=1e-12)


@pytest.mark.parametrize("bandwidth", [0.2, 0.5, 2.0])
@pytest.mark.parametrize("n", [63, 64])
def test_rbf_cka_is_the_alignment_of_gaussian_kernels(n, bandwidth):
    features = related(n)
    centring = np.eye(n) - 1 / n
    kernels = []
    for distances in (scipy.spatial.distance.pdist(x) for x in features):
        sigma = bandwidth * np.median(distances)
        kernels.append(centring @ np.exp(-scipy.spatial.distance.squareform(distances**2) / (2 * sigma**2)) @ centring)
    k, m = kernels
    expected = np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert rbf_cka(*features, bandwidth=bandwidth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6), (5, 5)])
def test_pwcca_agrees_with_an_eigenproblem_of_covariances(sizes):
    x, y = related(64, *sizes)
    pooled = np.cov(torch.cat([x, y], 1).numpy(), rowvar=False)
    p = sizes[0]
    xx, xy, yy = pooled[:p, :p], pooled[:p, p:], pooled[p:, p:]
    squares, maps = scipy.linalg.eigh(xy @ np.linalg.solve(yy, xy.T), xx)  # maps^T xx maps = 1: variates of variance 1
    leading = np.argsort(squares)[::-1][: min(sizes)]
    weights = np.abs(xx @ maps[:, leading]).sum(0)  # covariances of every neuron with the variates
    expected = np.average(np.sqrt(squares[leading].clip(0)), weights=weights)
    assert pwcca(x, y) == pytest.approx(expected, abs=1e-9)


def test_cka_and_procrustes_of_wide_features_equal_those_of_a_rotation_to_fewer():
    x, y = random(12, 3), random(12, 5, seed=1)
    wide = x @ torch.linalg.qr(random(40, 3, seed=2)).Q.T
    for measure in (linear_cka, rbf_cka, minibatch_cka, procrustes):
        assert measure(wide, y) == pytest.approx(measure(x, y), abs=1e-12)


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
    batches = [(torch.tensor(x), torch.tensor(y)) for x, y in parts]
    for given_as in (batches, iter(batches), [list(batch) for batch in batches]):
        assert minibatch_cka(given_as) == pytest.approx(expected, abs=1e-10)


def canonical(x: Tensor, y: Tensor) -> np.ndarray:
    """Cosines of the angles between the column spaces of centred features."""
    return np.cos(scipy.linalg.subspace_angles((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()))


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99, 1.0])
def test_svcca_is_cca_of_the_leading_principal_components(pair, keep):
    reduced = []
    for features in pair:
        variances, axes = np.linalg.eigh(np.cov(features.numpy(), rowvar=False))
        shares = np.cumsum(variances[::-1]) / variances.sum()
        k = next(k for k in range(1, len(shares) + 1) if shares[k - 1] >= keep - 1e-12)
        assert kept_directions(features, keep) == k
        reduced.append(features @ torch.tensor(axes[:, ::-1][:, :k].copy()))
    assert svcca(*pair, keep=keep) == pytest.approx(canonical(*reduced).mean(), abs=1e-9)


def test_measures_of_single_features_are_functions_of_the_pearson_correlation():
    x, y = random(30, 1), random(30, 1, seed=1)
    r = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    for measure in (mean_cca, svcca, pwcca, procrustes):
        assert measure(x, y) == pytest.approx(r)
    assert linear_cka(x, y) == pytest.approx(r**2)


# Extreme inputs


@every
def test_measures_ignore_dead_and_constant_neurons(measure, pair):
    x, y = pair
    dead = torch.cat([x[:, :2], torch.full((64, 2), 1e3 / 3), x[:, 2:], torch.zeros(64, 3)], 1)
    assert measure(dead, y) == pytest.approx(measure(x, y), abs=1e-9)
    assert measure(y, dead) == pytest.approx(measure(y, x), abs=1e-9)


def test_repeated_neurons_do_not_add_directions(pair):
    x, y = pair
    assert mean_cca(torch.cat([x, x[:, :2] - 3 * x[:, 2:4]], 1), y) == pytest.approx(mean_cca(x, y), abs=1e-9)
    assert kept_directions(torch.cat([x, x], 1), keep=1) == 6


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_measures_accept_narrow_dtypes_and_strides(measure, dtype, pair):
    x, y = pair
    scattered = x.to(dtype).T.contiguous().T
    assert not scattered.is_contiguous()
    assert measure(scattered, y.to(dtype)) == pytest.approx(measure(x, y), abs=3 * torch.finfo(dtype).eps)
    plain = measure(scattered.contiguous().double(), y.to(dtype).double())
    assert measure(scattered, y.to(dtype)) == pytest.approx(plain, abs=1e-12)


@every
def test_measures_accept_integers(measure, pair):
    x, y = ((3 * features).round() for features in pair)
    for dtype in (torch.int8, torch.int64):
        assert measure(x.to(dtype), y.to(dtype)) == pytest.approx(measure(x, y), abs=1e-12)
    fired = [features > 0 for features in pair]
    assert measure(*fired) == pytest.approx(measure(*(values.double() for values in fired)), abs=1e-12)


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_measures_are_precise_with_large_means(measure, dtype, tolerance, pair):
    x, y = pair
    assert measure((x + 1e3).to(dtype), (y - 1e3).to(dtype)) == pytest.approx(measure(x, y), abs=tolerance)


@pytest.mark.parametrize("name", sorted({*MEASURES} - {"minibatch_cka"}))
@pytest.mark.parametrize("scale", [1e-90, 1e90])
def test_measures_do_not_overflow_for_huge_or_tiny_features(name, scale, pair):
    x, y = pair
    assert MEASURES[name](scale * x, y) == pytest.approx(MEASURES[name](x, y), abs=1e-9)


def test_rbf_cka_is_precise_for_small_distances_beside_a_far_sample():
    x, y = random(30, 3), random(30, 3, seed=1)
    x[0] += 1e9
    kernels = []
    for distances in (scipy.spatial.distance.pdist(features) for features in (x, y)):
        kernel = np.exp(-scipy.spatial.distance.squareform((distances / np.median(distances)) ** 2) * 2)
        kernels.append(kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean())
    expected = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(kernel) for kernel in kernels])
    assert rbf_cka(x, y) == pytest.approx(expected, abs=1e-6)


@every
def test_measures_on_a_gpu_agree_with_the_cpu(measure, pair):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    x, y = pair
    assert measure(x.cuda(), y.cuda()) == pytest.approx(measure(x, y), abs=1e-9)
    matrix = measure([x.cuda(), y.cuda()])
    assert matrix.device.type == "cuda"
    assert torch.allclose(matrix.cpu(), measure([x, y]), atol=1e-9)


@every
def test_measures_record_no_gradient_and_do_not_change_features(measure, pair):
    x, y = (features.clone().requires_grad_() for features in pair)
    assert not measure([x, y]).requires_grad
    assert measure(x, y) == pytest.approx(measure(*pair), abs=1e-12)
    assert torch.equal(x, pair[0])


# All pairs


@pytest.mark.parametrize("metric", MEASURES)
def test_probing_matrix_equals_the_measure_of_each_pair(metric, pair):
    features = [*pair, random(64, 5, seed=8), random(64, 3, seed=11, dtype=torch.float32)]
    measure = MEASURES[metric]
    matrix = measure(features)
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 1).all()
    for i in range(4):
        for j in range(i):
            both = measure(features[i], features[j]), measure(features[j], features[i])
            assert matrix[i, j] == pytest.approx(sum(both) / 2, abs=1e-12)
    for again in (
        measure(tuple(features)),
        measure(iter(features)),
        probing_matrix(features, metric, batch_size=16, keep=0.9),
    ):
        assert torch.allclose(again, matrix, atol=1e-12)


def test_probing_matrix_passes_options_on(pair):
    for metric, measure, option in [
        ("rbf_cka", rbf_cka, {"bandwidth": 2.0}),
        ("minibatch_cka", minibatch_cka, {"batch_size": 8}),
        ("svcca", svcca, {"keep": 0.7}),
    ]:
        found = probing_matrix(pair, metric, **option)[0, 1]
        assert found == pytest.approx(measure(*pair, **option), abs=1e-12)
        assert abs(found - measure(*pair)) > 1e-3


def test_every_probe_is_the_name_of_a_function():
    assert set(PROBES) == {*MEASURES, "aligned_cosine"}  # the last has tests of its own: it needs channels that match


def test_aligned_cosine_is_the_squared_correlation_of_all_centred_values(pair):
    x, y = pair[0][:, :4], pair[1]
    flat = [(f - f.mean(0)).flatten().numpy() for f in (x, y)]
    expected = float(np.dot(*flat) ** 2 / np.dot(flat[0], flat[0]) / np.dot(flat[1], flat[1]))
    assert aligned_cosine(x, y) == pytest.approx(expected, abs=1e-12)
    assert aligned_cosine(x, y) <= procrustes(x, y) ** 2 + 1e-12


def test_aligned_cosine_is_invariant_to_scale_shift_and_a_common_rotation_only(pair):
    x, y = pair[0][:, :4], pair[1]
    expected = aligned_cosine(x, y)
    turn = torch.linalg.qr(random(4, 4, seed=9)).Q
    assert aligned_cosine(-3 * x + 1e3, 1e-3 * y) == pytest.approx(expected, abs=1e-9)
    assert aligned_cosine(x @ turn, y @ turn) == pytest.approx(expected, abs=1e-9)
    assert abs(aligned_cosine(x @ turn, y) - expected) > 1e-3


def test_aligned_cosine_takes_lists_and_refuses_different_numbers_of_channels(pair):
    features = [pair[0][:, :4], pair[1], random(64, 4, seed=8)]
    matrix = aligned_cosine(iter(features))
    assert torch.equal(matrix, probing_matrix(features, "aligned_cosine"))
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 1).all()
    assert matrix[0, 1] == pytest.approx(aligned_cosine(features[0], features[1]), abs=1e-12)
    with pytest.raises(FsclError, match="channel by channel they need the same"):
        aligned_cosine(*pair)


# Maps of convolutions


def test_flatten_maps_by_positions_features_and_pooling():
    x = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    assert torch.equal(flatten_maps(x, "positions")[5], x[0, :, 1, 1])
    assert torch.equal(flatten_maps(x, "positions")[8], x[1, :, 0, 0])
    assert torch.equal(flatten_maps(x, "features")[1, 9], x[1, 1, 0, 1])
    assert flatten_maps(x, "pooled")[1, 2] == x[1, 2].mean()
    assert flatten_maps(x.half(), "pooled").dtype == flatten_maps(x.long(), "pooled").dtype == torch.float32
    matrix = x.flatten(1).half()
    assert flatten_maps(matrix, "pooled") is matrix


@every
@pytest.mark.parametrize("how", ["positions", "features", "pooled"])
def test_measures_flatten_maps_as_requested(measure, how):
    x, y = random(80, 3, 2, 3), random(80, 2, 2, 3, seed=1)
    y += x[:, :2]
    flat = flatten_maps(x, how), flatten_maps(y, how)
    expected = pytest.approx(measure(*flat), abs=1e-12)
    assert measure(x, y, maps=how) == expected
    assert measure(x.to(memory_format=torch.channels_last), y, maps=how) == expected
    assert measure(flat[0], flat[1], maps=how) == expected  # matrices are left as they are
    assert torch.allclose(measure([x, y], maps=how), measure(list(flat)), atol=1e-12)


@pytest.mark.parametrize("metric", MEASURES)
def test_measures_depend_on_how_maps_are_flattened(metric):
    x, y = random(80, 3, 2, 3), random(80, 2, 2, 3, seed=1)
    y += x[:, :2]
    found = [probing_matrix([x, y], metric, maps=how)[0, 1].item() for how in ("positions", "features", "pooled")]
    assert len({round(value, 3) for value in found}) == 3


def test_minibatch_cka_and_kept_directions_accept_maps():
    x, y = random(12, 3, 2, 2), random(12, 2, 2, 2, seed=1)
    batches = zip(x.split(4), y.split(4), strict=True)
    assert minibatch_cka(batches, maps="pooled") == pytest.approx(minibatch_cka(x, y, maps="pooled", batch_size=4))
    assert kept_directions(x, 1, maps="positions") == 3
    assert kept_directions(x, 1, maps="features") == 11


# Mistakes


@every
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            random(8, 2, 3, 3),
            random(8, 2),
            r"x: shape \(8, 2, 3, 3\); .* maps='positions' compares \(72, 2\), maps='features' \(8, 18\), maps='pooled'"
            r" \(8, 2\)",
        ),
        (random(8, 2), random(8), r"y: shape \(8,\); a real tensor \(samples, features\) or \(n, c, h, w\) would do"),
        (random(8, 2), random(8, 2, 3), r"y: shape \(8, 2, 3\)"),
        (random(8, 2), torch.zeros(8, 0), r"y: shape \(8, 0\)"),
        (random(8, 2), torch.zeros(8, 2, dtype=torch.complex64), r"y: shape \(8, 2\) and complex values"),
        (random(8, 2), random(9, 2), "y has 9 samples, x has 8"),
        (random(8, 2), random(8, 2) / 0, "y holds values that are not finite"),
        (torch.full((8, 2), math.nan), random(8, 2), "x holds values that are not finite"),
        (torch.full((8, 2), 0.1), random(8, 2), "x: all .*samples.* have the same features"),
        (random(8, 2), torch.zeros(8, 2), "y: all .*samples.* have the same features"),
    ],
)
def test_features_that_do_not_fit_are_refused_by_name(measure, x, y, message):
    with pytest.raises(FsclError, match=message):
        measure(x, y)
    with pytest.raises(FsclError, match=message.replace("x", r"features\[0\]", 1) if message[0] == "x" else "feat"):
        measure([x, y])


@every
def test_measures_refuse_wrong_types_of_arguments(measure, pair):
    x, y = pair
    with pytest.raises(FsclError, match="x is Tensor, y is NoneType; give two tensors x and y, or one list of tensors"):
        measure(x)
    with pytest.raises(FsclError, match="x is list, y is Tensor"):
        measure([x], y)
    with pytest.raises(FsclError, match="x is ndarray, y is ndarray"):
        measure(x.numpy(), y.numpy())
    with pytest.raises(FsclError, match="x is int"):
        measure(3)
    with pytest.raises(FsclError, match=r"0 feature matrices; one or more|no features and no batches"):
        measure([])
    with pytest.raises(FsclError, match=r"features\[1\]: str"):
        measure([x, "y"])
    with pytest.raises(FsclError, match="maps is 'pool'; None, 'positions', 'features', 'pooled' would do"):
        measure(x, y, maps="pool")


@pytest.mark.parametrize("measure", [mean_cca, pwcca])
@pytest.mark.parametrize("n", [3, 6])
def test_cca_refuses_too_few_samples_that_make_it_1(measure, n):
    with pytest.raises(FsclError, match=rf"x: {n} samples of 6 features make every .* 1 .*more than 6 samples"):
        measure(random(n, 6), random(n, 2, seed=1))
    with pytest.raises(FsclError, match=rf"features\[1\]: {n} samples of 6 features"):
        measure([random(n, 1), random(n, 6)])
    with pytest.raises(FsclError, match=r"x: 6 directions of 7 samples make every .* 1 .*more than 7 samples"):
        measure(random(7, 6), random(7, 2, seed=1))
    assert measure(random(8, 6), random(8, 2, seed=1)) < 1


def test_svcca_refuses_directions_that_span_all_samples():
    with pytest.raises(FsclError, match=r"x: 19 directions of 20 samples make every .* more than 20 samples"):
        svcca(random(20, 300), random(20, 2, seed=1), keep=1)
    assert kept_directions(random(20, 300), keep=1) == 19
    assert svcca(random(20, 300), random(20, 2, seed=1), keep=0.5) < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: svcca(x, x, keep=0), "keep is 0; a share"),
        (lambda x: kept_directions(x, 1.5), "keep is 1.5; a share"),
        (lambda x: rbf_cka(x, x, bandwidth=0), "bandwidth is 0; a finite multiple"),
        (lambda x: rbf_cka(x, x, bandwidth=math.nan), "bandwidth is nan"),
        (lambda x: rbf_cka(x[[0] * 7 + [1]], x), "x: at least half of all pairs of its 8 samples have the same"),
        (lambda x: flatten_maps(x, "pool"), "maps is 'pool'; 'positions', 'features', 'pooled' would do"),
        (lambda x: flatten_maps(x[0], "pooled"), r"features of shape \(2,\)"),
        (
            lambda x: probing_matrix([x], "cka"),
            "'cka'; known: linear_cka, rbf_cka, minibatch_cka, mean_cca, svcca, pwcca, procrustes",
        ),
        (lambda x: probing_matrix([]), "0 feature matrices; one or more"),
        (lambda x: minibatch_cka(x, x, batch_size=3), "batch_size 3 for 8 samples; HSIC_1 needs 4"),
        (lambda x: minibatch_cka(x[:3], x[:3]), "for 3 samples"),
        (lambda x: minibatch_cka([(x[:3], x[:3])]), "a batch of 3 samples"),
        (lambda x: minibatch_cka([(x,)]), r"1 feature matrices; 2 feature matrices would do: \(x, y\)"),
        (lambda x: minibatch_cka([(x, x), 3]), r"int; 2 feature matrices would do: \(x, y\)"),
    ],
)
def test_measures_explain_wrong_options(call, message):
    with pytest.raises(FsclError, match=message):
        call(random(8, 2))
