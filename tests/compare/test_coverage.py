"""The share of a network's parameters that is compared, and the layers that are left out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import mobilenet_v2, resnet18

from fscl.compare import joint_decompose
from fscl.compare.comparison import MOSTLY_COMPARED, compare
from fscl.compare.coverage import coverage
from fscl.compare.layers import LeftOut


@pytest.mark.parametrize("make", [resnet18, mobilenet_v2])
def test_compared_and_left_out_layers_are_all_layers_with_weights(make: type[nn.Module]) -> None:
    net = make(num_classes=10)
    weights = {name.removesuffix(".weight"): p.numel() for name, p in net.named_parameters() if p.ndim > 1}
    spatial = {n: weights[n] for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)}
    found = coverage([net], spatial, {})
    assert spatial | found.left_out == weights
    assert found.share == sum(spatial.values()) / sum(p.numel() for p in net.parameters())
    assert coverage([net.state_dict()], spatial, {}) == found


def test_the_share_is_that_of_the_network_with_most_parameters_left_out() -> None:
    nets = [nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Linear(4, n, bias=False)) for n in (2, 9, 3)]
    found = coverage(nets, {"0": 36}, {})
    assert found.share == 36 / (36 + 4 * 9)
    assert found.left_out == {"1": 36}


def test_integers_count_only_if_they_are_known_to_be_weights() -> None:
    state = {"0.weight": torch.ones(1, 1, 3, 3), "1.weight": torch.ones(2, 2, 3, 3, dtype=torch.int8)}
    state["index"] = torch.arange(100).view(10, 10)
    assert coverage([state], {"0": 9}, {}).share == 1
    assert coverage([state], {"0": 9}, {"1": LeftOut("int8", 36)}).share == 9 / 45
    assert coverage([state], {"0": 9}, {"1": LeftOut("int8", 36)}).left_out == {"1": 36}


def test_a_layer_whose_weight_is_kept_in_parts_has_one_name() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert sorted(coverage([net], {"0": 36}, {}).left_out) == ["1", "2"]


def test_networks_of_which_little_is_compared_are_not_trusted_and_the_verdict_says_so() -> None:
    small, large = (nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Linear(4, n)) for n in (2, 200))
    for net, trusted in ((small, True), (large, False)):
        copies = {}
        for name in "ab":
            copies[name] = copy.deepcopy(net)
            copies[name][0].weight.data += 0.01 * torch.randn(16, 3, 3, 3)
        compared = compare(joint_decompose(copies))
        assert compared.trusted is trusted is (compared.coverage.share >= MOSTLY_COMPARED)
        start = "trusted: " if trusted else "to be read with care: "
        assert compared.verdict.startswith(start)
        assert compared.verdict.endswith(" % of the parameters are compared, without 2")
        layers = compared.as_data()["layers"]
        assert layers["left_out"] == {"2": net[2].weight.numel()}
        assert layers["compared_share"] == compared.coverage.share
