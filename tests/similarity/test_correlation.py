import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skbio.stats.distance import mantel as skbio_mantel

from fscl.errors import FsclError
from fscl.similarity import Correlation, correlation, holm, mantel, seed_interval

METHODS = ["spearman", "kendall", "pearson"]
ORACLES = {"spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau, "pearson": scipy.stats.pearsonr}


def square(tasks: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tasks, tasks))


def symmetric(tasks: int, seed: int) -> np.ndarray:
    matrix = square(tasks, seed)
    return matrix + matrix.T


def hollow(matrix: np.ndarray) -> np.ndarray:
    return matrix * (1 - np.eye(len(matrix)))


# The statistic


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pairs", ["all", "lower"])
@settings(deadline=None, max_examples=25)
@given(tasks=st.integers(4, 12), seed=st.integers(0, 10**6), decimals=st.sampled_from([0, 8]))
def test_mantel_statistic_equals_the_plain_correlation_with_ties(method, pairs, tasks, seed, decimals):
    x, y = np.round(symmetric(tasks, seed), decimals), np.round(square(tasks, seed + 1), decimals)
    mask = np.tril(np.ones_like(x), -1) > 0 if pairs == "lower" else ~np.eye(tasks, dtype=bool)
    result = mantel(x, y, method=method, pairs=pairs, n_resamples=9)
    if np.ptp(x[mask]) and np.ptp(y[mask]):
        assert result.statistic == pytest.approx(ORACLES[method](x[mask], y[mask]).statistic, abs=1e-12)
    assert -1 <= result.low <= result.high <= 1 or math.isnan(result.low)
    assert 0 < result.p_value <= 1 or not result.defined


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pairs", ["all", "lower"])
@pytest.mark.parametrize("noise", [0.7, 2.0])
def test_mantel_agrees_with_scikit_bio(method, pairs, noise):
    x = hollow(np.abs(symmetric(9, 0)))
    y = hollow(np.abs(x + noise * hollow(symmetric(9, 1))))
    name = {"kendall": "kendalltau"}.get(method, method)
    statistic, p_value, _ = skbio_mantel(x, y, method=name, permutations=999, seed=0)
    result = mantel(x, y, method=method, pairs=pairs)
    assert result.statistic == pytest.approx(statistic, abs=1e-12)
    assert result.p_value == pytest.approx(p_value, abs=0.04)  # four standard errors of 999 permutations, plus skew


def test_mantel_gives_known_answers():
    x = symmetric(8, 0)
    for method, symbol in zip(METHODS, ["rho", "tau", "r"], strict=True):
        same, opposite = mantel(x, 2 * x + 1, method=method), mantel(x, -x, method=method)
        assert same.statistic == pytest.approx(1)
        assert opposite.statistic == pytest.approx(-1)
        assert same.p_value == pytest.approx(2 / 10_000)
        assert str(same).startswith(f"{symbol} = 1.00 [1.00, 1.00], p = 0.0002, n = 8 tasks")


def test_mantel_with_ranks_depends_only_on_the_order_of_values():
    x, y = symmetric(8, 0), square(8, 1)
    for method in ("spearman", "kendall"):
        assert mantel(x, y, method=method) == mantel(np.exp(x), y**3, method=method)
    assert mantel(x, y, method="pearson").statistic != mantel(np.exp(x), y**3, method="pearson").statistic


@pytest.mark.parametrize("method", METHODS)
def test_mantel_is_invariant_to_relabelling_tasks_in_both_matrices(method):
    x, y = square(6, 0), square(6, 0) + square(6, 1)  # asymmetric; 6! = 720 permutations, so p is exact
    order = [4, 2, 0, 5, 1, 3]
    one, other = mantel(x, y, method=method), mantel(x[order][:, order], y[order][:, order], method=method)
    for field in ("statistic", "p_value", "low", "high"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), abs=1e-12)
    moved = mantel(x[order][:, order], y, method=method)
    assert abs(moved.statistic - one.statistic) > 0.05


def test_mantel_distinguishes_an_asymmetric_matrix_from_its_transpose():
    x = square(8, 0)
    assert mantel(x, x).statistic == pytest.approx(1)
    assert abs(mantel(x, x.T).statistic) < 0.9


def test_mantel_ignores_unused_entries():
    x, y = symmetric(8, 0), square(8, 1)
    expected = mantel(x, y, pairs="lower")
    y[np.triu_indices(8)] = math.nan
    np.fill_diagonal(x, math.inf)
    assert mantel(x, y, pairs="lower") == expected
    assert mantel(torch.from_numpy(x), y.tolist(), pairs="lower") == expected


# The p-value


