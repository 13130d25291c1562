import pytest
import torch
from torch import nn

from fscl.atoms import atom_layers, decompose
from fscl.atoms.packing import PARTS, Packing
from fscl.errors import FsclError


def plain(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.Flatten(),
        nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    net(torch.randn(4, 1, 8, 8))  # running statistics of its own
    return net


def decomposed(seed: int) -> nn.Module:
    return decompose(plain(seed), num_atoms=4).model


def tied(seed: int) -> nn.Module:
    net = plain(seed)
    net.again = net[3]  # the same 1x1 convolution by a second name
    return net


NETWORKS = pytest.mark.parametrize("make", [plain, decomposed, tied], ids=lambda make: make.__name__)


def floats(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}


@NETWORKS
def test_packed_parts_of_one_network_make_another_one_equal_to_it(make):
    source, target = make(1), make(2)
    packing = Packing(target)
    packing.unpack(target, packing.packed(source))
    expected = floats(source)
    assert floats(target).keys() == expected.keys()
    for name, values in floats(target).items():
        assert torch.equal(values, expected[name]), name


@NETWORKS
def test_parts_divide_all_floating_entries(make):
    net = make(0)
    packing = Packing(net)
    names = [name for entries in packing.entries.values() for name in entries]
    memory = {tensor.data_ptr(): tensor.numel() for tensor in net.state_dict().values() if tensor.is_floating_point()}
    assert len(names) == len(set(names)) == len(memory)
    assert {net.state_dict()[name].data_ptr() for name in names} == set(memory)
    assert sum(packing.size(part) for part in packing.entries) == sum(memory.values())
    assert set(packing.entries) <= set(PARTS)


def test_each_entry_is_in_the_part_that_its_module_says():
    assert Packing(decomposed(0)).entries == {
        "atoms": ("0.atoms",),
        "normalisation": ("1.weight", "1.bias", "1.running_mean", "1.running_var"),
        "head": ("7.weight", "7.bias"),
        "other": ("0.bias",),
        "shared": ("0.coefficients", "3.weight", "5.weight", "5.bias"),
    }


def test_what_is_packed_does_not_follow_the_network():
    net = plain(0)
    packing = Packing(net)
    before = packing.pack(net, "head")
    with torch.no_grad():
        net[7].weight.zero_()
    assert before[:15].count_nonzero() == 15


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(17), r"head has shape \(17,\); this network's has \(18,\)"),
        (torch.zeros(3, 6), r"head has shape \(3, 6\)"),
        (torch.full((18,), torch.nan), "head is not finite"),
        (torch.tensor([*[0.0] * 17, torch.inf]), "head is not finite"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_and_changes_nothing(values, message):
    net = plain(0)
    packing, before = Packing(net), floats(net)
    with pytest.raises(FsclError, match=message):
        # the good part comes first
        packing.unpack(net, {"shared": torch.zeros(packing.size("shared")), "head": values})
    for name, now in floats(net).items():
        assert torch.equal(now, before[name]), name


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(FsclError, match="no part 'atoms'; its parts: normalisation, head, other, shared"):
        Packing(plain(0)).size("atoms")


def test_entries_of_several_types_are_refused():
    net = plain(0)
    net[5].double()
    with pytest.raises(FsclError, match=r"Sequential has entries of several types \(torch.float32, torch.float64\)"):
        Packing(net)


def test_the_fingerprint_is_that_of_the_shared_part_alone():
    net = decomposed(0)
    packing = Packing(net)
    first = packing.fingerprint(net)
    with torch.no_grad():
        net[0].atoms.add_(1)
        net[7].weight.add_(1)
    assert packing.fingerprint(net) == first
    with torch.no_grad():
        net[0].coefficients.view(-1)[0] = torch.nextafter(net[0].coefficients.view(-1)[0], torch.tensor(9.0))
    assert packing.fingerprint(net) != first


def test_packed_atoms_are_the_atoms_of_each_layer():
    net = decomposed(0)
    packing = Packing(net)
    atoms = packing.atoms(packing.pack(net, "atoms"))
    assert atoms.keys() == atom_layers(net).keys() == {"0"}
    assert torch.equal(atoms["0"], net[0].atoms)
