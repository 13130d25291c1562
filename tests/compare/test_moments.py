"""Second moments carried through layers, against exact covariances and sampled networks, and their invariances."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fscl.atoms import AtomBank, atom_layers, decompose, freeze_coefficients
from fscl.compare import moment_similarity, moments
from fscl.compare.moment_steps import hermite
from fscl.errors import FsclError
from fscl.similarity import noise_images


def bank_of(model: nn.Module, count: int = 3, amount: float = 0.5, seed: int = 0) -> AtomBank:
    """A bank whose tasks differ from the network in atoms and, if there is any, normalisation."""
    generator = torch.Generator().manual_seed(seed)
    first, bank = copy.deepcopy(model.state_dict()), AtomBank(model)
    for task in range(count):
        for name, value in model.state_dict().items():
            own = name.endswith("atoms") or (value.ndim == 1 and name.endswith(("weight", "bias")))
            step = torch.randn(value.shape, generator=generator, dtype=torch.float64) if own and task else 0
            value.copy_(first[name] + amount * step * first[name].abs().mean().clamp(min=0.2) if own else first[name])
        bank.store(model, task)
    return bank


def network(*modules: nn.Module) -> nn.Module:
    model = decompose(nn.Sequential(*modules).double()).model.eval()
    freeze_coefficients(model)
    return model


def small() -> nn.Module:
    torch.manual_seed(1)
    return network(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1),
    )  # fmt: skip


def spectrum_covariance(side: int, exponent: float) -> np.ndarray:
    """Covariance of pixels of a torus by offset, (side, side), 1 at offset zero: an explicit sum over waves."""
    found = np.zeros((side, side))
    y, x = np.mgrid[:side, :side]
    for row in range(side):
        for column in range(side):
            p, q = (k if k <= side // 2 else k - side for k in (row, column))
            power = max(1, p * p + q * q) ** -exponent  # mean brightness varies as the slowest wave does
            found += power * np.cos(2 * math.pi * (p * y + q * x) / side)
    return found / found[0, 0]


@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("colour", [0.0, 0.7])
@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (3, 1), (1, 2)])
def test_moment_similarity_of_one_layer_is_the_exact_squared_correlation_of_features(
    exponent, colour, groups, dilation
):
    torch.manual_seed(0)
    model = network(nn.Conv2d(3, 6, 3, groups=groups, dilation=dilation))
    bank, side = bank_of(model), 24
    found = moment_similarity(bank, model, (3, side, side), exponent=exponent, colour=colour)
    by_offset = spectrum_covariance(side, exponent)
    places = [(dilation * r, dilation * c) for r in range(3) for c in range(3)]
    pixels = np.array([[by_offset[(a - c) % side, (b - d) % side] for c, d in places] for a, b in places])
    filters = []
    for task in bank.tasks:
        bank.restore(model, task)
        weight = next(iter(atom_layers(model).values())).weight.detach().numpy()  # (6, 3 / groups, 3, 3)
        full = np.zeros((6, 3, 9))
        for out in range(6):
            group = out // (6 // groups)
            full[out, group * (3 // groups) : (group + 1) * (3 // groups)] = weight[out].reshape(3 // groups, 9)
        filters.append(full.reshape(6, 27))
    inputs = np.kron(colour * np.ones((3, 3)) + (1 - colour) * np.eye(3), pixels)
    if groups == 3:  # a group sees one channel alone
        inputs = np.kron(np.eye(3), pixels)
    covariance = np.array([[np.sum((one @ inputs) * other) for other in filters] for one in filters])
    scale = np.sqrt(np.diag(covariance))
    assert found.numpy() == pytest.approx((covariance / np.outer(scale, scale)) ** 2, abs=1e-9)


def test_moment_similarity_of_single_channel_layers_agrees_with_sampled_images():
    torch.manual_seed(3)
    model = network(
        nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 3, stride=2), nn.BatchNorm2d(1), nn.ReLU(),
        nn.Conv2d(1, 1, 2),
    )  # fmt: skip
    images = noise_images(3000, (1, 24, 24)).double()
    bank, kept = AtomBank(model), []
    generator = torch.Generator().manual_seed(5)
    for task in range(3):
        for name, values in model.named_parameters():
            with torch.no_grad():
                if name.endswith("atoms"):
                    values.add_(0.8 * torch.randn(values.shape, generator=generator, dtype=torch.float64))
                elif name in ("1.weight", "4.weight"):
                    values.fill_(0.5 + torch.rand(1, generator=generator).item())
                elif name in ("1.bias", "4.bias"):
                    values.fill_(0.6 * torch.randn(1, generator=generator).item())
        outputs, values = [], images
        with torch.no_grad():
            for module in model:
                if isinstance(module, nn.BatchNorm2d):  # what a trained network would remember of these images
                    module.running_mean.copy_(values.mean((0, 2, 3)))
                    module.running_var.copy_(values.var((0, 2, 3)))
                values = module(values)
                if hasattr(module, "atoms"):
                    outputs.append(values[:, 0, 3:-3, 3:-3].flatten() if values.shape[-1] > 8 else values.flatten())
        kept.append(outputs)
        bank.store(model, task)
    sampled = np.array([np.corrcoef(np.stack([own[layer].numpy() for own in kept])) ** 2 for layer in range(3)])
    found = moment_similarity(bank, model, (1, 24, 24), terms=10, per_layer=True).numpy()
    assert found[0] == pytest.approx(sampled[0], abs=0.01)
    assert found[1] == pytest.approx(sampled[1], abs=0.03)  # exact but for sampling
    assert found[2] == pytest.approx(sampled[2], abs=0.1)  # what enters is no longer normal
    linear = moment_similarity(bank, model, (1, 24, 24), terms=1, per_layer=True).numpy()
    assert abs(found[1] - sampled[1]).sum() < abs(linear[1] - sampled[1]).sum()


def test_hermite_series_gives_the_covariance_of_rectified_normals():
    scale, shift = torch.tensor([1.0, 0.7, 2.0, -1.2]).double(), torch.tensor([0.0, 0.5, -1.5, 0.4]).double()
    coefficients = hermite(scale, shift, 40).numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    values = np.maximum(scale.numpy()[:, None] * nodes + shift.numpy()[:, None], 0)
    variance = (values**2 * weights).sum(1) - (values * weights).sum(1) ** 2
    assert (coefficients**2).sum(0) == pytest.approx(variance, rel=0.02)
    for rho in (-0.9, -0.3, 0.5, 0.95):  # no normalisation: the arc-cosine kernel of Cho and Saul (2009)
        series = sum(rho**k * coefficients[k - 1, 0] ** 2 for k in range(1, 41))
        kernel = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi) - 1 / (2 * math.pi)
        assert series == pytest.approx(kernel, abs=2e-3)


def test_moment_similarity_for_white_images_is_the_squared_cosine_of_atoms():
    torch.manual_seed(0)
    model = network(nn.Conv2d(4, 6, 3))
    bank = bank_of(model)
    found = moment_similarity(bank, model, (4, 16, 16), exponent=0, colour=0)
    assert found.numpy() == pytest.approx(bank.similarity("cosine", "product").double().numpy(), abs=1e-9)


def test_moment_similarity_is_symmetric_bounded_and_does_not_change_the_network():
    model = small().train()
    bank = bank_of(model, 4)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    found = moment_similarity(bank, model, (3, 20, 20), per_layer=True)
    assert found.shape == (3, 4, 4)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.mT)
    assert (found.diagonal(dim1=1, dim2=2) == 1).all()
    assert 0 <= found.min() < found.max() <= 1
    assert torch.equal(moment_similarity(bank, model, (3, 20, 20)), found.mean(0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert not any(m._forward_hooks for m in model.modules())


def test_moment_similarity_is_the_same_in_blocks_of_any_size(monkeypatch):
    model = small()
    bank = bank_of(model, 5)
    whole = moment_similarity(bank, model, (3, 20, 20), per_layer=True)
    monkeypatch.setattr(moments, "BLOCK", 1)
    assert torch.allclose(moment_similarity(bank, model, (3, 20, 20), per_layer=True), whole, atol=1e-12)


def test_moment_similarity_is_invariant_to_gauge_and_scale_of_atoms(monkeypatch):
    model = small()
    bank = bank_of(model)
    found = moment_similarity(bank, model, (3, 20, 20), per_layer=True)
    other, turned = copy.deepcopy(model), []
    for task in bank.tasks:
        bank.restore(other, task)
        state = copy.deepcopy(other.state_dict())
        for place, name in enumerate(bank.layers):
            mixing = torch.randn(9, 9, generator=torch.Generator().manual_seed(place), dtype=torch.float64)
            mixing += 4 * torch.eye(9)
            state[f"{name}.coefficients"] = state[f"{name}.coefficients"] @ torch.linalg.inv(mixing)
            state[f"{name}.atoms"] = torch.einsum("ij,jhw->ihw", mixing, state[f"{name}.atoms"]) * (1 + task)
        turned.append(state)
    other.load_state_dict(turned[0])
    monkeypatch.setattr("fscl.atoms.ownership.freeze_coefficients", lambda model: None)  # else it fixes the gauge
    changed = AtomBank(other)
    for task, state in enumerate(turned):
        other.load_state_dict(state)
        changed.store(other, task)
    assert torch.allclose(moment_similarity(changed, other, (3, 20, 20), per_layer=True), found, atol=1e-9)


@pytest.mark.parametrize(
    ("entry", "same", "moved"),
    [("0.atoms", [], [0, 1, 2]), ("4.atoms", [0], [1, 2]), ("1.weight", [0], [1, 2]), ("5.bias", [0, 1], [2])],
)
def test_moment_similarity_changes_only_from_the_changed_layer_on(entry, same, moved):
    model = small()
    state, bank = copy.deepcopy(model.state_dict()), AtomBank(model)
    bank.store(model, 0)
    generator = torch.Generator().manual_seed(0)
    state[entry] = state[entry] + torch.randn(state[entry].shape, generator=generator, dtype=torch.float64)
    model.load_state_dict(state)
    bank.store(model, 1)
    found = moment_similarity(bank, model, (3, 20, 20), per_layer=True)[:, 0, 1]
    assert (found[same] > 1 - 1e-12).all()
    assert (found[moved] < 1 - 1e-6).all()
    without = moment_similarity(bank, model, (3, 20, 20), per_layer=True, normalisation=False)[:, 0, 1]
    assert bool((without > 1 - 1e-12).all()) == (not entry.endswith("atoms"))


class Split(nn.Module):
    """Two branches after one convolution. They are added or concatenated."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.joined = joined
        self.stem, self.left, self.right = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(8 if joined else 4, 3, 3)

    def forward(self, images):
        stem = self.stem(images).relu_()
        left, right = self.left(stem), self.right(stem)[:, :, 1:-1, 1:-1]
        return self.last(torch.cat([left, right], 1) if self.joined else left + right)


