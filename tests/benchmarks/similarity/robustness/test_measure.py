"""Probes: what leaves a similarity as it is, and what moves it."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor

from benchmarks.similarity.lab import Budget, Task, learn, start
from benchmarks.similarity.measures import MEASURES, YARDSTICKS
from benchmarks.similarity.robustness import measure as module
from benchmarks.similarity.robustness.measure import moved, probed, units
from benchmarks.similarity.robustness.page import robustness_part
from benchmarks.similarity.robustness.results import Stimuli
from benchmarks.similarity.units import Context
from fscl.atoms import AtomBank
from fscl.errors import FsclError
from fscl.similarity import linear_cka, noise_images

TINY = Budget(images=64, epochs=2, first_epochs=2, batch=16)


class Drawn:
    """In the place of a data set: classes are gratings, and a task's images are these and noise."""

    def __init__(self, name: str, data: str | None) -> None:
        self.name, self.channels = name, 1
        self.train = type("Names", (), {"classes": list(range(10))})

    def rotated(self, degrees: float, budget: Budget, seed: int, name: str | None = None) -> Task:
        images, labels = self._images(budget.images, seed, degrees)
        tests, test_labels = self._images(32, seed + 1000, degrees)
        return Task(name or f"{degrees:.0f}", images, labels, tests, test_labels)

    def probe(self, n: int, seed: int, turns: tuple[float, ...] = (0,), train: bool = False) -> Tensor:
        return self._images(n, seed + 2000, float(turns[0]))[0]

    def _images(self, n: int, seed: int, degrees: float) -> tuple[Tensor, Tensor]:
        labels = torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))
        angle = (labels * 18 + degrees).deg2rad()[:, None, None]
        rows, columns = torch.arange(32.0)[:, None], torch.arange(32.0)
        waves = torch.sin(0.7 * (rows * angle.sin() + columns * angle.cos()))[:, None]
        return waves + 0.3 * noise_images(n, (1, 32, 32), 1.0, seed), labels


@pytest.fixture(scope="module")
def trained() -> tuple[AtomBank, torch.nn.Module]:
    source = Drawn("fmnist", None)
    model, bank, _ = start("plain", source.rotated(0, TINY, 0), TINY, 0)
    for task in range(1, 5):
        learn(model, bank, source.rotated(40.0 * task, TINY, task), TINY, task, begin_from=0)
        bank.store(model, task)
    return bank, model.eval()


def test_a_matrix_against_itself_is_not_moved():
    matrix = torch.rand(6, 6, dtype=torch.float64)
    matrix = matrix + matrix.mT
    low = torch.tril_indices(6, 6, -1)
    same = moved(matrix, matrix)
    assert same.shift == 0
    assert same.rho == pytest.approx(1)
    assert same.level == pytest.approx(float(matrix[low[0], low[1]].mean()))
    reversed_order = moved(1 - 2 * matrix, matrix)
    assert reversed_order.rho == pytest.approx(-1)
    assert reversed_order.shift == pytest.approx(float((1 - 3 * matrix)[low[0], low[1]].abs().mean()))
    assert math.isnan(moved(torch.ones(6, 6), matrix).rho)


@pytest.mark.parametrize("pooled", [False, True])
def test_probes_move_values_and_identical_networks_stay_alike(trained, pooled):
    bank, model = trained
    before = copy.deepcopy(model.state_dict())
    images = Drawn("fmnist", None).probe(100, 0)
    found = probed(bank, model, images, 2000, pooled)
    assert list(found) == list(YARDSTICKS)
    noise = probed(bank, model, noise_images(100, (1, 32, 32), 0.0), 2000, pooled)
    for measure, matrix in found.items():
        torch.testing.assert_close(matrix, matrix.mT)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(5, dtype=torch.float64))
        assert moved(matrix, matrix).shift == 0, measure
        assert moved(noise[measure], matrix).shift > 1e-4, measure
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    twice = AtomBank(model)
    for task in range(2):
        bank.restore(model, 3)
        twice.store(model, task)
    bank.restore(model, 0)
    for matrix in probed(twice, model, images, 2000, pooled).values():
        torch.testing.assert_close(matrix, torch.ones(2, 2, dtype=torch.float64))


def test_the_measure_is_the_mean_over_layers_of_that_of_features(trained):
    from fscl.compare.response import response_features

    bank, model = trained
    images = Drawn("fmnist", None).probe(40, 1)
    features = response_features(bank, model, images, positions=50, seed=7)
    expected = sum(linear_cka(values[1], values[4]) for values in features.values()) / len(features)
    assert float(probed(bank, model, images, 2000, seed=7)["linear_cka"][1, 4]) == pytest.approx(expected, abs=1e-9)


def test_too_few_pooled_images_are_refused_not_reported_as_one(trained):
    with pytest.raises(FsclError, match="canonical correlation 1 for any values"):
        probed(*trained, Drawn("fmnist", None).probe(50, 0), 2000, pooled=True)


def test_what_takes_no_data_moves_by_its_seed_alone(trained):
    bank, model = trained
    reference = probed(bank, model, Drawn("fmnist", None).probe(100, 0), 1000)
    found = module._without_data(bank, model, 1, reference, Stimuli(images=16, steps=2), draws=1)
    assert list(found) == [measure.robustness for measure in MEASURES]
    assert found["cosine"].shift == [0.0]
    assert found["cosine"].rho == pytest.approx([1.0])
    for name in ("tangent", "response"):
        assert found[name].shift[0] > 0
    for values in found.values():
        json.dumps(values.to_json(), allow_nan=False)


@pytest.mark.slow
def test_a_unit_is_deterministic_json_and_makes_a_page(tmp_path, monkeypatch, rendered):
    monkeypatch.setattr(module, "Images", Drawn)
    monkeypatch.setattr(module, "QUICK", TINY)
    (unit,) = units(quick=True)
    result = unit.measure(Context(None, tmp_path, True))
    kept = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert kept == unit.measure(Context(None, tmp_path, True)).to_json()
    assert unit.result.model_validate(kept) == result
    rendered(robustness_part({unit.name: result}))


def test_units_have_names_of_their_own():
    assert [u.name for u in units(True)] == ["robustness-fmnist"]
    assert [u.name for u in units(False)] == ["robustness-fmnist", "robustness-cifar100"]
