import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity import (
    PROBES,
    PWCCA,
    SVCCA,
    AlignedCosine,
    LinearCKA,
    MeanCCA,
    MinibatchCKA,
    Procrustes,
    aligned_cosine,
    kept_directions,
    linear_cka,
    mean_cca,
    minibatch_cka,
    procrustes,
    pwcca,
    svcca,
)

FUNCTIONS = {
    LinearCKA: linear_cka,
    Procrustes: procrustes,
    AlignedCosine: aligned_cosine,
    MeanCCA: mean_cca,
    SVCCA: svcca,
    PWCCA: pwcca,
}  # of the scatter; MinibatchCKA depends on the batches
METRICS = [*FUNCTIONS, MinibatchCKA]
of_scatter = pytest.mark.parametrize("metric_class", FUNCTIONS, ids=lambda c: c.__name__)
every = pytest.mark.parametrize("metric_class", METRICS, ids=lambda c: c.__name__)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n: int = 60, p: int = 5, q: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of different strength and mean that share a part of their variance."""
    shared = random(n, 2, seed=9 * seed)
    x = shared @ random(2, p, seed=9 * seed + 1) + random(n, p, seed=9 * seed + 2) * torch.linspace(1, 0.2, p)
    y = shared @ random(2, q, seed=9 * seed + 3) + random(n, q, seed=9 * seed + 4)
    return x + 10 * random(p, seed=9 * seed + 5), y - 3


def updated(metric, x, y, sizes):
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        metric.update(part_x, part_y)
    return metric


def test_every_probe_that_needs_no_distances_of_all_samples_has_a_metric():
    assert {function.__name__ for function in FUNCTIONS.values()} | {"minibatch_cka", "rbf_cka"} == set(PROBES)


# Equality with the functions


@of_scatter
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_metrics_equal_the_function_of_all_samples_for_any_batches_and_merges(metric_class, data):
    p = data.draw(st.integers(1, 6), label="p")
    q = p if metric_class is AlignedCosine else data.draw(st.integers(1, 6), label="q")
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=3, max_size=12), label="sizes")
    sizes.append(max(2, p + q + 1 - sum(sizes)))  # enough for CCA, and for weights of PWCCA that are unique
    n = sum(sizes)
    x, y = related(n, p, q, data.draw(st.integers(0, 10**6), label="seed"))
    parts = [metric_class() for _ in range(data.draw(st.integers(1, 4), label="processes"))]
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        data.draw(st.sampled_from(parts)).update(part_x, part_y)
    total = parts[0]
    for part in parts[1:]:
        total.merge_state(part)
    assert total.num_samples == n
    assert total.compute() == pytest.approx(FUNCTIONS[metric_class](x, y), abs=1e-10)


@given(st.lists(st.integers(4, 20), min_size=1, max_size=6), st.integers(0, 10**6), st.data())
@settings(max_examples=40, deadline=None)
def test_minibatch_cka_equals_the_function_of_the_same_batches_for_any_merges(sizes, seed, data):
    x, y = related(sum(sizes), 3, 4, seed)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    first, second = MinibatchCKA(), MinibatchCKA()
    for batch in batches:
        data.draw(st.sampled_from([first, second])).update(*batch)
    first.merge_state(second)
    assert first.num_samples == sum(sizes)
    assert first.compute() == pytest.approx(minibatch_cka(batches), abs=1e-12)


@of_scatter
def test_fewer_samples_than_features_give_what_the_function_gives(metric_class):
    x, y = related(8, 20, 20)
    metric = updated(metric_class(), x, y, 3)
    if metric_class in (MeanCCA, PWCCA):
        with pytest.raises(FsclError, match=r"x: 8 samples of 20 features make every canonical correlation 1"):
            metric.compute()
    elif metric_class is SVCCA:
        with pytest.raises(FsclError, match=r"x: 7 directions of 8 samples .* lower keep of svcca") as direct:
            svcca(x, y, keep=1)
        metric = updated(SVCCA(keep=1), x, y, 3)
        with pytest.raises(FsclError) as batched:
            metric.compute()
        assert str(batched.value) == str(direct.value)
    else:
        assert metric.compute() == pytest.approx(FUNCTIONS[metric_class](x, y), abs=1e-12)


@of_scatter
def test_metrics_remain_precise_with_means_far_from_zero_and_a_first_batch_far_from_the_means(metric_class):
    x, y = related()
    x, y = x + 1e6, y - 1e6
    x[0] += 1e4
    expected = FUNCTIONS[metric_class](x, y)
    for sizes in (1, 7, 60):
        assert updated(metric_class(), x, y, sizes).compute() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric_class", [MeanCCA, SVCCA])
def test_weak_directions_count_although_their_variance_is_below_the_rounding_of_the_strongest(metric_class):
    x, y = related(400, 4, 3)
    options = {"keep": 1} if metric_class is SVCCA else {}
    scale = torch.tensor([1, 1e-3, 1e-9, 1e-10])  # variances from 1 to 1e-20
    metric = updated(metric_class(**options), x * scale, y, 16)
    assert metric.compute() == pytest.approx(mean_cca(x, y), abs=1e-5)
    dropped = mean_cca(x[:, :2], y), mean_cca(x[:, :3], y)
    assert min(abs(value - mean_cca(x, y)) for value in dropped) > 1e-3


@pytest.mark.parametrize("metric_class", [MeanCCA, PWCCA, SVCCA])
def test_repeated_and_constant_features_add_no_directions_after_many_batches(metric_class):
    options = {"keep": 1} if metric_class is SVCCA else {}
    x, y = related(3000, 3, 2)
    wide = torch.cat([x, x @ random(3, 2), torch.full((3000, 1), 0.1), torch.zeros(3000, 1)], 1)
    function = FUNCTIONS[metric_class]
    assert kept_directions(wide, 1) == 3
    metric = updated(metric_class(**options), wide, y, 1)
    assert metric.compute() == pytest.approx(function(wide, y, **options), abs=1e-9)


# State


@of_scatter
def test_memory_is_bounded_by_the_number_of_features(metric_class):
    x, y = related(5000, 4, 4)
    metric = updated(metric_class(), x[:100], y[:100], 5)
    sizes = []
    for part_x, part_y in zip(x.split(50), y.split(50), strict=True):
        metric.update(part_x, part_y)
        sizes.append(len(pickle.dumps(metric)))
    assert max(sizes[50:]) <= max(sizes[:50])
    assert sum(map(len, metric._statistics.rows)) <= 2 * 9


@every
def test_compute_changes_nothing_and_reset_forgets_all_samples(metric_class):
    x, y = related()
    metric = updated(metric_class(), x[:40], y[:40], 20)
    halfway = metric.compute()
    assert metric.compute() == halfway
    updated(metric, x[40:], y[40:], 10)
    assert metric.compute() == pytest.approx(updated(metric_class(), x, y, [20, 20, 10, 10]).compute(), abs=1e-12)
    metric.reset()
    assert metric.num_samples == 0
    with pytest.raises(FsclError, match=rf"{metric_class.__name__} has no samples; call update\(x, y\)"):
        metric.compute()
    other = random(12, 3), random(12, 3, seed=1)  # other numbers of features
    metric.update(*other)
    assert metric.compute() == updated(metric_class(), *other, 12).compute()


@every
def test_merging_leaves_the_other_metric_as_it_was_and_empty_metrics_change_nothing(metric_class):
    x, y = related()
    first, second = updated(metric_class(), x[:30], y[:30], 10), updated(metric_class(), x[30:], y[30:], 10)
    before = second.compute()
    first.merge_state(metric_class())
    first.merge_state(second)
    updated(first, x, y, 10)
    assert second.compute() == before
    assert second.num_samples == 30
    empty = metric_class()
    empty.merge_state(second)
    updated(empty, x, y, 10)
    assert second.compute() == before


@every
def test_metrics_can_be_pickled_and_copied(metric_class):
    x, y = related()
    metric = updated(metric_class(), x, y, 20)
    for again in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert again.compute() == metric.compute()
        assert repr(again) == repr(metric)


@every
def test_features_are_neither_changed_nor_kept_by_reference_and_carry_no_gradient(metric_class):
    x, y = related()
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    metric = metric_class()
    metric.update(*leaves)
    assert torch.equal(leaves[0], x)
    before = metric.compute()
    with torch.no_grad():
        leaves[0].zero_()
    assert metric.compute() == before
    assert not any(t.requires_grad for t in metric._statistics if isinstance(t, Tensor))


@every
@pytest.mark.parametrize("dtype", [np.float32, np.dtype(">f8"), np.int16])
def test_numpy_arrays_give_what_tensors_give(metric_class, dtype):
    x, y = ((3 * features).numpy().astype(dtype) for features in related())
    x.flags.writeable = False
    expected = metric_class()
    expected.update(*(torch.tensor(values.astype(values.dtype.newbyteorder("="))) for values in (x, y)))
    metric = metric_class()
    metric.update(x, y)
    assert metric.compute() == expected.compute()
    turned = metric_class()
    turned.update(x[::-1], torch.tensor(y.astype("f8")).flip(0))  # both kinds, and negative strides
    assert turned.compute() == pytest.approx(expected.compute(), abs=1e-12)


@every
def test_narrow_dtypes_are_summed_in_float64(metric_class):
    x, y = (features.half() for features in related(400))
    narrow, wide = updated(metric_class(), x, y, 20), updated(metric_class(), x.double(), y.double(), 20)
    assert narrow.compute() == wide.compute()


@every
def test_state_remains_on_the_device_of_the_first_features(metric_class):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    x, y = related()
    metric = metric_class()
    for part_x, part_y in zip(x.split(20), y.split(20), strict=True):
        metric.update(part_x.cuda(), part_y.cuda())
    assert {t.device.type for t in metric._statistics if isinstance(t, Tensor)} == {"cuda"}
    on_cpu = updated(metric_class(), x, y, 20)
    assert metric.compute() == pytest.approx(on_cpu.compute(), abs=1e-10)
    metric.merge_state(on_cpu)
    on_cpu.merge_state(on_cpu)
    assert metric.compute() == pytest.approx(on_cpu.compute(), abs=1e-10)
    assert {t.device.type for t in metric._statistics if isinstance(t, Tensor)} == {"cuda"}


# Options


def test_maps_are_flattened_as_by_the_functions():
    x, y = random(40, 3, 2, 2), random(40, 3, 2, 2, seed=1)
    y += x
    for metric_class, function in FUNCTIONS.items():
        values = []
        for maps in ("positions", "features", "pooled"):
            metric = updated(metric_class(maps=maps), x, y, 8)
            assert metric.compute() == pytest.approx(function(x, y, maps=maps), abs=1e-10)
            values.append(round(metric.compute(), 3))
        assert len(set(values)) == 3
        assert updated(metric_class(maps="positions"), x, y, 8).num_samples == 160


def test_svcca_passes_keep_on():
    x, y = related()
    values = [updated(SVCCA(keep=keep), x, y, 20).compute() for keep in (0.5, 0.9, 1)]
    assert values == [pytest.approx(svcca(x, y, keep=keep), abs=1e-10) for keep in (0.5, 0.9, 1)]
    assert len({round(value, 3) for value in values}) == 3


def test_repr_says_how_much_was_seen_and_which_options_hold():
    assert repr(MeanCCA()) == "MeanCCA(0 samples)"
    assert repr(updated(SVCCA(keep=0.9), *related(), 20)) == "SVCCA(60 samples of 5 and 5 features, keep=0.9)"


# Mistakes


@every
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (random(8, 4), random(8, 5), "x has 4 features, and 5 in earlier batches; .*one layer"),
        (random(8, 5), random(8, 6), "y has 6 features, and 5 in earlier batches"),
        (random(8, 5), random(9, 5), "y has 9 samples, x has 8"),
        (random(8, 5), random(8, 5) / 0, "y holds values that are not finite"),
        (np.full((8, 5), math.nan), np.ones((8, 5)), "x holds values that are not finite"),
        (random(8, 5, 2, 2), random(8, 5), r"x: shape \(8, 5, 2, 2\); say what are samples"),
        (random(8, 5), random(8), r"y: shape \(8,\)"),
        (random(8, 5), [1.0], "y: list"),
        (random(8, 5), np.array([["a"] * 5] * 8), r"y: an array of <U1; real numbers would do"),
        (random(8, 5), np.zeros((8, 5), complex), r"y: .*complex"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_by_name_and_leaves_the_metric_as_it_was(metric_class, x, y, message):
    metric = updated(metric_class(), *related(), 20)
    before = metric.compute()
    with pytest.raises(FsclError, match=message):
        metric.update(x, y)
    assert metric.compute() == before
    assert metric.num_samples == 60


@every
def test_only_metrics_of_one_class_with_equal_options_and_features_are_merged(metric_class):
    metric = updated(metric_class(), *related(), 20)
    stranger = MeanCCA if metric_class is LinearCKA else LinearCKA
    with pytest.raises(FsclError, match=f"{metric_class.__name__} cannot add samples of {stranger.__name__}"):
        metric.merge_state(stranger())
    with pytest.raises(FsclError, match=r"'maps': None} cannot add samples of one with .*'maps': 'pooled'"):
        metric.merge_state(metric_class(maps="pooled"))
    with pytest.raises(FsclError, match="x has 4 features, and 5 in earlier batches"):
        metric.merge_state(updated(metric_class(), *related(p=4, q=4), 20))
    assert metric.num_samples == 60


def test_metrics_of_other_options_are_not_merged():
    with pytest.raises(FsclError, match=r"'keep': 0.99, .* cannot add samples of one with {'keep': 0.9,"):
        SVCCA().merge_state(SVCCA(keep=0.9))


@every
def test_features_that_never_vary_are_refused_by_name(metric_class):
    x = random(12, 3)
    metric = updated(metric_class(), x, torch.full((12, 3), 0.1), 4)
    with pytest.raises(FsclError, match=r"y: all .*samples.* have the same features"):
        metric.compute()


def test_options_are_checked_before_any_batch():
    with pytest.raises(FsclError, match="maps is 'pool'; None, 'positions'"):
        LinearCKA(maps="pool")
    with pytest.raises(FsclError, match="keep is 0"):
        SVCCA(keep=0)


def test_aligned_cosine_refuses_different_numbers_of_channels_at_the_first_batch():
    with pytest.raises(FsclError, match=r"{'x': 3, 'y': 2} columns; channel by channel"):
        AlignedCosine().update(random(8, 3), random(8, 2))


def test_minibatch_cka_refuses_batches_of_fewer_than_4_samples():
    with pytest.raises(FsclError, match="a batch of 3 samples; HSIC_1 needs 4"):
        MinibatchCKA().update(random(3, 2), random(3, 2))


@of_scatter
def test_features_whose_squares_overflow_are_refused_and_smaller_ones_are_precise(metric_class):
    x, y = related()
    for scale in (1e-100, 1e130):
        expected = pytest.approx(FUNCTIONS[metric_class](x, y), abs=1e-9)
        assert updated(metric_class(), scale * x, y, 20).compute() == expected
    with pytest.raises(FsclError, match=r"x has a value of size .*e\+201; squares of up to 1e\+140"):
        metric_class().update(1e200 * x, y)


def test_minibatch_cka_is_right_or_refuses_where_powers_of_features_overflow():
    x, y = related()
    expected = pytest.approx(minibatch_cka(x, y), abs=1e-12)
    assert minibatch_cka(1e70 * x, 1e60 * y) == expected
    with pytest.raises(FsclError, match="x: fourth powers of its features overflow float64"):
        minibatch_cka(1e80 * x, y)
