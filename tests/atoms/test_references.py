"""Where a network holds its convolutions besides the registry: decompose keeps these places or refuses them."""

import copy
import functools
import itertools
import weakref
from collections import deque

import pytest
import torch
from torch import nn

from fscl.atoms import AtomConv2d, atom_layers, decompose, recompose
from fscl.errors import FsclError


class Net(nn.Module):
    """Two convolutions. ``prepare`` adds another place that holds them, ``step`` says where the forward pass looks."""

    def __init__(self, prepare=lambda net: None, step=lambda net: (net.first, net.second)):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)
        self.step = [step]
        prepare(self)

    def forward(self, x):
        for conv in self.step[0](self):
            x = conv(x).relu()
        return self.head(x.mean((2, 3)))


class Plain:
    def __init__(self, conv):
        self.conv = conv


def hidden(net, name, value):
    object.__setattr__(net, name, value)


FOLLOWED = {
    "list": (lambda net: setattr(net, "order", [net.first, net.second]), lambda net: net.order),
    "list in a list": (
        lambda net: setattr(net, "order", [[net.first], [net.second]]),
        lambda net: itertools.chain(*net.order),
    ),
    "dict": (
        lambda net: setattr(net, "by_name", {"a": net.first, "b": net.second}),
        lambda net: net.by_name.values(),
    ),
    "deque": (lambda net: setattr(net, "order", deque([net.first, net.second])), lambda net: net.order),
    "plain attribute": (
        lambda net: (hidden(net, "one", net.first), hidden(net, "two", net.second)),
        lambda net: (net.one, net.two),
    ),
    "list of the registered": (lambda net: setattr(net, "order", [net]), lambda net: (net.first, net.second)),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_convolutions_held_in_a_container_are_replaced_there(kind):
    net, x = Net(*FOLLOWED[kind]), torch.randn(2, 1, 6, 6)
    before = list(vars(net).get("order", []))
    model = decompose(net).model
    assert torch.allclose(model(x), net(x), atol=1e-6)
    model(x).sum().backward()
    assert all(layer.atoms.grad is not None for layer in atom_layers(model).values())
    assert list(vars(net).get("order", [])) == before  # the original is left as it was
    back = recompose(model)
    assert torch.allclose(back(x), net(x), atol=1e-6)
    back(x).sum().backward()
    assert all(p.grad is not None for p in back.parameters())


def closure(net):
    first = net.first
    net.call = lambda x: first(x)


REFUSED = {
    "tuple": lambda net: setattr(net, "order", (net.first, net.second)),
    "set": lambda net: setattr(net, "order", {net.first}),
    "key of a dict": lambda net: setattr(net, "order", {net.first: 1}),
    "object of a class of one's own": lambda net: setattr(net, "order", Plain(net.first)),
    "closure": closure,
    "default of a function": lambda net: setattr(net, "call", lambda x, conv=net.first: conv(x)),
    "partial": lambda net: setattr(net, "call", functools.partial(torch.sequential_of, net.first)),
    "weak reference": lambda net: setattr(net, "order", weakref.ref(net.first)),
    "closure of a hook": lambda net: net.head.register_forward_hook((lambda conv: lambda *_: conv and None)(net.first)),
    "weight in a list": lambda net: setattr(net, "weights", [net.first.weight]),
    "bound method": lambda net: setattr(net, "call", net.first.forward),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_decompose_refuses_convolutions_held_where_they_cannot_be_replaced(kind, monkeypatch):
    monkeypatch.setattr(torch, "sequential_of", print, raising=False)
    net = Net(REFUSED[kind])
    with pytest.raises(FsclError, match=r"(order|call|weights|head\._forward_hooks).* of Net (holds|goes on using)"):
        decompose(net)
    assert not atom_layers(net)
    decompose(Net(), skip=["first"])


HOOKS = {
    "forward": lambda conv: conv.register_forward_hook(lambda module, inputs, output: 3 * output),
    "forward, first": lambda conv: conv.register_forward_hook(lambda m, i, o: o + 1, prepend=True),
    "forward with keywords": lambda conv: conv.register_forward_hook(lambda m, i, k, o: o + 1, with_kwargs=True),
    "before forward": lambda conv: conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,)),
    "before forward with keywords": lambda conv: conv.register_forward_pre_hook(
        lambda m, i, k: ((i[0] + 1,), k), with_kwargs=True
    ),
    "that reads the weight": lambda conv: conv.register_forward_hook(lambda m, i, o: o * m.weight.abs().sum()),
    "always called": lambda conv: conv.register_forward_hook(lambda m, i, o: o - 1, always_call=True),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_decompose_keeps_forward_hooks_of_convolutions(kind):
    net, x = Net().eval(), torch.randn(2, 1, 6, 6)
    plain = net(x)
    HOOKS[kind](net.first)
    assert not torch.allclose(net(x), plain)
    model = decompose(net).model
    assert torch.allclose(model(x), net(x), rtol=1e-4, atol=1e-5)
    assert torch.allclose(recompose(model)(x), net(x), rtol=1e-4, atol=1e-5)


def test_decompose_keeps_backward_hooks_of_convolutions():
    net, x, seen = Net(), torch.randn(2, 1, 6, 6), []
    net.second.register_full_backward_hook(lambda module, inputs, outputs: seen.append(type(module)))
    model = decompose(net).model
    model(x).sum().backward()
    assert seen == [AtomConv2d]


@pytest.mark.parametrize("hook", ["_register_state_dict_hook", "_register_load_state_dict_pre_hook"])
def test_decompose_refuses_state_dict_hooks_of_convolutions(hook):
    net = Net()
    getattr(net.first, hook)(lambda *_: None)
    with pytest.raises(FsclError, match=r"first: has _(load_)?state_dict_(pre_)?hooks"):
        decompose(net)


def test_decompose_keeps_attributes_and_buffers_of_convolutions():
    net = Net()
    net.first.scale = 2.0
    net.first.register_buffer("seen", torch.tensor(3))
    net.first.register_parameter("gain", nn.Parameter(torch.ones(1)))
    net.first.inner = nn.Linear(1, 1)
    model = decompose(net).model
    assert (model.first.scale, int(model.first.seen)) == (2.0, 3)
    assert {"first.gain", "first.inner.weight", "first.seen"} <= model.state_dict().keys()
    assert recompose(model).state_dict().keys() == net.state_dict().keys()
    net.first.num_atoms = 3
    with pytest.raises(FsclError, match="first: has an attribute 'num_atoms', which an atom layer needs"):
        decompose(net)


def tied_weights(net):
    net.third = nn.Conv2d(8, 8, 3, padding=1)
    net.third.weight = net.second.weight


def tied_biases(net):
    net.third = nn.Conv2d(8, 8, 3, padding=1)
    net.third.bias = net.second.bias


def tied_bias_of_a_head(net):
    net.other = nn.Linear(8, 2)
    net.other.bias = net.head.bias


@pytest.mark.parametrize("tie", [tied_weights, tied_biases, tied_bias_of_a_head])
def test_tied_parameters_stay_tied_through_decompose_and_recompose(tie):
    net = Net(tie)
    model = decompose(net).model

    def ties(network):
        return sum(1 for _ in network.named_parameters(remove_duplicate=False)) - sum(1 for _ in network.parameters())

    assert ties(net) == 1
    assert ties(model) == 1 + (tie is tied_weights)  # coefficients and atoms
    assert ties(recompose(model)) == 1
    if tie is tied_weights:
        assert model.third.atoms is model.second.atoms
        assert model.third.coefficients is model.second.coefficients


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (
            lambda net: setattr(net, "up", tied(nn.ConvTranspose2d(8, 8, 3), net.second)),
            "second: up.weight is the same",
        ),
        (lambda net: setattr(net, "kernel", net.second.weight), "second: kernel is the same parameter as its weight"),
        (lambda net: setattr(net, "parts", nn.ParameterList([net.second.weight])), r"second: parts\.0 is the same"),
        (lambda net: setattr(net, "alias", nn.Parameter(net.second.weight.data)), "second: .*alias.*two parameters in"),
    ],
)
def test_decompose_refuses_a_weight_that_another_kind_of_module_uses(tie, message):
    with pytest.raises(FsclError, match=message):
        decompose(Net(tie))


def tied(module, other):
    module.weight = other.weight
    return module


def test_decompose_refuses_a_convolution_whose_forward_was_replaced():
    net = Net()
    net.first.forward = lambda x: x
    with pytest.raises(FsclError, match=r"first: Conv2d overrides nn\.Conv2d's forward"):
        decompose(net)


def test_decompose_accepts_a_network_that_holds_its_own_method():
    net = Net(lambda net: setattr(net, "callback", net.extra_repr))
    model = decompose(net).model
    assert model.callback.__self__ is model
    assert copy.deepcopy(model).callback.__self__ is not model
