"""Channels last is used for networks that compute the same with it; a warning names others; trials change nothing."""

import random
import warnings

import numpy as np
import pytest
import torch
from avalanche.models import as_multitask
from avalanche.training import Naive
from torch import nn

from fscl.continual import Acceleration, build_network
from fscl.continual.training.memory_layout import Layout


class Strided(torch.autograd.Function):
    """Fails only in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(len(gradient), -1).view(gradient.shape)


class Net(nn.Module):
    def __init__(self, flatten):
        super().__init__()
        self.conv, self.flat, self.fc = nn.Conv2d(1, 8, 3, stride=2), Flat(flatten), nn.Linear(72, 2)

    def forward(self, x):
        return self.fc(self.flat(self.conv(x).relu()))


class Flat(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.mix = how, nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.how(self, x)


STRIDED = {
    "view": lambda _, x: x.view(x.size(0), -1),
    "view of all": lambda _, x: x.view(-1).view(len(x), -1),
    "view in pieces": lambda _, x: x.view(len(x), 8, 9).view(len(x), -1),
    "view of a transposed map": lambda _, x: x.transpose(1, 2).transpose(1, 2).view(len(x), 72),
    "as_strided": lambda _, x: x.as_strided((len(x), 72), (72, 1)),
    "as_strided with an offset": lambda _, x: torch.stack([x.as_strided((72,), (1,), 72 * i) for i in range(len(x))]),
    "view in the backward pass": lambda self, x: self.mix(Strided.apply(x)).flatten(1),
    "view in training": lambda self, x: x.view(len(x), -1) if self.training else x.flatten(1),
    "view in evaluation": lambda self, x: x.flatten(1) if self.training else x.view(len(x), -1),
    "view after dropout": lambda self, x: nn.functional.dropout(x, 0.3, self.training).view(len(x), -1),
}
PLAIN = {
    "flatten": lambda _, x: x.flatten(1),
    "reshape": lambda _, x: x.reshape(len(x), -1),
    "dropout": lambda self, x: nn.functional.dropout(x, 0.3, self.training).flatten(1),
    "noise": lambda self, x: x.flatten(1) + 0.1 * torch.randn(len(x), 72),
    "noise of numpy and python": lambda _, x: x.flatten(1) * (1 + 0.1 * np.random.rand() + 0.1 * random.random()),  # noqa: NPY002
}


def trained(stream, how, *plugins):
    """The weights after two tasks, the next random numbers, the warnings and the layout hook."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    model = as_multitask(Net(how), "fc")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=16, plugins=list(plugins), evaluator=None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for experience in stream.train_stream[:2]:
            strategy.train(experience)
        strategy.eval(stream.test_stream[:2])
    drawn = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    about = [str(w.message) for w in said if "channels last" in str(w.message)]
    return strategy.model.state_dict(), drawn, about, Layout.of(strategy.model)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("how", STRIDED)
def test_a_network_that_depends_on_strides_is_trained_without_channels_last(stream, how):
    weights, drawn, said, layout = trained(stream, STRIDED[how], Acceleration())
    assert not layout.channels_last
    (line,) = said
    assert line.startswith("Net is trained without channels last, because with this layout it ")
    assert "flatten(1)" in line
    assert "training.channels_last = false" in line
    plain, plainly_drawn, nothing, _ = trained(stream, STRIDED[how], Acceleration(channels_last=False))
    assert same(weights, plain)
    assert drawn == plainly_drawn
    assert nothing == []


@pytest.mark.parametrize("how", PLAIN)
def test_the_trial_of_channels_last_changes_neither_network_nor_random_state(stream, how, monkeypatch):
    weights, drawn, said, layout = trained(stream, PLAIN[how], Acceleration())
    assert layout.channels_last
    assert layout.decided
    assert said == []
    monkeypatch.setattr(Layout, "decide", lambda *_, **__: None)
    untried, drawn_without, _, _ = trained(stream, PLAIN[how], Acceleration())
    assert same(weights, untried)
    assert drawn == drawn_without


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_alone_does_not_turn_off_channels_last(stream, precision):
    *_, said, layout = trained(stream, PLAIN["flatten"], Acceleration(precision))
    assert (layout.channels_last, said) == (True, [])
    *_, said, layout = trained(stream, STRIDED["view"], Acceleration(precision))
    assert (layout.channels_last, len(said)) == (False, 1)


@pytest.mark.parametrize("name", ["convnet", "avalanche:SlimResNet18", "pytorchcv:resnet20_cifar10"])
def test_networks_of_libraries_are_trained_with_channels_last(name, stream):
    network, images = build_network(name, (3, 32, 32), 10), torch.randn(2, 3, 32, 32)
    experience = type("Experience", (), {"dataset": [(x, 0, 0) for x in images]})()
    network.register_forward_pre_hook(Layout())
    layout = Layout.of(network)
    layout.decide(network, experience, "cpu", 1e-3)
    assert layout.channels_last


def test_a_network_that_cannot_be_tried_keeps_channels_last(stream):
    class Uncopied(Net):
        def __deepcopy__(self, memo):
            raise RuntimeError("no")

    network = Uncopied(PLAIN["flatten"])
    network.register_forward_pre_hook(Layout())
    layout = Layout.of(network)
    for dataset in ([], [("text", 0)], [(torch.randn(3), 0, 0)], [(torch.randn(1, 8, 8), 0, 0)]):
        layout.decided = False
        layout.decide(network, type("Experience", (), {"dataset": dataset})(), "cpu", 1e-3)
        assert layout.channels_last
