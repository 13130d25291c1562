import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fscl.atoms import AtomConv2d, decompose, freeze_coefficients
from fscl.errors import FsclError
from fscl.similarity import gram_matrix, similarity_matrix


def layer_of(num_atoms: int = 9, dtype: torch.dtype = torch.float64, **options) -> AtomConv2d:
    return AtomConv2d(4, 6, 3, num_atoms=num_atoms, dtype=dtype, **options)


def regauged(layer: AtomConv2d, change: Tensor) -> AtomConv2d:
    """The same filters in another gauge."""
    result = copy.deepcopy(layer)
    with torch.no_grad():
        result.coefficients.copy_(layer.coefficients @ torch.linalg.inv(change))
        result.atoms.copy_((change @ layer.atoms.flatten(1)).view_as(layer.atoms))
    return result


def random_gauge(m: int) -> Tensor:
    return torch.randn(m, m, dtype=torch.float64) + 2 * torch.eye(m, dtype=torch.float64)


def flat(layer: AtomConv2d) -> Tensor:
    return layer.coefficients.detach().flatten(0, 1).clone()


def filter_cosines(coefficients: Tensor, stack: Tensor) -> Tensor:
    """The oracle: the cosines of explicitly composed filters."""
    filters = torch.einsum("oim,tmhw->toihw", coefficients.double(), stack.double()).flatten(1)
    return torch.stack([torch.cosine_similarity(f[None], filters) for f in filters])


@pytest.mark.parametrize("num_atoms", [1, 5, 9, 12])
@pytest.mark.parametrize("groups", [1, 2])
def test_fix_gauge_keeps_filters_and_makes_coefficients_orthogonal_to_one_scale(num_atoms, groups):
    layer = layer_of(num_atoms, groups=groups)
    weight, energy = layer.weight.detach(), flat(layer).square().sum()
    layer.fix_gauge()
    assert torch.allclose(layer.weight, weight, rtol=0, atol=1e-13)
    scale = energy / num_atoms
    assert torch.allclose(flat(layer).T @ flat(layer), scale * torch.eye(num_atoms, dtype=torch.float64), atol=1e-12)


def test_fix_gauge_keeps_filters_in_single_precision():
    layer = layer_of(dtype=torch.float32)
    weight = layer.weight.detach().clone()
    layer.fix_gauge()
    assert (layer.weight - weight).norm() < 1e-6 * weight.norm()
    gram = gram_matrix(layer.coefficients)
    assert (gram - gram.diagonal().mean() * torch.eye(9)).norm() < 1e-6 * gram.norm()
    assert torch.allclose(layer.gram(), gram, rtol=1e-5)


def test_fix_gauge_is_idempotent():
    layer = layer_of()
    layer.fix_gauge()
    coefficients, atoms = layer.coefficients.detach().clone(), layer.atoms.detach().clone()
    layer.fix_gauge()
    assert torch.allclose(layer.coefficients, coefficients, rtol=0, atol=1e-13)
    assert torch.allclose(layer.atoms, atoms, rtol=0, atol=1e-13)


def test_fix_gauge_is_gram_schmidt_with_positive_projections():
    layer = layer_of()
    before = flat(layer)
    layer.fix_gauge()
    projections = flat(layer).T @ before
    assert torch.allclose(projections.tril(-1), torch.zeros_like(projections), atol=1e-12)
    assert bool((projections.diagonal() > 0).all())


def test_triangular_changes_of_gauge_lead_to_the_same_fixed_gauge():
    layer = layer_of()
    change = random_gauge(9).triu(1) + torch.rand(9, dtype=torch.float64).add(0.5).diag()
    other = regauged(layer, change)
    layer.fix_gauge()
    other.fix_gauge()
    ratio = flat(layer).norm() / flat(other).norm()  # the scale is that of the coefficients given
    assert torch.allclose(other.coefficients * ratio, layer.coefficients, rtol=0, atol=1e-11)
    assert torch.allclose(other.atoms / ratio, layer.atoms, rtol=0, atol=1e-11)


def test_two_fixed_gauges_differ_only_by_a_rotation_and_a_scale():
    layer = layer_of()
    other = regauged(layer, random_gauge(9))
    assert torch.allclose(other.weight, layer.weight, rtol=0, atol=1e-12)
    layer.fix_gauge()
    other.fix_gauge()
    ratio = flat(other).norm() / flat(layer).norm()
    rotation = flat(other).T @ flat(layer) / (flat(other).square().sum() / 9)
    assert torch.allclose(rotation.T @ rotation * ratio**2, torch.eye(9, dtype=torch.float64), atol=1e-10)
    assert not torch.allclose(rotation * ratio, torch.eye(9, dtype=torch.float64), atol=1e-2)
    assert torch.allclose(rotation @ layer.atoms.flatten(1), other.atoms.flatten(1), rtol=0, atol=1e-10)


