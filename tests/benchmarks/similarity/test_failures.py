"""What is the same function written otherwise, what tells it, and what is told of coefficients that move."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from benchmarks.similarity import failures as module
from benchmarks.similarity.contents import Context
from benchmarks.similarity.failures import units
from benchmarks.similarity.failures_networks import (
    compared,
    of_atoms,
    own_bank,
    permuted,
    refused,
    regauged,
    whole_filters,
)
from benchmarks.similarity.failures_page import part
from benchmarks.similarity.lab import Budget, Task, blank
from fscl.atoms import AtomConv2d, atom_layers, freeze_coefficients
from fscl.errors import FsclError
from fscl.similarity import noise_images

TINY = Budget(images=64, epochs=2, first_epochs=2, batch=16)


@torch.no_grad()
def network(seed: int) -> nn.Module:
    """Untrained, but with normalisation that is not the identity."""
    torch.manual_seed(seed)
    model = blank("plain", 1).eval()
    for module_ in model.modules():
        if isinstance(module_, nn.BatchNorm2d):
            for tensor in (module_.weight, module_.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module_.bias, module_.running_mean):
                tensor.normal_(0, 0.3)
    freeze_coefficients(model)
    return model


@torch.no_grad()
def with_own_atoms(model: nn.Module, by: float) -> nn.Module:
    other = copy.deepcopy(model)
    for layer in atom_layers(other).values():
        layer.atoms += by * layer.atoms.std() * torch.randn_like(layer.atoms)
    return other.eval()


@torch.no_grad()
def test_another_gauge_and_another_order_are_the_same_function():
    model, images = network(0), noise_images(20, (1, 32, 32))
    outputs = model(images)
    for change in (permuted, regauged):
        exact = change(copy.deepcopy(model).double(), 1)(images.double())
        torch.testing.assert_close(exact.float(), outputs, rtol=1e-5, atol=1e-5)
        other = change(model, 1)
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert torch.equal(model(images), outputs), "the network itself is left as it was"
        assert not torch.equal(atom_layers(change(model, 2))["features.4"].coefficients,
                               atom_layers(other)["features.4"].coefficients)  # fmt: skip
    torch.testing.assert_close(permuted(model, 1)(images), outputs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_order_of_channels_with_biases():
    model = nn.Sequential(AtomConv2d(1, 6, 3), nn.ReLU(), AtomConv2d(6, 5, 3), nn.BatchNorm2d(5), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(45, 3)).eval()  # fmt: skip
    model[3].running_mean.normal_()
    images = torch.randn(4, 1, 10, 10)
    torch.testing.assert_close(permuted(model, 0)(images), model(images), rtol=1e-5, atol=1e-5)


def test_a_common_gauge_moves_the_cosine_but_not_the_metric_of_filters():
    model = network(0).double()
    networks = [model, with_own_atoms(model, 0.3), with_own_atoms(model, 1.0)]
    changed = [regauged(one, 5) for one in networks]
    for metric, moves in (("cosine", True), ("filter", False)):
        shift = float((of_atoms(networks, metric) - of_atoms(changed, metric)).abs().max())
        assert shift > 1e-3 if moves else shift < 1e-6, metric
    for layer in atom_layers(changed[0]).values():
        layer.fix_gauge()
    # the gauge that is fixed need not be the first one, but it is one in which the cosine is that of filters
    for layer, other in zip(atom_layers(changed[1]).values(), atom_layers(changed[0]).values(), strict=True):
        layer.fix_gauge()
        torch.testing.assert_close(layer.coefficients, other.coefficients)


def test_what_tells_apart_strangers_and_permuted_networks():
    # in float64, for CCA counts directions in which float32 features are rounding
    model, images = network(0).double(), noise_images(60, (1, 32, 32)).double()
    found = compared([model, copy.deepcopy(model), network(1).double(), permuted(model, 3), regauged(model, 4)], images)
    for matrix in found.values():
        torch.testing.assert_close(matrix, matrix.mT)
        assert matrix[0, 1] == pytest.approx(1, abs=1e-5)
    for place, (cka, stored, filters) in {2: (0, 0, 0), 3: (1, 1, 0), 4: (1, 0, 1)}.items():
        assert (found["cka"][0, place] > 0.999) == cka
        assert (found["cca"][0, place] > 0.999) == cka
        assert (found["stored"][0, place] > 0.999) == stored
        assert (found["filters"][0, place] > 0.999) == filters
        assert (found["joint"][0, place] > 0.999) == filters
        assert (found["related"][0, place] > 0.999) == filters
        assert (found["explained"][0, place] > 0.999) == filters
    assert found["filters"][0, [2, 3]].max() < 0.1
    assert found["related"][0, [2, 3]].max() < 0.2


def test_banks_refuse_other_coefficients():
    model = network(0)
    ours = own_bank(model)
    assert not refused(ours, own_bank(with_own_atoms(model, 1.0)))
    for other in (network(1), permuted(model, 0), regauged(model, 0)):
        assert refused(ours, own_bank(other))
        with pytest.raises(FsclError, match="different coefficients"):
            ours.merge(own_bank(other))


def test_the_cosine_of_whole_filters():
    one, two = [{"a": torch.randn(3, 2, 3, 3), "b": torch.randn(2, 3, 3, 3)} for _ in range(2)]
    cosines = [float(torch.cosine_similarity(one[n].flatten(), two[n].flatten(), dim=0)) for n in "ab"]
    expected = (cosines[0] ** 2 + cosines[0] ** 2 * cosines[1] ** 2) / 2
    assert float(whole_filters([one, two])[0, 1]) == pytest.approx(expected, abs=1e-6)


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
    still, some, most = result["levels"]
    assert still["explained"] == pytest.approx(1, abs=1e-6)
    assert still["joint_explained"] == pytest.approx(1, abs=1e-6)
    for name in ("joint", "filters"):  # with frozen coefficients all three are one
        assert still["ours"][name]["level"] == pytest.approx(still["ours"]["first"]["level"], abs=1e-4)
    assert 1 > some["explained"] > most["explained"] >= most["least_explained"] > 0
    assert most["joint_explained"] > most["explained"]
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_units_are_deterministic(drawn, tmp_path):
    for unit in units(quick=True):
        result = unit.call(Context(None, tmp_path, True))
        assert json.dumps(result) == json.dumps(unit.call(Context(None, tmp_path, True)))


def test_the_unit_of_starts_and_its_page(drawn, tmp_path, rendered):
    result = json.loads(json.dumps(module.starts(Context(None, tmp_path, True))))
    assert result["pairs"]["other start, same task"]["cka"]["n"] == result["tasks"]
    assert sum(kind["cka"]["n"] for kind in result["pairs"].values()) == math.comb(result["networks"], 2)
    assert result["refused"]
    assert result["gauge"]["filter"]["high"] < 1e-6 < result["gauge"]["cosine"]["low"]
    assert result["gauge"]["outputs"]["high"] < 1e-5
    assert result["permuted"]["outputs"]["high"] < 1e-5
    assert result["permuted"]["cka"]["low"] == pytest.approx(1, abs=1e-6)
    assert "metric `filter` moves by" in rendered(part({"failures-starts": result}))


# the page


def spread(mean: float) -> dict:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 4}


def made_up(odd: float = 0.5) -> dict:
    names = ("cka", "cca", "stored", "joint", "filters", "related", "explained", "projected")
    kinds = ("same start, other task", "other start, same task", "other start, other task")
    gauge = ("outputs", "cosine", "level", "filter", "order", "alone", "alone_joint", "alone_cka", "alone_refused")
    ours = {"level": odd, "difference": 0.1, "rho": odd, "rho_cca": 0.3}
    plain = dict.fromkeys(("accuracy", "explained", "least_explained", "joint_explained", "cka", "cca"), odd)
    levels = [{"rate": rate, "times": 1, **plain, "ours": dict.fromkeys(("first", "joint", "filters"), ours)}
              for rate in (0.0, 1.0)]  # fmt: skip
    run = {"networks": 4, "probe": 250, "budget": TINY.to_json(), "levels": levels}
    return {
        "failures-starts": {
            "networks": 6, "starts": 2, "tasks": 3, "budget": TINY.to_json(), "accuracies": [0.5], "probe": 250,
            "pairs": {kind: {name: spread(odd) for name in names} for kind in kinds},
            "across": {"pairs": 9, "order": {"stored": odd, "joint": odd, "filters": 0.1}},
            "refused": True, "permuted": {**{n: spread(odd) for n in (*names, "outputs", "refused")}, "draws": 3},
            "gauge": {**{n: spread(odd) for n in gauge}, "networks": 3, "draws": 3, "level_before": 0.9, "cka": 0.9,
                      "order_before": odd},
        },
        "failures-first-0": {**run, "regime": "first", "seed": 0},
        "failures-first-1": {**run, "regime": "first", "seed": 1},
        "failures-sequence-0": {**run, "regime": "sequence", "seed": 0},
    }  # fmt: skip


@pytest.mark.parametrize("odd", [0.5, math.nan, -1.0])
def test_odd_results_are_shown(rendered, odd):
    text = rendered(part(json.loads(json.dumps(made_up(odd)))))
    assert "nan" not in text
    assert ("undefined" in text) == math.isnan(odd)


@pytest.mark.parametrize("only", ["failures-starts", "failures-first-0", "failures-sequence-0"])
def test_some_of_the_units_make_a_page(rendered, only):
    assert rendered(part({only: made_up()[only]}))


def test_units_have_names_of_their_own():
    for quick in (True, False):
        names = [unit.name for unit in units(quick)]
        assert len(set(names)) == len(names)
        assert all(name.startswith("failures-") for name in names)
