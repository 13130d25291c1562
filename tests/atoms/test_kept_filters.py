"""Composed filters that are kept between passes in evaluation: never stale, and never in copies, files or graphs."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fscl.atoms import AtomConv2d


@pytest.fixture
def layer():
    return AtomConv2d(3, 4, 3, padding=1).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 6)


def expected(layer, x):
    """The oracle: the convolution with filters composed here, from the present parameters."""
    filters = torch.einsum("oim,mhw->oihw", layer.coefficients.detach(), layer.atoms.detach())
    return F.conv2d(x, filters, layer.bias.detach(), padding=1)


def right(layer, x):
    with torch.no_grad():
        return bool((layer(x) - expected(layer, x)).norm() <= 1e-5 * expected(layer, x).norm())


@pytest.fixture
def compositions(layer, monkeypatch):
    """A list with an item for each time that filters were composed."""
    count, original = [], AtomConv2d._compose
    monkeypatch.setattr(AtomConv2d, "_compose", lambda self: count.append(1) or original(self))
    return count


def test_filters_are_composed_once_in_evaluation(layer, x, compositions):
    with torch.no_grad():
        first = layer(x)
        assert all(torch.equal(layer(x), first) for _ in range(3))
    with torch.inference_mode():
        assert torch.equal(layer(x), first)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    layer(inputs).sum().backward()  # only the input takes a gradient
    assert inputs.grad is not None
    assert len(compositions) == 1
    layer.atoms.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.atoms.grad is not None
    assert len(compositions) == 2
    assert torch.equal(layer.train()(x), first)
    assert len(compositions) == 3


def add(tensor):
    with torch.no_grad():
        tensor.add_(1)


def swap_by_data(layer):
    layer.atoms.data = layer.atoms.data + 1


def vector_to_parameters(layer):
    for _ in range(3):  # memory that was freed is given out again
        vector = nn.utils.parameters_to_vector(layer.parameters()).detach() + 1
        nn.utils.vector_to_parameters(vector, layer.parameters())


def load(layer, **options):
    layer.load_state_dict({name: t + 1 for name, t in layer.state_dict().items()}, **options)


def point(layer):
    layer._parameters["atoms"] = nn.Parameter(layer.atoms.detach() + 1)


def inference(layer):
    with torch.inference_mode():
        layer.atoms.mul_(2)


CHANGES = {
    "atoms in place": lambda layer: add(layer.atoms),
    "coefficients in place": lambda layer: add(layer.coefficients),
    "an element": lambda layer: add(layer.coefficients[0, 0, 0]),
    "in inference mode": inference,
    "another parameter": point,
    "other data": swap_by_data,
    "vector_to_parameters": vector_to_parameters,
    "load_state_dict": load,
    "load_state_dict, assigned": lambda layer: load(layer, assign=True),
    "initialised": lambda layer: layer.reset_parameters(),
    "gauge": lambda layer: (layer.fix_gauge(), add(layer.atoms)),
    "data in place, then eval": lambda layer: (layer.atoms.data.add_(1), layer.eval()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_composed_filters_follow_a_change_of_parameters(layer, x, change):
    for _ in range(3):
        assert right(layer, x)
        before = layer.atoms.detach().clone(), layer.coefficients.detach().clone()
        change(layer)
        assert not (torch.equal(before[0], layer.atoms) and torch.equal(before[1], layer.coefficients))
        assert right(layer, x)


def test_new_parameters_at_a_freed_address_are_noticed(layer, x):
    for _ in range(20):
        layer.atoms = nn.Parameter(torch.randn(9, 3, 3))
        assert right(layer, x)


@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_composed_filters_follow_an_optimizer_step(layer, x, optimizer, how):
    steps = optimizer(layer.parameters(), lr=0.01, **how)
    assert right(layer, x)
    for _ in range(3):  # in evaluation mode, and with a look between gradient and step
        steps.zero_grad()
        loss = layer(x).square().mean()
        assert right(layer, x)
        loss.backward()
        assert right(layer, x)
        before = layer.atoms.detach().clone()
        steps.step()
        assert not torch.equal(layer.atoms, before)
        assert right(layer, x)


def test_composed_filters_follow_tasks_that_are_swapped_in_turn(layer, x):
    tasks = [nn.Parameter(torch.randn(9, 3, 3), requires_grad=False) for _ in range(3)]
    for task in (0, 1, 0, 2, 2, 1):
        layer._parameters["atoms"] = tasks[task]
        assert right(layer, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_composed_filters_follow_a_change_of_precision(layer, x, dtype):
    with torch.no_grad():
        layer(x)
        out = layer.to(dtype)(x.to(dtype))
        assert out.dtype == dtype
        assert torch.allclose(out.double(), expected(layer.double(), x.double()), atol=5e-2)
        assert right(layer.float(), x)
        assert layer.to("meta")(x.to("meta")).is_meta


def test_autocast_does_not_lower_the_precision_of_composed_filters(layer, x):
    fresh = copy.deepcopy(layer)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
            assert layer.weight.dtype == torch.float32
        assert low.dtype == torch.bfloat16
        assert torch.equal(layer(x), fresh(x))
        filters = fresh.weight.bfloat16()
        assert torch.equal(low, F.conv2d(x.bfloat16(), filters, fresh.bias.bfloat16(), padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        layer.train()(x).float().sum().backward()
    assert layer.atoms.grad.dtype == torch.float32


def test_filters_composed_in_inference_mode_can_be_used_by_autograd(layer, x):
    with torch.inference_mode():
        layer(x)
    layer.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    layer(inputs).sum().backward()
    assert inputs.grad is not None
    with torch.inference_mode():
        born = AtomConv2d(3, 4, 3, padding=1).eval()  # its parameters have no versions
        assert right(born, x)
        born.atoms.add_(1)
        assert right(born, x)


def test_composed_filters_are_in_no_copy_state_or_file(layer, x):
    def size(module):
        torch.save(module, file := io.BytesIO())
        return len(pickle.dumps(module)), len(file.getvalue()), [*module.state_dict()], [*module.buffers()]

    before = size(layer)
    assert right(layer, x)
    assert size(layer) == before
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert right(other, x)
    other = copy.deepcopy(layer)
    add(other.atoms)
    assert right(other, x)
    assert right(layer, x)


def test_functional_call_leaves_no_composed_filters_behind(layer, x):
    other = {"atoms": torch.randn(9, 3, 3), "coefficients": torch.randn(4, 3, 9)}
    with torch.no_grad():
        own = layer(x)
        for values in (other, {n: nn.Parameter(t) for n, t in other.items()}):
            swapped = torch.func.functional_call(layer, values, (x,))
            assert torch.equal(torch.func.functional_call(layer, values, (x,)), swapped)
            assert not torch.equal(swapped, own)
            assert torch.equal(layer(x), own)


def test_torch_func_transforms_leave_no_composed_filters_behind(layer, x):
    layer.requires_grad_(False)
    stack = torch.randn(5, 9, 3, 3)

    def function(atoms, x):
        return torch.func.functional_call(layer, {"atoms": atoms}, (x,))

    many = torch.func.vmap(function, (0, None))(stack, x)
    for atoms, out in zip(stack, many, strict=True):
        assert torch.allclose(function(atoms, x), out, atol=1e-5)
    gradient = torch.func.grad(lambda x: layer(x).square().sum())(x)
    inputs = x.clone().requires_grad_()
    layer(inputs).square().sum().backward()
    assert torch.allclose(gradient, inputs.grad, atol=1e-5)
    assert right(layer, x)
    atoms = torch.func.jacrev(lambda a: function(a, x).sum())(stack[0])
    assert torch.allclose(atoms, torch.func.jacfwd(lambda a: function(a, x).sum())(stack[0]), atol=1e-3)
    assert right(layer, x)


def test_a_copy_of_a_layer_compiled_in_place_is_independent(layer, x):
    layer.compile(backend="eager")
    layer(x)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    with torch.no_grad():
        twin.atoms.zero_()
        twin.bias.zero_()
    assert bool((layer(x) != 0).any())
    assert not bool(twin(x).any())


def test_compiled_and_exported_layers_follow_their_parameters(layer, x):
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(compiled(x), expected(layer, x), atol=1e-5)
            add(layer.atoms)
            assert right(layer, x)


def test_traced_layers_hold_parameters_and_no_composed_filters(layer, x):
    with torch.no_grad():
        layer(x)
        traced = torch.jit.trace(layer, (x,))
        add(layer.atoms)
        assert torch.allclose(traced(x), expected(layer, x), atol=1e-5)


def kept_for_backward(layer, x):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()} | {x.untyped_storage().data_ptr()}
    out.sum().backward()
    return sum(t.nbytes for t in kept if t.untyped_storage().data_ptr() not in parameters)


@pytest.mark.parametrize("shape", [(8, 6), (3, 5)])
def test_nothing_is_saved_for_gradients_of_frozen_coefficients(shape):
    layer = AtomConv2d(*shape, 3)
    inputs = torch.randn(2, shape[0], 5, 5, requires_grad=True)
    layer.coefficients.requires_grad_(False)
    assert kept_for_backward(layer, inputs) == layer.weight.nbytes  # for the gradient of the input, as in nn.Conv2d
    assert layer.coefficients.grad is None
    assert layer.atoms.grad is not None


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
@pytest.mark.parametrize("kernel", [(1, 2), (2, 3), 3, 4])
def test_gradients_of_composed_filters_equal_those_of_the_explicit_sum(shape, kernel):
    layer = AtomConv2d(*shape, kernel, num_atoms=5, dtype=torch.float64)
    seed = torch.randn_like(layer.weight)
    found = torch.autograd.grad((layer.weight * seed).sum(), (layer.coefficients, layer.atoms))
    assert torch.allclose(found[0], torch.einsum("oihw,mhw->oim", seed, layer.atoms), atol=1e-12)
    assert torch.allclose(found[1], torch.einsum("oihw,oim->mhw", seed, layer.coefficients), atol=1e-12)
