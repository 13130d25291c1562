import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fscl.atoms import AtomConv2d, atom_layers, decompose, recompose
from fscl.errors import FsclError


class Mixed(nn.Module):
    """Every kind of convolution, one of them used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, padding="same", bias=False)
        self.dilated = nn.Conv2d(8, 8, (3, 2), dilation=2, padding=(2, 1))
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.again = self.repeated = nn.Conv2d(8, 8, 3, padding=1)
        self.branches = nn.ModuleDict({"a": self.grouped, "b": nn.Sequential(self.again)})
        self.nothing = None

    def forward(self, x):
        x = self.dilated(torch.relu(self.branches["a"](self.stem(x))))
        return self.repeated(torch.relu(self.again(self.pointwise(x)))).mean((2, 3))


def resnet18():
    from torchvision.models import resnet18

    return resnet18(num_classes=5), torch.randn(2, 3, 32, 32)


def vgg11_bn():
    from torchvision.models import vgg11_bn

    model = vgg11_bn(num_classes=5)
    model.classifier = nn.Linear(512 * 49, 5)  # the stock one is 120 million values, none of them convolutional
    return model, torch.randn(2, 3, 32, 32)


def resnet20():
    from pytorchcv.model_provider import get_model

    return get_model("resnet20_cifar10"), torch.randn(2, 3, 32, 32)


def slim_resnet18():
    from avalanche.models import SlimResNet18

    return SlimResNet18(5), torch.randn(2, 3, 32, 32)


def mixed():
    return Mixed(), torch.randn(2, 3, 16, 16)


NETWORKS = [resnet18, vgg11_bn, resnet20, slim_resnet18, mixed]


@pytest.fixture(params=NETWORKS, ids=lambda build: build.__name__)
def network(request):
    model, x = request.param()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval(), x


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


@torch.no_grad()
def test_a_network_decomposed_into_nine_atoms_gives_the_same_outputs(network):
    model, x = network
    before = copy.deepcopy(model.state_dict())
    result = decompose(model, num_atoms=9)
    expected = model(x)
    assert relative(result.model(x), expected) < 1e-5
    assert result.error < 1e-5
    spatial = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)}
    assert set(result.errors) == set(atom_layers(result.model)) == spatial
    # the original has not changed, and shares nothing with the copy
    assert not atom_layers(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}
    # recompose undoes it
    ordinary = recompose(result.model)
    assert not atom_layers(ordinary)
    assert set(ordinary.state_dict()) == set(model.state_dict())
    assert relative(ordinary(x), expected) < 1e-5


@torch.no_grad()
def test_the_reported_error_of_decompose_falls_with_the_number_of_atoms():
    model, x = mixed()
    worst, outputs = [], []
    for num_atoms in (1, 2, 4, 6, 8):
        result = decompose(model, num_atoms)
        for name, layer in atom_layers(result.model).items():
            conv = model.get_submodule(name)
            assert result.errors[name] == pytest.approx(relative(layer.weight, conv.weight), rel=1e-5, abs=1e-6)
        assert result.error == max(result.errors.values())
        worst.append(result.error)
        outputs.append(relative(result.model(x), model(x)))
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] > 0.01
    assert outputs[-1] > 1e-3


@pytest.mark.parametrize(
    ("kernel", "num_atoms", "expected"),
    [(3, 9, 9), (3, 12, 12), (3, 5, 5), (7, 9, 49), (7, 6, 33), (5, 1, 3), ((1, 3), 9, 9), (2, 4, 4), ((3, 4), 9, 12)],
)
def test_larger_kernels_get_proportionally_more_atoms(kernel, num_atoms, expected):
    model = decompose(nn.Sequential(nn.Conv2d(8, 8, kernel)), num_atoms).model
    assert model[0].num_atoms == expected


def test_decompose_leaves_skipped_modules_and_their_children_as_they_are():
    model, _ = mixed()
    result = decompose(model, skip=("stem",))
    assert type(result.model.stem) is nn.Conv2d
    assert "stem" not in result.errors
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), nn.Conv2d(2, 2, 3))
    assert set(atom_layers(decompose(net, skip=["0"]).model)) == {"1"}
    assert set(atom_layers(decompose(net, skip=["0.1"]).model)) == {"0.0", "1"}
    with pytest.raises(FsclError, match=r"skip names no module 'conv1'; modules: 0, 0\.0, 0\.1, 1"):
        decompose(net, skip=["conv1"])


def test_a_convolution_used_twice_becomes_one_atom_layer():
    result = decompose(mixed()[0])
    model = result.model
    assert isinstance(model.again, AtomConv2d)
    assert model.again is model.repeated is model.branches["b"][0]
    assert model.grouped is model.branches["a"]
    back = recompose(model)
    assert back.again is back.repeated is back.branches["b"][0]
    assert len(list(back.parameters())) == len(list(mixed()[0].parameters()))


def test_decompose_leaves_existing_atom_layers_as_they_are():
    once = decompose(nn.Sequential(nn.Conv2d(2, 4, 3)), 5).model
    again = decompose(once, 9)
    assert again.errors == {}
    assert torch.equal(again.model[0].atoms, once[0].atoms)


class Overriding(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class OverridingInner(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class Renamed(nn.Conv2d):
    """A subclass that changes nothing."""


def test_a_conv2d_subclass_without_a_forward_of_its_own_is_decomposed():
    assert set(decompose(nn.Sequential(Renamed(2, 4, 3))).errors) == {"0"}


def old_norm(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(nn.Conv2d(2, 4, 3))


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (lambda: Overriding(2, 4, 3), "0: Overriding overrides nn.Conv2d's forward; add it to skip"),
        (lambda: OverridingInner(2, 4, 3), "0: OverridingInner overrides"),
        (lambda: nn.LazyConv2d(4, 3), "0: a lazy convolution has no filters yet; run the model once"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), "0: its weight is parametrised"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)), "0: its weight is parametrised"),
        (lambda: old_norm(nn.utils.weight_norm), "0: its weight is parametrised"),
        (lambda: old_norm(nn.utils.spectral_norm), "0: its weight is parametrised"),
        (
            lambda: prune.l1_unstructured(nn.Conv2d(2, 4, 3), "weight", 4),
            "0: its weight is parametrised; remove the parametrisation first, or add it to skip",
        ),
    ],
)
def test_decompose_names_a_convolution_that_cannot_be_replaced(conv, message):
    net = nn.Sequential(conv(), nn.Conv2d(4, 4, 3))
    with pytest.raises(FsclError, match=message):
        decompose(net)


def test_a_convolution_that_cannot_be_replaced_can_be_skipped():
    net = nn.Sequential(Overriding(2, 4, 3), nn.Conv2d(4, 4, 3))
    assert set(decompose(net, skip=["0"]).errors) == {"1"}
    uncopied = nn.Sequential(old_norm(nn.utils.weight_norm), nn.Conv2d(4, 4, 3))
    with pytest.raises(FsclError, match="Sequential cannot be copied"):
        decompose(uncopied, skip=["0"])


def test_decompose_refuses_a_network_without_spatial_convolutions():
    with pytest.raises(FsclError, match="Sequential has no spatial convolutions"):
        decompose(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(FsclError, match=r"use AtomConv2d\.from_conv"):
        decompose(nn.Conv2d(3, 3, 3))
    with pytest.raises(FsclError, match="num_atoms is 0"):
        decompose(nn.Sequential(nn.Conv2d(3, 3, 3)), num_atoms=0)


def test_recompose_turns_a_single_atom_layer_into_a_convolution():
    layer = AtomConv2d(2, 3, 3)
    x = torch.randn(1, 2, 5, 5)
    conv = recompose(layer)
    assert type(conv) is nn.Conv2d
    assert relative(conv(x), layer(x)) < 1e-6


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-25, 1e-15, 1, 1e15, 1e25, 1e37])
def test_relative_errors_of_tiny_and_huge_filters_agree_with_float64(scale):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3))
    with torch.no_grad():
        net[0].weight.mul_(scale)
    for num_atoms in (4, 9):
        result = decompose(net, num_atoms)
        w, v = (m.weight.detach().double().numpy() for m in (net[0], result.model[0]))
        w, v = w / abs(w).max(), v / abs(w).max()
        assert result.error == pytest.approx(np.sqrt(((w - v) ** 2).sum() / (w**2).sum()), rel=1e-6)
        if scale >= 1e-38:  # below, float32 has few digits, and the error says so
            assert (result.error < 0.01) == (num_atoms == 9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_decompose_refuses_non_finite_filters_by_name(value):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        net[1].weight[0, 0, 0, 0] = value
    with pytest.raises(FsclError, match=r"^1: its filters are not all finite"):
        decompose(net)
    assert list(decompose(net, skip=["1"]).errors) == ["0"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3, dtype=torch.complex64)), r"0: its filters are torch\.complex64"),
        (nn.Sequential(nn.Conv2d(1, 4, 3)).to("meta"), "0: its filters are on the meta device, without values"),
    ],
)
def test_decompose_refuses_filters_that_are_not_real_numbers(net, message):
    with pytest.raises(FsclError, match=message):
        decompose(net)
