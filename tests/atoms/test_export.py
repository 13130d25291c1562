"""Networks of atom layers leave Python by torch.export, ONNX and TorchScript."""

import pytest
import torch
from torch import nn

from fscl.atoms import decompose, recompose
from fscl.errors import FsclError


@pytest.fixture(scope="module")
def network():
    """Both ways of composing filters (an even and an odd number), padding by pixels and by a word, groups."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect", groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 5, (3, 5), stride=2, bias=False),
        nn.Conv2d(5, 3, 2),
        nn.Flatten(),
        nn.Linear(6, 3),
    ]
    return decompose(nn.Sequential(*layers), num_atoms=6).model.eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(network, x):
    network(x)
    return torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))


def test_an_exported_network_gives_equal_outputs_for_any_number_of_images(network, x, exported):
    for images in (x, x[:3]):
        assert torch.allclose(exported.module()(images), network(images), atol=1e-6)


def test_an_exported_network_holds_atoms_and_no_composed_filters(network, exported):
    assert set(exported.state_dict) == set(network.state_dict())


def test_an_exported_network_follows_atoms_that_are_loaded_into_it(network, x, exported):
    module = exported.module()
    before = {name: values.clone() for name, values in module.state_dict().items()}
    changed = {name: values + 0.1 * name.endswith("atoms") for name, values in before.items()}
    other = decompose(recompose(network), num_atoms=6).model.eval()
    other.load_state_dict(changed)
    module.load_state_dict(changed)
    outputs = module(x)
    module.load_state_dict(before)
    assert torch.allclose(outputs, other(x), atol=1e-6)
    assert not torch.allclose(outputs, network(x), atol=1e-3)


def test_an_onnx_network_gives_equal_outputs_for_any_number_of_images(network, x, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs onnxscript")
    reference = pytest.importorskip("onnx.reference", reason="onnx computes the outputs of its networks")
    file = tmp_path / "network.onnx"
    torch.onnx.export(network, (x,), file, dynamo=True, dynamic_shapes=({0: "n"},), verbose=False)
    session = reference.ReferenceEvaluator(str(file))
    for images in (x, x[:3]):
        (outputs,) = session.run(None, {session.input_names[0]: images.numpy()})
        assert torch.allclose(torch.from_numpy(outputs), network(images), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit")  # newer PyTorch advises torch.export
def test_torch_script_refuses_atom_layers_in_a_sentence_and_takes_the_recomposed_network(network, x):
    state = {name: values.clone() for name, values in network.state_dict().items()}
    with pytest.raises(FsclError, match=r"script fscl.atoms.recompose\(network\).* or use torch.export.export"):
        torch.jit.script(network)
    assert all(torch.equal(values, state[name]) for name, values in network.state_dict().items())
    scripted = torch.jit.script(recompose(network))
    assert torch.allclose(scripted(x), network(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_traced_network_gives_equal_outputs_for_any_number_of_images(network, x):
    with torch.no_grad():
        traced = torch.jit.trace(network, (x,))
        for images in (x, x[:3]):
            assert torch.allclose(traced(images), network(images), atol=1e-6)
