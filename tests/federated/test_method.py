import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fscl.atoms import AtomConv2d, atom_layers
from fscl.atoms.packing import Packing
from fscl.errors import FsclError
from fscl.federated import Atoms, FedAvg, FedProx, SeparateAveraging, Update
from fscl.federated.flower_private import use_identity
from fscl.federated.method import weighted_mean


def updates(packing, nets, images):
    return [Update(c, packing.packed(net), n) for c, (net, n) in enumerate(zip(nets, images, strict=True))]


def flowers_mean(updates):
    """What Flower's own FedAvg makes of the same answers."""
    use_identity(1)
    replies = []
    for update in updates:
        content = RecordDict(
            {
                "arrays": ArrayRecord({part: Array(values.numpy()) for part, values in update.parts.items()}),
                "metrics": MetricRecord({"num-examples": update.images}),
            }
        )
        replies.append(Message(content, reply_to=Message(RecordDict(), update.client + 2, "train")))
    arrays, _ = FlowerFedAvg().aggregate_train(1, replies)
    return {part: torch.from_numpy(array.numpy().copy()) for part, array in arrays.items()}


@pytest.mark.parametrize("method", [FedAvg(), FedProx()], ids=["fedavg", "fedprox"])
def test_the_server_s_parts_are_those_of_flower_s_fedavg(network, method):
    nets = [network(seed) for seed in range(4)]
    method.begin(nets[0], 4)
    answers = updates(method.packing, nets, [7, 1, 30, 12])
    answers = [Update(u.client, {part: u.parts[part] for part in method.travels(1)}, u.images) for u in answers]
    method.combine(1, answers)
    expected = flowers_mean(answers)
    assert set(expected) == {"head", "other", "shared"}
    for part, values in expected.items():
        assert torch.allclose(method.mean[part], values, rtol=1e-6, atol=1e-7), part


def test_the_mean_is_summed_in_double_precision():
    parts = [{"head": torch.full((1,), 0.1)}] * 1000
    mean = weighted_mean([Update(c, p, 1) for c, p in enumerate(parts)])["head"]
    assert mean.dtype == torch.float32
    assert mean.item() == parts[0]["head"].item()


def test_without_images_there_is_no_mean():
    with pytest.raises(FsclError, match="0 updates with 0 images"):
        weighted_mean([])


def layers(same_coefficients=False, same_atoms=False):
    """Three clients' atom layers, with equal coefficients or atoms if wished."""
    nets = []
    for seed in range(3):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(AtomConv2d(2, 5, 3, num_atoms=4), nn.Flatten(), nn.Linear(5, 2)))
    for net in nets[1:]:
        with torch.no_grad():
            if same_coefficients:
                net[0].coefficients.copy_(nets[0][0].coefficients)
            if same_atoms:
                net[0].atoms.copy_(nets[0][0].atoms)
    return nets


IMAGES = [10, 20, 70]
SHARES = torch.tensor([0.1, 0.2, 0.7])


def mean_filters(nets):
    return sum(share * net[0].weight for share, net in zip(SHARES, nets, strict=True))


def averaged(method, nets, keep=None):
    """The filters of the network that the server makes of the clients' networks."""
    net = layers()[0]
    method.begin(net, 3)
    answers = [
        Update(u.client, {p: v for p, v in u.parts.items() if keep is None or p in keep}, u.images, method.mean)
        for u in updates(method.packing, nets, IMAGES)
    ]
    method.combine(1, answers)
    method.packing.unpack(net, method.mean)
    return net[0].weight


def test_the_average_of_atoms_is_the_average_of_filters_over_equal_coefficients():
    nets = layers(same_coefficients=True)  # those of the server's network, too
    filters = averaged(Atoms(num_atoms=4, coefficient_rounds=0), nets, keep=["atoms", "other"])
    assert torch.allclose(filters, mean_filters(nets), atol=1e-6)
    others = layers()  # atoms over different coefficients have no such average
    filters = averaged(Atoms(num_atoms=4, coefficient_rounds=0), others, keep=["atoms", "other"])
    assert not torch.allclose(filters, mean_filters(others), atol=1e-2)


def test_separate_averages_are_mean_coefficients_times_mean_atoms():
    nets = layers()
    coefficients = sum(share * net[0].coefficients for share, net in zip(SHARES, nets, strict=True))
    atoms = sum(share * net[0].atoms for share, net in zip(SHARES, nets, strict=True))
    expected = torch.einsum("oim,mhw->oihw", coefficients, atoms)
    filters = averaged(SeparateAveraging(num_atoms=4), nets)
    assert torch.allclose(filters, expected, atol=1e-6)
    # it is a mean over all pairs of clients: their own filters and the cross terms
    cross = sum(
        SHARES[a] * SHARES[b] * torch.einsum("oim,mhw->oihw", nets[a][0].coefficients, nets[b][0].atoms)
        for a in range(3) for b in range(3)
    )  # fmt: skip
    assert torch.allclose(filters, cross, atol=1e-6)


@pytest.mark.parametrize("same", [{"same_coefficients": True}, {"same_atoms": True}], ids=str)
def test_separate_averages_are_averages_of_filters_if_one_factor_is_equal(same):
    nets = layers(**same)
    assert torch.allclose(averaged(SeparateAveraging(num_atoms=4), nets), mean_filters(nets), atol=1e-6)


def test_separate_averages_differ_from_averages_of_filters_if_both_factors_differ():
    nets = layers()
    difference = (averaged(SeparateAveraging(num_atoms=4), nets) - mean_filters(nets)).norm()
    assert difference > 0.1 * mean_filters(nets).norm()


def test_separate_averaging_decomposes_a_network_and_fedavg_averages_its_filters(network):
    net = SeparateAveraging(num_atoms=9).prepare(network())
    assert len(atom_layers(net)) == 2
    assert set(Packing(net).entries) >= {"atoms", "shared"}
    images = torch.randn(3, 1, 8, 8)
    assert torch.allclose(net.eval()(images), network().eval()(images), atol=1e-5)
    method, nets = FedAvg(), [network(s) for s in range(3)]
    method.begin(network(), 3)
    method.combine(1, updates(method.packing, nets, IMAGES))
    method.packing.unpack(method.model, method.mean)
    assert torch.allclose(method.model[0].weight, mean_filters(nets), atol=1e-6)


def test_a_method_goes_on_from_its_state():
    first, second, nets = FedAvg(), FedAvg(), layers()
    first.begin(nets[0], 3)
    first.combine(1, updates(first.packing, nets, IMAGES))
    second.begin(layers()[0], 3)
    second.load_state_dict(first.state_dict())
    for part, values in first.parts_for(0, 2).items():
        assert np.array_equal(values, second.parts_for(0, 2)[part])
