"""The measures of an accuracy matrix, against values computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fscl.accuracy import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    drop_matrix,
    forgetting,
    forgetting_matrix,
    forward_transfer,
    learning_accuracy,
    seen_accuracy,
)
from fscl.errors import FsclError

NAN = np.nan
# task 0 is best after task 1 (0.9), so its forgetting (0.9 - 0.6) and BWT (0.6 - 0.8) differ
KNOWN = np.array([[0.8, NAN, NAN], [0.9, 0.7, NAN], [0.6, 0.5, 1.0]])


def test_measures_of_a_known_accuracy_matrix() -> None:
    assert average_accuracy(KNOWN) == pytest.approx(0.7)
    assert backward_transfer(KNOWN) == pytest.approx((-0.2 - 0.2) / 2)
    assert forgetting(KNOWN) == pytest.approx((0.3 + 0.2) / 2)
    assert learning_accuracy(KNOWN) == pytest.approx(2.5 / 3)
    np.testing.assert_allclose(seen_accuracy(KNOWN), [0.8, 0.8, 0.7])


def test_forgetting_matrix_has_known_values_and_nan_elsewhere() -> None:
    expected = [[NAN, NAN, NAN], [-0.1, NAN, NAN], [0.3, 0.2, NAN]]
    np.testing.assert_allclose(forgetting_matrix(KNOWN), expected, atol=1e-12)


def test_constant_accuracy_has_no_forgetting_and_no_transfer() -> None:
    constant = np.tile(np.linspace(0.5, 0.9, 6), (6, 1))
    assert backward_transfer(constant) == 0
    assert forgetting(constant) == 0
    assert average_accuracy(constant) == learning_accuracy(constant)
    assert (forgetting_matrix(constant)[np.tril_indices(6, -1)] == 0).all()


def test_measures_ignore_values_above_the_diagonal(rng: np.random.Generator) -> None:
    matrix = rng.uniform(size=(7, 7))
    masked = np.where(np.tri(7, dtype=bool), matrix, NAN)
    for number in (average_accuracy, backward_transfer, forgetting, learning_accuracy):
        assert number(matrix) == number(masked)


def test_forgetting_is_never_below_negative_backward_transfer(rng: np.random.Generator) -> None:
    # because the best accuracy is at least the first one
    for _ in range(20):
        matrix = rng.uniform(size=(5, 5))
        assert forgetting(matrix) >= -backward_transfer(matrix)


def test_forward_transfer_ignores_the_first_task() -> None:
    assert forward_transfer([0.0, 0.6, 0.8], [1.0, 0.4, 0.4]) == pytest.approx(0.3)
    assert forward_transfer([NAN, 0.6], [NAN, 0.4]) == pytest.approx(0.2)


@pytest.mark.parametrize("number", [average_accuracy, learning_accuracy, forgetting_matrix, seen_accuracy])
@pytest.mark.parametrize("shape", [(2, 3), (4,), (0, 1)])
def test_measures_refuse_a_matrix_that_is_not_square(
    number: Callable[[np.ndarray], object], shape: tuple[int, ...]
) -> None:
    with pytest.raises(FsclError, match=r"must be \(T, T\)"):
        number(np.zeros(shape))


@pytest.mark.parametrize("number", [backward_transfer, forgetting])
def test_forgetting_and_backward_transfer_need_two_tasks(number: Callable[[list[list[float]]], float]) -> None:
    with pytest.raises(FsclError, match="at least 2"):
        number([[0.5]])


def test_measures_refuse_missing_values_and_values_out_of_range() -> None:
    with pytest.raises(FsclError, match=r"1 missing value\(s\) on or below its diagonal"):
        average_accuracy([[NAN, 0.5], [0.5, 0.5]])
    with pytest.raises(FsclError, match=r"holds 81\.5; accuracies are fractions"):
        average_accuracy([[81.5, 0.5], [0.5, 0.5]])
    with pytest.raises(FsclError, match="start has 1 missing"):
        forward_transfer([0.5, NAN], [0.5, 0.5])
    with pytest.raises(FsclError, match=r"start has shape \(3,\) and untrained \(2,\)"):
        forward_transfer([0.1, 0.2, 0.3], [0.1, 0.2])
    with pytest.raises(FsclError, match="needs at least 2"):
        forward_transfer([0.1], [0.2])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_drops_add_up_to_the_loss_since_learning():
    rng = np.random.default_rng(0)
    matrix = rng.random((6, 6))
    lost = drop_matrix(matrix)
    assert np.isnan(lost[np.triu_indices(6)]).all()
    for task in range(5):
        assert np.nansum(lost[:, task]) == pytest.approx(matrix[task, task] - matrix[5, task])


def test_incremental_accuracy_is_the_mean_of_seen_accuracies():
    matrix = np.random.default_rng(1).random((4, 4))
    seen = [matrix[t, : t + 1].mean() for t in range(4)]
    assert average_incremental_accuracy(matrix) == pytest.approx(np.mean(seen))
