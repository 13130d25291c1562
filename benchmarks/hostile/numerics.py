"""Filters, networks and matrices with extreme values or an unusual structure."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.hostile.trial import Trial
from fscl.atoms import atom_layers, decompose, freeze_coefficients, recompose
from fscl.compare import joint_decompose
from fscl.similarity import mantel, similarity_matrix

__all__ = ["trials"]

SCALES = (1e-44, 1e-38, 1e-30, 1e-20, 1e-10, 1e10, 1e18, 1e25, 1e30, 1e37)
ODD = (torch.nan, torch.inf, -torch.inf)


def trials(folder: Path, rng: Random, count: int) -> Iterator[Trial]:
    for scale in SCALES:
        yield Trial("decompose: filters of any scale", _decomposing(scale))
        yield Trial("freeze: filters of any scale", _freezing(scale))
        yield Trial("similarity: scale does not matter", _comparing(scale))
    for value in ODD:
        yield Trial("decompose: not finite", _decomposing_odd(value))
        yield Trial("freeze: not finite", _freezing_odd(value))
        yield Trial("joint decomposition: not finite", _joining_odd(value))
        yield Trial("similarity: not finite", _comparing_odd(value))
        yield Trial("correlation: not finite", _correlating(value))
    for name, make in NETWORKS.items():
        yield Trial(f"decompose: {name}", _whole(make))
    for _ in range(count):
        yield Trial("decompose: random layers", _random_layer(rng.random()))


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, bias=False))


def _scaled(scale: float) -> nn.Sequential:
    net = _net()
    with torch.no_grad():
        net[0].weight.mul_(scale)
    return net


def _close(result: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree to 1e-5 of the largest value; float32 has no exact digits below about 4e-38."""
    result, expected = result.detach().double(), expected.detach().double()
    largest = float(expected.abs().max())
    return bool(((result - expected).abs() <= 1e-5 * largest + 4e-38).all())


def _decomposing(scale: float) -> Callable[[], bool]:
    def act() -> bool:
        net = _scaled(scale)
        decomposition = decompose(net)
        layer = atom_layers(decomposition.model)["0"]
        w, v = net[0].weight.detach().double(), layer.weight.detach().double()
        largest = w.abs().max()
        error = float(((w - v) / largest).norm() / (w / largest).norm())
        return _close(layer.weight, net[0].weight) and abs(decomposition.errors["0"] - error) <= 1e-9 + 0.01 * error

    return act


def _freezing(scale: float) -> Callable[[], bool]:
    def act() -> bool:
        model = decompose(_scaled(scale)).model
        before = atom_layers(model)["0"].weight.detach().clone()
        freeze_coefficients(model)
        return _close(atom_layers(model)["0"].weight, before)

    return act


def _comparing(scale: float) -> Callable[[], bool]:
    def act() -> bool:
        torch.manual_seed(1)
        atoms = torch.randn(4, 9, 3, 3, dtype=torch.float64)
        gram = {"0": torch.eye(9, dtype=torch.float64)}
        plain = similarity_matrix({"0": atoms}, grams=gram)
        return torch.allclose(similarity_matrix({"0": atoms * scale}, grams=gram), plain, rtol=0, atol=1e-9)

    return act


def _decomposing_odd(value: float) -> Callable[[], bool]:
    def act() -> bool:
        net = _net()
        with torch.no_grad():
            net[1].weight[0, 0, 0, 0] = value
        decompose(net)
        return False

    return act


def _freezing_odd(value: float) -> Callable[[], bool]:
    def act() -> bool:
        model = decompose(_net()).model
        with torch.no_grad():
            model[0].atoms[0, 0, 0] = value
        freeze_coefficients(model)
        return False

    return act


def _joining_odd(value: float) -> Callable[[], bool]:
    def act() -> bool:
        finite, odd = _net(), _net()
        with torch.no_grad():
            odd[0].weight[0, 0, 0, 0] = value
        joint_decompose([finite, odd])
        return False

    return act


def _comparing_odd(value: float) -> Callable[[], bool]:
    def act() -> bool:
        atoms = torch.randn(3, 9, 3, 3)
        atoms[1, 0, 0, 0] = value
        similarity_matrix({"0": atoms}, grams={"0": torch.eye(9)})
        return False

    return act


def _correlating(value: float) -> Callable[[], bool]:
    def act() -> bool:
        odd, finite = np.random.default_rng(0).normal(size=(2, 8, 8))
        odd[2, 1] = value
        mantel(odd, finite, pairs="lower")
        return False

    return act


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    net[1].weight = net[0].weight
    return net


def _hooked() -> nn.Module:
    net = _net()
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return net


class _Listed(nn.Module):
    def __init__(self, container: Callable[[list[nn.Module]], object]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.order = container([self.first, self.second])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order.values() if isinstance(self.order, dict) else self.order:  # type: ignore[attr-defined]
            x = layer(x)
        return x


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tied weights": _tied,
    "forward hook": _hooked,
    "convolutions in a list": lambda: _Listed(list),
    "convolutions in a tuple": lambda: _Listed(tuple),
    "convolutions in a dict": lambda: _Listed(lambda layers: dict(enumerate(layers))),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 4, 3))),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))),
    "half precision": lambda: _net().half(),
    "double precision": lambda: _net().double(),
    "complex": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, dtype=torch.complex64)),
    "meta device": lambda: _net().to("meta"),
    "all zeros": lambda: _filled(0.0),
    "all equal": lambda: _filled(1.0),
}


def _filled(value: float) -> nn.Module:
    net = _net()
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


def _whole(make: Callable[[], nn.Module]) -> Callable[[], bool]:
    """A decomposed network must give equal outputs and gradients for all atoms, and recompose to equal outputs."""

    def act() -> bool:
        net = make()
        parameter = next(net.parameters())
        x = torch.randn(2, 2, 9, 9).to(parameter.dtype)
        model = decompose(net).model
        recomposed = recompose(model)
        model(x).abs().sum().backward()
        learns = all(layer.atoms.grad is not None for layer in atom_layers(model).values())
        tolerance = 1e-2 if parameter.dtype == torch.float16 else 1e-4
        equal = (torch.allclose(net(x), same(x), rtol=tolerance, atol=tolerance) for same in (model, recomposed))
        return learns and all(equal)

    return act


def _random_layer(seed: float) -> Callable[[], bool]:
    def act() -> bool:
        rng = Random(seed)
        torch.manual_seed(rng.randrange(1000))
        groups = rng.choice((1, 1, 2, 4))
        kernel = rng.choice(((3, 3), (5, 5), (1, 7), (2, 2), (4, 3)))
        padding = rng.choice((0, 1, "same", "valid"))
        stride = 1 if padding == "same" else rng.choice((1, 2, (1, 2)))
        conv = nn.Conv2d(
            4, rng.choice((4, 8)), kernel, stride, padding, rng.choice((1, 2)), groups, rng.random() < 0.5,
            rng.choice(("zeros", "reflect", "replicate", "circular")),
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.mul_(10.0 ** rng.uniform(-20, 15))
        x = torch.randn(1, 4, 17, 17)
        net = nn.Sequential(conv)
        expected, outputs = net(x), decompose(net).model(x)
        return bool((expected - outputs).abs().max() <= 1e-4 * expected.abs().max())

    return act
