"""A first task's network with tasks to learn from it; and similarities of networks in groups."""

import numpy as np
import pytest

from benchmarks.similarity.grounding.networks import Origin
from benchmarks.similarity.lab import Budget, Images, Task, start
from fscl.similarity import noise_images

TINY = Budget(images=48, epochs=1, first_epochs=2, batch=16)


@pytest.fixture
def first(data) -> Origin:
    source = Images("fmnist", data)
    model, _, reached = start("plain", source.rotated(0, TINY, 0), TINY, 0)
    return Origin(source, TINY, model.eval(), 48, reached, noise_images(16, (1, 32, 32)), probed=30, positions=9)


@pytest.fixture
def tasks(first) -> list[Task]:
    return [first.source.rotated(angle, TINY, place + 1) for place, angle in enumerate((90, 30, 200, 90))]


@pytest.fixture
def groups() -> list[str]:
    return ["a"] * 3 + ["b"] * 4 + ["c"] * 2


@pytest.fixture
def grouped(groups: list[str]) -> np.ndarray:
    """Similarity 1 within a group, and 0 across."""
    return np.equal.outer(np.array(groups), np.array(groups)).astype(float)


@pytest.fixture
def matrices() -> list[np.ndarray]:
    """Symmetric matrices of random numbers, as many networks as there are in the groups."""
    drawn = [np.random.default_rng(seed).random((9, 9)) for seed in range(4)]
    return [matrix + matrix.T for matrix in drawn]
