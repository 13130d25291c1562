"""Networks that are the same function written otherwise, and what tells them and unrelated networks apart."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.similarity.failures.networks import (
    compared,
    of_atoms,
    own_bank,
    permuted,
    refused,
    regauged,
    whole_filters,
)
from benchmarks.similarity.lab import blank
from fscl.atoms import AtomConv2d, atom_layers, freeze_coefficients
from fscl.errors import FsclError
from fscl.similarity import noise_images


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
    changed = [regauged(network_, 5) for network_ in networks]
    for metric, moves in (("cosine", True), ("filter", False)):
        shift = float((of_atoms(networks, metric) - of_atoms(changed, metric)).abs().max())
        assert shift > 1e-3 if moves else shift < 1e-6, metric
    for layer in atom_layers(changed[0]).values():
        layer.fix_gauge()
    # the gauge that is fixed need not be the first one, but it is one in which the cosine is that of filters
    for layer, other in zip(atom_layers(changed[1]).values(), atom_layers(changed[0]).values(), strict=True):
        layer.fix_gauge()
        torch.testing.assert_close(layer.coefficients, other.coefficients)


def test_unrelated_and_permuted_networks_are_told_apart():
    # in float64, for CCA counts directions in which float32 features are rounding
    model, images = network(0).double(), noise_images(60, (1, 32, 32)).double()
    matrices = compared(
        [model, copy.deepcopy(model), network(1).double(), permuted(model, 3), regauged(model, 4)], images
    )
    for matrix in matrices.values():
        torch.testing.assert_close(matrix, matrix.mT)
        assert matrix[0, 1] == pytest.approx(1, abs=1e-5)
    for place, (cka, stored, filters) in {2: (0, 0, 0), 3: (1, 1, 0), 4: (1, 0, 1)}.items():
        assert (matrices["cka"][0, place] > 0.999) == cka
        assert (matrices["cca"][0, place] > 0.999) == cka
        assert (matrices["stored"][0, place] > 0.999) == stored
        assert (matrices["filters"][0, place] > 0.999) == filters
        assert (matrices["joint"][0, place] > 0.999) == filters
        assert (matrices["related"][0, place] > 0.999) == filters
        assert (matrices["explained"][0, place] > 0.999) == filters
    assert matrices["filters"][0, [2, 3]].max() < 0.1
    assert matrices["related"][0, [2, 3]].max() < 0.2


def test_banks_refuse_other_coefficients():
    model = network(0)
    ours = own_bank(model)
    assert not refused(ours, own_bank(with_own_atoms(model, 1.0)))
    for other in (network(1), permuted(model, 0), regauged(model, 0)):
        assert refused(ours, own_bank(other))
        with pytest.raises(FsclError, match="different coefficients"):
            ours.merge(own_bank(other))


def test_the_cosine_of_whole_filters():
    filters, other = [{"a": torch.randn(3, 2, 3, 3), "b": torch.randn(2, 3, 3, 3)} for _ in range(2)]
    cosines = [float(torch.cosine_similarity(filters[n].flatten(), other[n].flatten(), dim=0)) for n in "ab"]
    expected = (cosines[0] ** 2 + cosines[0] ** 2 * cosines[1] ** 2) / 2
    assert float(whole_filters([filters, other])[0, 1]) == pytest.approx(expected, abs=1e-6)