@pytest.mark.parametrize(("alternative", "expected"), [("greater", 1 / 24), ("less", 1.0), ("two-sided", 2 / 24)])
def test_mantel_p_value_is_exact_with_few_tasks(alternative, expected):
    x = symmetric(4, 0)
    assert mantel(x, x, alternative=alternative, method="pearson").p_value == pytest.approx(expected)


def test_mantel_permutations_depend_on_the_seed_only():
    x, y = symmetric(12, 0), symmetric(12, 1)
    assert mantel(x, y, n_resamples=199) == mantel(x, y, n_resamples=199)
    assert mantel(x, y, n_resamples=199).p_value != mantel(x, y, n_resamples=199, seed=1).p_value


@pytest.mark.parametrize("pairs", ["all", "lower"])
def test_mantel_holds_the_false_positive_rate_when_tasks_have_effects(pairs, monkeypatch):
    """Tasks differ in their overall similarity and forgetting, which makes the entries dependent."""
    monkeypatch.setattr(correlation, "_BOOTSTRAPS", 9)  # of the interval, which is not read
    rng = np.random.default_rng(0)
    rejected = naive = 0
    trials = 400
    for _ in range(trials):
        task_x, task_y = rng.normal(size=(2, 11))
        x, noise = rng.normal(size=(2, 11, 11))
        x, y = x + x.T + 3 * np.add.outer(task_x, task_x), noise + 3 * np.add.outer(task_y, task_y)
        rejected += mantel(x, y, pairs=pairs, n_resamples=199).p_value <= 0.05
        mask = np.tril(np.ones_like(x), -1) > 0
        naive += scipy.stats.spearmanr(x[mask], y[mask]).pvalue <= 0.05
    assert 0.02 < rejected / trials < 0.09  # 0.05 give or take three standard errors
    assert naive / trials > 0.15


# Intervals


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tasks", [9, 20])
def test_mantel_interval_contains_the_statistic_and_narrows_with_its_strength(method, tasks):
    x, noise = symmetric(tasks, 0), square(tasks, 1)
    strong, weak = mantel(x, x + 0.3 * noise, method=method), mantel(x, x + 3 * noise, method=method)
    for result in (strong, weak):
        assert result.low < result.statistic < result.high
    assert strong.low > 0.5
    assert strong.high - strong.low < weak.high - weak.low


def test_mantel_interval_of_few_tasks_is_a_jackknife_over_tasks():
    x, y = symmetric(7, 0), symmetric(7, 0) + 2 * symmetric(7, 1)
    keep = [np.delete(np.arange(7), task) for task in range(7)]
    left_out = [mantel(x[np.ix_(k, k)], y[np.ix_(k, k)], n_resamples=1).statistic for k in keep]
    error = math.sqrt(6 / 7 * np.sum((left_out - np.mean(left_out)) ** 2))
    result = mantel(x, y)
    half = scipy.stats.t.ppf(0.975, 6) * error
    assert result.low == pytest.approx(max(-1, result.statistic - half))
    assert result.high == pytest.approx(min(1, result.statistic + half))


@pytest.mark.parametrize("method", METHODS)
def test_mantel_bootstrap_drops_pairs_of_a_task_with_itself(method):
    """The oracle is a plain loop: draw tasks, take their matrices, drop the pairs of a task with itself."""
    x, y = symmetric(12, 0), symmetric(12, 0) + 2 * square(12, 1)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(600):
        drawn = rng.integers(12, size=12)
        apart = drawn[:, None] != drawn
        draws.append(ORACLES[method](x[np.ix_(drawn, drawn)][apart], y[np.ix_(drawn, drawn)][apart]).statistic)
    result = mantel(x, y, method=method, n_resamples=9)
    assert [result.low, result.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.06)


# Undefined results and wrong arguments


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e-17, -1e9])
def test_mantel_of_a_constant_matrix_is_undefined_and_not_zero(method, offset):
    x = symmetric(8, 0)
    forgetting = offset * (1 + 2e-16 * square(8, 1))
    result = mantel(x, forgetting, method=method, names=("similarity", "forgetting"))
    assert not result.defined
    assert math.isnan(result.statistic)
    assert math.isnan(result.p_value)
    assert str(result) == "undefined (forgetting is constant)"
    both = mantel(np.ones((8, 8)), forgetting, pairs="lower", method=method)
    assert str(both) == "undefined (x and y are constant)"


def test_mantel_judges_constancy_at_the_precision_of_the_given_dtype():
    x, nearly = symmetric(8, 0), 1 + 1e-7 * square(8, 1)
    assert mantel(x, nearly).defined
    assert not mantel(x, torch.from_numpy(nearly).float()).defined
    assert mantel(x, torch.from_numpy(x).bfloat16()).defined
    assert mantel(x, 100 + (x > 0).astype(np.int8)).defined