def test_plain_cosine_of_atoms_is_the_cosine_of_filters_in_a_fixed_gauge():
    layer = layer_of()
    layer.fix_gauge()
    stack = torch.randn(4, 9, 3, 3, dtype=torch.float64)
    expected = filter_cosines(layer.coefficients.detach(), stack)
    grams = {"a": gram_matrix(layer.coefficients)}
    for metric in ("cosine", "filter"):
        found = similarity_matrix({"a": stack}, metric, "mean", grams=grams)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_only_the_gram_weighted_cosine_is_the_same_in_every_gauge():
    layer = layer_of()
    stack = torch.randn(4, 9, 3, 3, dtype=torch.float64)
    change = random_gauge(9)
    other = regauged(layer, change)
    moved = torch.einsum("km,tmhw->tkhw", change, stack)

    def compare(metric, layer, stack):
        return similarity_matrix({"a": stack}, metric, "mean", grams={"a": gram_matrix(layer.coefficients)})

    expected = filter_cosines(layer.coefficients.detach(), stack)
    assert torch.allclose(compare("filter", layer, stack), expected, rtol=0, atol=1e-6)
    assert torch.allclose(compare("filter", other, moved), expected, rtol=0, atol=1e-6)
    assert (compare("cosine", other, moved) - compare("cosine", layer, stack)).abs().max() > 0.05


def test_fix_gauge_sets_surplus_atoms_to_zero():
    layer = AtomConv2d(1, 4, 3, num_atoms=9, dtype=torch.float64)
    weight, energy = layer.weight.detach(), flat(layer).square().sum()
    layer.fix_gauge()
    assert torch.allclose(layer.weight, weight, rtol=0, atol=1e-13)
    assert not layer.coefficients[..., 4:].any()
    assert not layer.atoms[4:].any()
    kept = flat(layer)[:, :4]
    assert torch.allclose(kept.T @ kept, energy / 4 * torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_fix_gauge_makes_dependent_coefficients_orthogonal():
    layer = layer_of()
    with torch.no_grad():
        layer.coefficients[..., 3] = layer.coefficients[..., 0] - 2 * layer.coefficients[..., 1]
        layer.coefficients[..., 6] = 0
    weight = layer.weight.detach()
    layer.fix_gauge()
    assert torch.allclose(layer.weight, weight, rtol=0, atol=1e-13)
    gram = flat(layer).T @ flat(layer)
    assert torch.allclose(gram, gram[0, 0] * torch.eye(9, dtype=torch.float64), atol=1e-12)
    stack = torch.randn(3, 9, 3, 3, dtype=torch.float64)
    found = similarity_matrix({"a": stack}, aggregate="mean")
    assert torch.allclose(found, filter_cosines(layer.coefficients.detach(), stack), rtol=0, atol=1e-6)


def test_fix_gauge_keeps_zero_filters_zero():
    layer = layer_of()
    nn.init.zeros_(layer.coefficients)
    layer.fix_gauge()
    assert not layer.weight.any()
    assert bool(layer.coefficients.isfinite().all())


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, 1e307])
def test_fix_gauge_does_not_depend_on_the_size_of_coefficients(size):
    """The squares of these sizes are zero or infinite in double precision."""
    layer = layer_of()
    sized = copy.deepcopy(layer)
    unit = 2.0 ** round(math.log2(size))  # changes no digit
    with torch.no_grad():
        sized.coefficients.mul_(unit)
    for changed in (layer, sized, sized):  # the last finds the gauge fixed
        changed.fix_gauge()
    assert torch.allclose(sized.atoms, layer.atoms, rtol=1e-11 if size > 1e-300 else 1e-2)
    assert torch.allclose(sized.coefficients / unit, layer.coefficients, rtol=1e-11 if size > 1e-300 else 1e-2)


def test_freeze_coefficients_keeps_outputs_and_stops_training_coefficients():
    from avalanche.models import SlimResNet18

    net = SlimResNet18(4, nf=8).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    model = decompose(net).model.eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
    model(x).sum().backward()
    freeze_coefficients(model)
    with torch.no_grad():
        assert (model(x) - before).norm() < 1e-6 * before.norm()
    for module in model.modules():
        if isinstance(module, AtomConv2d):
            assert not module.coefficients.requires_grad
            assert module.coefficients.grad is None
            assert module.atoms.requires_grad


def test_freeze_coefficients_refuses_a_network_without_atom_layers():
    with pytest.raises(FsclError, match=r"Sequential has no atom layers; call fscl\.decompose on it first"):
        freeze_coefficients(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_a_unit_gauge_keeps_the_filters_and_makes_a_step_on_atoms_a_step_on_filters() -> None:
    layer = AtomConv2d(3, 16, 3, num_atoms=9)
    filters = layer.weight.detach().clone()
    layer.fix_gauge(scale=1)
    torch.testing.assert_close(layer.weight, filters)
    torch.testing.assert_close(gram_matrix(layer.coefficients.detach()), torch.eye(9), atol=1e-5, rtol=0)
    before = layer.coefficients.detach().clone(), layer.atoms.detach().clone()
    layer.fix_gauge(scale=1)
    assert torch.equal(layer.coefficients, before[0])
    assert torch.equal(layer.atoms, before[1])
    # the step of SGD on atoms is the step on filters, projected onto what the coefficients span
    wanted = torch.randn_like(filters)
    (layer.weight * wanted).sum().backward()
    moved = torch.einsum("oim,mhw->oihw", layer.coefficients.detach(), layer.atoms.grad)
    flat = layer.coefficients.detach().flatten(0, 1)
    projected = (flat @ flat.T @ wanted.flatten(0, 1).flatten(1)).view_as(wanted)
    torch.testing.assert_close(moved, projected, atol=1e-5, rtol=1e-4)
