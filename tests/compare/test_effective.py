"""Weights that a state holds in parts are compared as the module computes with them in evaluation."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from fscl.atoms import decompose
from fscl.compare import joint_decompose
from fscl.compare.effective import effective_state
from fscl.compare.layers import comparable_layers
from fscl.errors import FsclError

pytestmark = pytest.mark.filterwarnings("ignore")  # the older weight norm is deprecated


def trained(module: nn.Module) -> nn.Module:
    """The module after passes and steps of training, which change the vectors of a spectral normalisation."""
    module.train()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, 4, 8, 8)
    for _ in range(3):
        module(x)
    return module.eval()


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruned twice": lambda m: prune.random_unstructured(prune.l1_unstructured(m, "weight", 0.3), "weight", 0.3),
    "pruned in channels": lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0),
    "pruned with its bias": lambda m: prune.random_unstructured(prune.identity(m, "weight"), "bias", 0.5),
    "weight norm by a hook": lambda m: weight_norm(m),
    "weight norm of the inputs": lambda m: weight_norm(m, dim=1),
    "weight norm of all": lambda m: weight_norm(m, dim=None),
    "weight norm": lambda m: parametrizations.weight_norm(m),
    "weight norm as a parametrisation of all": lambda m: parametrizations.weight_norm(m, dim=None),
    "spectral norm by a hook": lambda m: spectral_norm(m),
    "spectral norm": lambda m: parametrizations.spectral_norm(m),
}


def weight_of(module: nn.Module) -> Tensor:
    """The weight that the module computes with; the older hooks compute it in a forward pass."""
    module.eval()(torch.zeros(1, 4, 8, 8))
    return module.weight.detach()


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 4, (5, 3)), nn.ConvTranspose2d(4, 6, 3)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_the_effective_weight_is_the_weight_of_the_module_in_evaluation(kind: str, layer: nn.Module) -> None:
    net = nn.Sequential(nn.ReLU(), trained(KINDS[kind](copy.deepcopy(layer))))
    for state in (net.state_dict(), net):
        found = comparable_layers("net", state)
        assert list(found.filters) == ["1"]
        assert not found.left_out
        torch.testing.assert_close(found.filters["1"], weight_of(net[1]), rtol=1e-5, atol=1e-6)


def test_an_effective_state_has_the_entries_of_the_plain_network() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    names = list(net.state_dict())
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.l1_unstructured(net[4], "weight", 0.5)
    parametrizations.weight_norm(net[2])
    assert sorted(effective_state(net.state_dict())) == sorted(names)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: t.flatten(1).to_sparse_csr(),
        lambda t: torch.quantize_per_tensor(t, 0.02, 3, torch.qint8),
        lambda t: torch.quantize_per_channel(t, torch.rand(6) + 0.01, torch.arange(6), 0, torch.quint8),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.float8_e5m2),
        lambda t: t[:1].expand(6, -1, -1, -1),
        lambda t: t.to(memory_format=torch.channels_last),
    ],
)
def test_sparse_quantised_and_narrow_tensors_keep_their_values(change: Callable[[Tensor], Tensor]) -> None:
    given = change(torch.randn(6, 4, 3, 3))
    expected = given.dequantize() if given.is_quantized else given.to_dense() if given.is_sparse else given.float()
    expected = given.to_dense() if given.layout == torch.sparse_csr else expected
    assert torch.equal(effective_state({"0.weight": given})["0.weight"], expected)


def test_coefficients_and_atoms_are_compared_as_filters() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, (5, 3), groups=2))
    made = decompose(net).model
    found = comparable_layers("net", made.state_dict()).filters
    assert list(found) == ["0", "2"]
    for layer, filters in found.items():
        torch.testing.assert_close(filters, net.get_submodule(layer).weight.detach(), rtol=1e-4, atol=1e-5)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def parametrised() -> nn.Module:
    net = nn.Conv2d(4, 6, 3)
    parametrize.register_parametrization(net, "weight", Halved())
    return net


LEFT_OUT: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "integers": (lambda: {"1.weight": torch.ones(6, 4, 3, 3, dtype=torch.int8)}, "int8 values, whose scale is not"),
    "bytes": (lambda: {"1.weight": torch.ones(6, 4, 3, 3, dtype=torch.uint8)}, "uint8 values, whose scale"),
    "truth values": (lambda: {"1.weight": torch.ones(6, 4, 3, 3, dtype=torch.bool)}, "bool values"),
    "complex": (lambda: {"1.weight": torch.ones(6, 4, 3, 3, dtype=torch.complex64)}, "complex64 values, which are not"),
    "meta": (lambda: {"1.weight": torch.ones(6, 4, 3, 3, device="meta")}, "on the meta device, which holds no values"),
    "three dimensions": (lambda: {"1.weight": torch.ones(6, 4, 3, 3, 3)}, "a convolution of three dimensions"),
    "orthogonal": (
        lambda: nn.Sequential(nn.ReLU(), parametrizations.orthogonal(nn.Conv2d(4, 6, 3))).state_dict(),
        r"its weight is computed by '1\.parametrizations\.weight",
    ),
    "parametrised": (lambda: nn.Sequential(nn.ReLU(), parametrised()).state_dict(), "is computed by '1.param"),
    "fake quantised": (
        lambda: {"1.weight": torch.ones(6, 4, 3, 3), "1.weight_fake_quant.scale": torch.ones(1)},
        r"is computed by '1\.weight_fake_quant\.scale', in an unknown way",
    ),
    "masked beside": (
        lambda: {"1.weight": torch.ones(6, 4, 3, 3), "1.weight_mask": torch.ones(6, 4, 3, 3)},
        r"is computed by '1\.weight_mask'",
    ),
    "a mask of another shape": (
        lambda: {"1.weight_orig": torch.ones(6, 4, 3, 3), "1.weight_mask": torch.ones(6, 4, 1, 1)},
        r"is computed by '1\.weight_",
    ),
    "another name": (lambda: {"1.weight_bar": torch.ones(6, 4, 3, 3)}, r"is computed by '1\.weight_bar'"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_layers_that_cannot_be_compared_are_left_out_by_name(kind: str) -> None:
    make, says = LEFT_OUT[kind]
    plain = {"0.weight": torch.randn(4, 4, 3, 3), "0.bias": torch.zeros(4), "9.weight": torch.randn(4, 4, 1, 1)}
    plain |= {"99.weight": torch.randn(2, 4)}
    found = comparable_layers("net", plain | make())
    assert list(found.filters) == ["0"]
    assert list(found.weights) == ["0", "9"]
    assert list(found.head) == ["99"]
    assert list(found.left_out) == ["1"]
    assert re.search(says, found.left_out["1"].reason)
    assert found.left_out["1"].values >= 6 * 4 * 9
    joint = joint_decompose([plain | make(), plain | make()])
    assert joint.layers == ("0", "9")
    assert list(joint.left_out) == list(joint.refit(names=["1"]).left_out) == ["1"]
    assert joint.pointwise == ("9",)
    with pytest.raises(FsclError, match=r"^net: no layers that can be compared; layer '1': "):
        comparable_layers("net", make())


def test_filter_like_entries_of_unknown_layers_are_left_out_by_name() -> None:
    state = {"0.weight": torch.randn(4, 4, 3, 3), "0.kernel": torch.ones(1, 1, 5, 5), "empty": torch.ones(0, 4, 3, 3)}
    assert list(comparable_layers("net", state).left_out) == ["0.kernel"]


def test_parametrised_weights_can_be_compared_in_a_module_but_not_in_its_state() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), parametrised(), Standardised(6, 4, 3))
    found = comparable_layers("net", net)
    assert list(found.filters) == ["0", "1"]
    torch.testing.assert_close(found.filters["1"], net[1].weight.detach())
    assert found.left_out["2"].reason == "Standardised overrides nn.Conv2d's forward"
    with pytest.raises(FsclError, match="net: 1 is lazy and has no filters yet; run the model once"):
        comparable_layers("net", nn.Sequential(nn.Conv2d(4, 4, 3), nn.LazyConv2d(4, 3)))


def test_computing_weights_of_a_module_in_training_does_not_change_it() -> None:
    net = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), parametrised()).train()
    before = copy.deepcopy(net.state_dict())
    comparable_layers("net", net)
    assert net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@torch.no_grad()
def test_a_bank_of_pruned_networks_stores_their_pruned_weights() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.Flatten(), nn.Linear(256, 2)
        )

    start, nets = build(), []
    for _ in range(2):
        net = copy.deepcopy(start)
        for module in (net[0], net[4]):
            module.weight += 0.1 * torch.randn_like(module.weight)
            prune.l1_unstructured(module, "weight", 0.5)
        nets.append(net.eval())
    joint = joint_decompose([net.state_dict() for net in nets], 18)
    assert joint.layers == ("0", "2")
    bank = joint.bank(build())
    back = decompose(build(), 18).model.eval()
    x = torch.randn(2, 4, 8, 8)
    for task, net in enumerate(nets):
        bank.restore(back, task)
        torch.testing.assert_close(back(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_bank_refuses_integers_in_place_of_weights() -> None:
    states = [{"0.weight": torch.randn(4, 4, 3, 3), "0.bias": torch.zeros(4, dtype=torch.int8)} for _ in range(2)]
    with pytest.raises(FsclError, match=r"^0: entry '0\.bias' holds int8 values, and float32 in Sequential"):
        joint_decompose(states).bank(nn.Sequential(nn.Conv2d(4, 4, 3)), heads=["0.bias"])
