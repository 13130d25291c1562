"""After a block in evaluation mode each module is in the mode that it had before."""

import pytest
from torch import nn

from fscl.modes import evaluating


def mixed() -> nn.Module:
    return nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).eval(), nn.BatchNorm2d(3))


def modes(*networks: nn.Module) -> list[bool]:
    return [module.training for network in networks for module in network.modules()]


def test_modes_of_several_networks_are_restored() -> None:
    networks = mixed(), mixed().eval()
    before = modes(*networks)
    with evaluating(*networks):
        assert not any(modes(*networks))
    assert modes(*networks) == before
    assert len(set(before)) == 2


def test_modes_are_restored_after_an_error_and_of_a_network_given_twice() -> None:
    network = mixed()
    before = modes(network)
    with pytest.raises(KeyError), evaluating(network, network):
        raise KeyError
    assert modes(network) == before