def test_mantel_interval_does_not_depend_on_the_block_size(monkeypatch):
    x, y = symmetric(12, 0), square(12, 1)
    whole = mantel(x, y, n_resamples=9)
    monkeypatch.setattr(correlation, "_BLOCK_VALUES", 10)
    blocks = mantel(x, y, n_resamples=9)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high))


def test_mantel_of_small_but_varying_similarities_is_defined():
    x = np.abs(symmetric(8, 0))
    assert mantel(1e-12 * x, x, method="pearson").statistic == pytest.approx(1)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (1, "undefined (1 task; at least 4 are needed)"),
        (3, "undefined (3 tasks; at least 4 are needed)"),
        (4, "n = 4 tasks (fewer than 7 tasks: p cannot be below 0.083)"),
        (5, "n = 5 tasks (fewer than 7 tasks: p cannot be below 0.017)"),
    ],
)
def test_mantel_notes_when_there_are_few_tasks(tasks, expected):
    assert str(mantel(symmetric(tasks, 0), symmetric(tasks, 1))).endswith(expected)


def test_mantel_has_no_interval_if_only_one_task_varies():
    y = np.zeros((8, 8))
    y[3] = 1
    result = mantel(symmetric(8, 0), y)
    assert result.defined
    assert math.isnan(result.low)
    assert "[" not in str(result)
    assert "no interval" in result.note


@pytest.mark.parametrize(
    ("x", "y", "arguments", "message"),
    [
        (symmetric(5, 0), symmetric(5, 0), {"method": "cosine"}, "unknown method 'cosine'; known: spearman, kendall"),
        (symmetric(5, 0), symmetric(5, 0), {"pairs": "upper"}, "unknown pairs 'upper'; known: all, lower"),
        (symmetric(5, 0), symmetric(5, 0), {"alternative": "more"}, "unknown alternative 'more'; known: two-sided"),
        (symmetric(5, 0), symmetric(5, 0), {"n_resamples": 0}, "n_resamples is 0"),
        (np.zeros((5, 4)), symmetric(5, 0), {}, r"S has shape \(5, 4\); a task-by-task matrix is square"),
        (symmetric(5, 0), symmetric(6, 0), {}, r"S is \(5, 5\) and F is \(6, 6\)"),
        (square(5, 0), square(5, 1), {"pairs": "lower"}, r"S is not symmetric \(S\[0, 1\] = .*pairs='all'"),
    ],
)
def test_mantel_explains_wrong_arguments(x, y, arguments, message):
    with pytest.raises(FsclError, match=message):
        mantel(x, y, names=("S", "F"), **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("pairs", ["all", "lower"])
def test_mantel_names_a_used_entry_that_is_not_finite(bad, pairs):
    x, y = symmetric(6, 0), square(6, 1)
    y[4, 2] = bad
    with pytest.raises(FsclError, match=rf"forgetting\[4, 2\] is {bad}"):
        mantel(x, y, pairs=pairs, names=("similarity", "forgetting"))
    x[4, 2] = x[2, 4] = bad
    with pytest.raises(FsclError, match=rf"similarity\[\d, \d\] is {bad}"):
        mantel(x, square(6, 1), pairs=pairs, names=("similarity", "forgetting"))


def test_a_correlation_prints_statistic_interval_p_and_n():
    assert (
        str(Correlation(-0.5, 0.25, math.nan, math.nan, 5, "kendall", "few"))
        == "tau = -0.50, p = 0.25, n = 5 tasks (few)"
    )


# Several tests, several seeds


def test_holm_agrees_with_a_calculation_by_hand():
    # Ascending 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.04, 0.03, 0.005]), [0.03, math.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1, 1])
    assert holm([]).shape == (0,)
    with pytest.raises(FsclError, match=r"p-value 1.5 is outside \[0, 1\]"):
        holm([0.1, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values):
    raw, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, raw * len(raw)) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(raw)]) >= 0).all()


def test_seed_interval_agrees_with_the_t_test():
    values = [79.1, 80.4, 78.8, 81.0]
    spread = seed_interval(values)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (spread.low, spread.high) == pytest.approx((low, high))
    assert (spread.mean, spread.std, spread.n) == (pytest.approx(79.825), pytest.approx(np.std(values, ddof=1)), 4)


def test_seed_interval_of_one_seed_has_no_spread():
    spread = seed_interval([0.5])
    assert str(spread) == "0.5 (n=1)"
    assert math.isnan(spread.std)
    assert math.isnan(spread.low)


def test_seed_interval_refuses_no_values_and_nan():
    with pytest.raises(FsclError, match="no values"):
        seed_interval([])
    with pytest.raises(FsclError, match="a seed has value nan"):
        seed_interval([1.0, math.nan])
