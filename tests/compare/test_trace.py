"""What is seen of a pass: in what order, between which maps, and that the network is left as it was."""

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


def test_every_event_is_seen_in_order_with_its_maps():
    events = trace(decompose(Everything()).model, (3, 16, 16))
    ways = {event.made: event for event in events}
    kinds = [event.kind for event in events if event.kind != "resize" or event.shrink > 1]
    assert kinds == ["conv", "norm", "rectifier", "conv", "conv", "add", "resize", "cat", "conv", "resize"]
    named = {event.name: event for event in events if event.name}
    assert list(named) == ["one", "norm", "two", "shortcut", "three"]
    assert named["one"].given == (0,)
    assert named["norm"].given == (named["one"].made,)
    assert named["two"].given == named["shortcut"].given
    assert ways[named["two"].given[0]].kind == "rectifier"
    assert [named[name].shrink for name in ("one", "two", "shortcut", "three")] == [1, 2, 2, 1]
    (added,) = (event for event in events if event.kind == "add")
    assert named["shortcut"].made in added.given
    (joined,) = (event for event in events if event.kind == "cat")
    pooled = ways[joined.given[1]]
    assert (joined.given[0], pooled.kind, pooled.shrink, pooled.given) == (added.made, "resize", 2, named["two"].given)
    assert named["three"].given == (joined.made,)
    assert events[-1].shrink == 8


def test_the_network_is_left_as_it_was_also_when_the_pass_fails():
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


def test_a_pass_is_made_as_the_user_says():
    seen = []

    def call(network, images):
        seen.append((images.shape, network.training))
        return network(images, label=1)

    assert trace(Everything(), (3, 12, 16), call)
    assert seen == [(torch.Size([1, 3, 12, 16]), False)]
