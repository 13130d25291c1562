"""The units of the section on failures: what is said of other starts, and of coefficients that move."""

import json
import math

import pytest
import torch

from benchmarks.similarity.failures import measure as module
from benchmarks.similarity.failures.measure import units
from benchmarks.similarity.failures.page import failures_part
from benchmarks.similarity.failures.results import Starts
from benchmarks.similarity.lab import Budget, Task
from benchmarks.similarity.units import Context
from fscl.similarity import noise_images

TINY = Budget(images=64, epochs=2, first_epochs=2, batch=16)


class Drawn:
    """In the place of a data set: images whose labels are the signs of their mean, and noise."""

    def __init__(self, name: str, data: str | None) -> None: ...

    def rotated(self, degrees: float, budget: Budget, seed: int, name: str | None = None) -> Task:
        images = noise_images(budget.images, (1, 32, 32), 1.0, seed + round(degrees))
        labels = (images.mean((1, 2, 3)) > 0).long() + round(degrees) % 3
        return Task(f"{degrees:.0f}", images, labels, images[:20], labels[:20])

    def probe(self, n: int, seed: int, turns: list[float]) -> torch.Tensor:
        return noise_images(n // 8, (1, 32, 32), 1.0, seed)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Images", Drawn)
    monkeypatch.setattr(module, "QUICK", TINY)


@pytest.mark.parametrize("regime", ["first", "sequence"])
def test_the_explained_share_falls_as_coefficients_move(drawn, tmp_path, monkeypatch, regime):
    monkeypatch.setattr(module, "QUICK_LEVELS", ((0.0, 1), (0.5, 1), (2.0, 2)))
    result = module.moved_coefficients(regime, 0, Context(None, tmp_path, True))
    still, some, most = result.levels
    assert still.explained == pytest.approx(1, abs=1e-6)
    assert still.joint_explained == pytest.approx(1, abs=1e-6)
    for name in ("joint", "filters"):  # with frozen coefficients all three are one
        assert still.ours[name].level == pytest.approx(still.ours["first"].level, abs=1e-4)
    assert 1 > some.explained > most.explained >= most.least_explained > 0
    assert most.joint_explained > most.explained
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.slow
def test_units_are_deterministic(drawn, tmp_path):
    for unit in units(quick=True):
        result = unit.measure(Context(None, tmp_path, True))
        assert json.dumps(result.to_json()) == json.dumps(unit.measure(Context(None, tmp_path, True)).to_json())


def test_the_unit_of_starts_and_its_page(drawn, tmp_path, rendered):
    result = Starts.model_validate_json(json.dumps(module.starts(Context(None, tmp_path, True)).to_json()))
    assert result.pairs["other start, same task"].cka.n == result.tasks
    assert sum(kind.cka.n for kind in result.pairs.values()) == math.comb(result.networks, 2)
    assert result.refused
    assert result.gauge.filter.high < 1e-6 < result.gauge.cosine.low
    assert result.gauge.outputs.high < 1e-5
    assert result.permuted.outputs.high < 1e-5
    assert result.permuted.cka.low == pytest.approx(1, abs=1e-6)
    assert "metric `filter` moves by" in rendered(failures_part({"failures-starts": result}))


def test_units_have_names_of_their_own():
    for quick in (True, False):
        names = [unit.name for unit in units(quick)]
        assert len(set(names)) == len(names)
        assert all(name.startswith("failures-") for name in names)
