"""Events of a forward pass: their order, the maps they connect, and that the network is not changed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fscl.atoms import decompose
from fscl.compare.trace import trace
from fscl.errors import FsclError


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.two, self.shortcut = nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 1, stride=2)
        self.three, self.unused = nn.Conv2d(8, 2, 1), nn.Conv2d(4, 4, 3)
        self.drop, self.head = nn.Dropout(), nn.Linear(2, 3)

    def forward(self, images, label=None):
        values = F.relu(self.norm(self.one(images)), inplace=True)
        branch = self.drop(self.two(values))
        branch += self.shortcut(values)
        values = torch.cat((branch, F.max_pool2d(values, 2)), dim=1)
        return self.head(F.adaptive_avg_pool2d(self.three(values), 1).flatten(1))


def test_trace_records_every_event_in_order_with_its_maps():
    events = trace(decompose(Everything()).model, (3, 16, 16))
    by_output = {event.output: event for event in events}
    kinds = [event.kind for event in events if event.kind != "resize" or event.shrink > 1]
    assert kinds == ["conv", "norm", "rectifier", "conv", "conv", "add", "resize", "cat", "conv", "resize"]
    named = {event.name: event for event in events if event.name}
    assert list(named) == ["one", "norm", "two", "shortcut", "three"]
    assert named["one"].inputs == (0,)
    assert named["norm"].inputs == (named["one"].output,)
    assert named["two"].inputs == named["shortcut"].inputs
    assert by_output[named["two"].inputs[0]].kind == "rectifier"
    assert [named[name].shrink for name in ("one", "two", "shortcut", "three")] == [1, 2, 2, 1]
    (added,) = (event for event in events if event.kind == "add")
    assert named["shortcut"].output in added.inputs
    (joined,) = (event for event in events if event.kind == "cat")
    pooled = by_output[joined.inputs[1]]
    assert (joined.inputs[0], pooled.kind, pooled.shrink, pooled.inputs) == (
        added.output,
        "resize",
        2,
        named["two"].inputs,
    )
    assert named["three"].inputs == (joined.output,)
    assert events[-1].shrink == 8


def test_trace_does_not_change_the_network_even_if_the_pass_fails():
    model = Everything().train()
    model.drop.eval()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    trace(model, (3, 16, 16))
    with pytest.raises(
        FsclError, match=r"a pass of an image of shape \(5, 16, 16\) fails: .*give another shape or `call`"
    ):
        trace(model, (5, 16, 16))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_trace_makes_the_pass_with_the_given_call():
    seen = []

    def call(network, images):
        seen.append((images.shape, network.training))
        return network(images, label=1)

    assert trace(Everything(), (3, 12, 16), call)
    assert seen == [(torch.Size([1, 3, 12, 16]), False)]