@pytest.mark.parametrize("joined", [True, False])
def test_moment_similarity_after_a_sum_or_concatenation_combines_both_branches(joined):
    model = decompose(Split(joined).double()).model
    freeze_coefficients(model)
    state, bank = copy.deepcopy(model.state_dict()), AtomBank(model)
    bank.store(model, 0)
    generator = torch.Generator().manual_seed(0)
    state["left.atoms"] = torch.randn(state["left.atoms"].shape, generator=generator, dtype=torch.float64)
    model.load_state_dict(state)
    bank.store(model, 1)
    found = dict(zip(bank.layers, moment_similarity(bank, model, (2, 16, 16), per_layer=True)[:, 0, 1], strict=True))
    assert found["stem"] == pytest.approx(1)
    assert found["left"] < found["last"] < 1  # half of what enters the last layer is the same


def test_moment_similarity_orders_layers_as_the_bank_does():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(4, 2, 3), nn.Conv2d(1, 4, 3)

        def forward(self, images, label=0):
            return self.last(self.first(images).relu()) + label

    torch.manual_seed(0)
    model = decompose(Backwards().double()).model
    freeze_coefficients(model)
    bank = AtomBank(model)
    bank.store(model, 0)
    with torch.no_grad():
        model.last.atoms.add_(torch.randn(model.last.atoms.shape))
    bank.store(model, 1)
    found = moment_similarity(bank, model, (1, 9, 9), per_layer=True, call=lambda net, images: net(images, label=1))
    values = dict(zip(bank.layers, found[:, 0, 1].tolist(), strict=True))
    assert values["first"] == pytest.approx(1)
    assert values["last"] < 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (20, 20)}, r"shape is \(20, 20\); \(channels, height, width\)"),
        ({"terms": 0}, "0 terms, exponent 1.0, colour 0.9; at least 1 term"),
        ({"exponent": -1.0}, "exponent -1.0"),
        ({"colour": 1.5}, "colour 1.5.*from 0 to 1"),
    ],
)
def test_moment_similarity_refuses_arguments_out_of_range(arguments, message):
    model = small()
    with pytest.raises(FsclError, match=message):
        moment_similarity(bank_of(model), model, **{"shape": (3, 20, 20)} | arguments)


def test_moment_similarity_refuses_an_empty_bank_and_another_network():
    model = small()
    with pytest.raises(FsclError, match="the bank is empty"):
        moment_similarity(AtomBank(model), model, (3, 20, 20))
    with pytest.raises(FsclError, match="no atom layer '0'; the bank belongs to another network"):
        moment_similarity(bank_of(model), nn.Sequential(nn.Flatten()), (3, 20, 20))
    with pytest.raises(
        FsclError, match=r"does not reach layer '0' by operations that can be followed \(conv.*give a `call`"
    ):
        moment_similarity(bank_of(model), model, (3, 20, 20), call=lambda net, images: None)
