import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fscl.atoms import AtomConv2d
from fscl.errors import FsclError

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": (1, 2)},
    {"kernel_size": 3, "stride": (2, 1), "dilation": (1, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": (3, 5), "padding": (1, 2)},
    {"kernel_size": (1, 4), "padding": "same"},
    {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 1)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 2, "groups": 4, "stride": 2},
    *(
        {"kernel_size": 3, "padding_mode": mode, **more}
        for mode in ("zeros", "reflect", "replicate", "circular")
        for more in (
            {"padding": 1},
            {"padding": (1, 2), "stride": 2},
            {"padding": "same", "dilation": 2},
            {"padding": "valid"},
        )
    ),
    {"kernel_size": (2, 4), "padding": "same", "padding_mode": "circular"},
]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def identifier(options: dict) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items())


def test_weight_is_the_explicit_sum_over_atoms():
    layer = AtomConv2d(4, 6, (3, 2), num_atoms=5, groups=2)
    expected = torch.zeros(6, 2, 3, 2)
    for o in range(6):
        for i in range(2):
            for k in range(5):
                expected[o, i] += layer.coefficients[o, i, k].item() * layer.atoms[k].detach()
    assert torch.allclose(layer.weight, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", GEOMETRIES, ids=identifier)
def test_an_atom_layer_accepts_every_option_of_conv2d(options):
    ordinary = nn.Conv2d(4, 8, **options)
    layer = AtomConv2d(4, 8, num_atoms=7, **options)
    with torch.no_grad():  # an ordinary convolution built by torch from the same arguments is the oracle
        ordinary.weight.copy_(torch.einsum("oim,mhw->oihw", layer.coefficients, layer.atoms))
        if ordinary.bias is not None:
            ordinary.bias.copy_(layer.bias)
    x = torch.randn(2, 4, 9, 10)
    assert layer(x).shape == ordinary(x).shape
    assert close(layer(x), ordinary(x))
    assert close(layer.to_conv()(x), ordinary(x))
    assert repr(layer.to_conv()) == repr(ordinary)


@pytest.mark.parametrize(
    "options", [o for o in GEOMETRIES if o.get("padding_mode", "zeros") == "zeros"][:11], ids=identifier
)
def test_forward_is_the_functional_convolution_with_the_composed_filters(options):
    layer = AtomConv2d(4, 8, num_atoms=4, **options)
    x = torch.randn(2, 4, 9, 10)
    keys = ("stride", "padding", "dilation", "groups")
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, **{k: getattr(layer, k) for k in keys}))


def test_an_atom_layer_is_spatial_filtering_by_each_atom_followed_by_channel_mixing():
    layer = AtomConv2d(3, 5, 3, num_atoms=4, padding=1, bias=False).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    filtered = F.conv2d(x.flatten(0, 1)[:, None], layer.atoms[:, None], padding=1).view(2, 3, 4, 6, 6)
    mixed = torch.einsum("nimhw,oim->nohw", filtered, layer.coefficients)
    assert torch.allclose(layer(x), mixed, rtol=0, atol=1e-12)


def test_gradients_of_an_atom_layer_agree_with_finite_differences():
    layer = AtomConv2d(2, 4, 3, num_atoms=3, padding="same", groups=2, padding_mode="circular", dtype=torch.float64)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def function(x, coefficients, atoms, bias):
        values = {"coefficients": coefficients, "atoms": atoms, "bias": bias}
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.coefficients, layer.atoms, layer.bias))


@pytest.mark.parametrize("kernel", [3, (2, 3), (1, 5), 5])
def test_from_conv_is_exact_with_as_many_atoms_as_kernel_pixels(kernel):
    conv = nn.Conv2d(6, 8, kernel)
    pixels = conv.weight[0, 0].numel()
    for num_atoms in (pixels, pixels + 3):
        layer = AtomConv2d.from_conv(conv, num_atoms)
        assert layer.num_atoms == num_atoms
        assert close(layer.weight, conv.weight)
    assert not close(AtomConv2d.from_conv(conv, pixels - 1).weight, conv.weight, 1e-3)


def test_from_conv_with_fewer_atoms_is_the_best_approximation_of_that_rank():
    conv = nn.Conv2d(4, 8, 3).double()
    singular = torch.linalg.svdvals(conv.weight.detach().reshape(32, 9))
    errors = []
    for num_atoms in range(1, 10):
        layer = AtomConv2d.from_conv(conv, num_atoms)
        errors.append(float((layer.weight - conv.weight).detach().norm()))
        assert errors[-1] == pytest.approx(float(singular[num_atoms:].norm()), abs=1e-12)  # Eckart and Young
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[4] > 0.01


def test_from_conv_keeps_geometry_bias_dtype_and_training_flags():
    conv = nn.Conv2d(4, 8, 3, 2, "valid", 2, 2, True, "reflect", dtype=torch.float64).eval()
    conv.bias.requires_grad_(False)
    layer = AtomConv2d.from_conv(conv)
    assert repr(layer.to_conv()) == repr(conv)
    assert layer.atoms.dtype == torch.float64
    assert not layer.training
    assert not layer.bias.requires_grad
    assert layer.atoms.requires_grad
    assert layer.coefficients.requires_grad
    assert torch.equal(layer.bias, conv.bias)


def test_surplus_atoms_change_nothing_but_can_be_trained():
    conv = nn.Conv2d(4, 8, 3)
    layer = AtomConv2d.from_conv(conv, num_atoms=12)
    assert layer.atoms.shape == (12, 3, 3)
    assert close(layer.weight, conv.weight)
    before = layer.weight.detach().clone()
    layer(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert bool((layer.coefficients.grad[..., 9:] != 0).any())
    with torch.no_grad():
        layer.coefficients[..., 9:] += 1
    assert not close(layer.weight, before, 1e-2)


def test_from_conv_makes_no_more_atoms_than_filters():
    conv = nn.Conv2d(1, 4, 3)
    layer = AtomConv2d.from_conv(conv, num_atoms=9)
    assert layer.num_atoms == 4
    assert close(layer.weight, conv.weight)


def test_a_new_atom_layer_has_the_initial_variance_of_conv2d():
    for num_atoms in (3, 9, 20):
        layer = AtomConv2d(32, 64, 3, num_atoms=num_atoms)
        expected = nn.Conv2d(32, 64, 3).weight.std().item()
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert layer.bias.abs().max().item() <= 1 / math.sqrt(32 * 9)


def test_an_atom_layer_loads_its_own_state_dict():
    layer, other = (AtomConv2d(3, 4, 3, num_atoms=5) for _ in range(2))
    x = torch.randn(1, 3, 5, 5)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    assert set(layer.state_dict()) == {"coefficients", "atoms", "bias"}
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-13)]
)
def test_an_atom_layer_works_in_other_precisions(dtype, tolerance):
    conv = nn.Conv2d(3, 4, 3, dtype=dtype)
    layer = AtomConv2d.from_conv(conv)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert close(layer.weight, conv.weight, tolerance)
    fresh = AtomConv2d(3, 4, 3, dtype=dtype)
    out = fresh(torch.randn(1, 3, 5, 5, dtype=dtype))
    assert out.dtype == dtype
    assert bool(out.isfinite().all())
    before = fresh.weight.detach()
    fresh.fix_gauge()
    assert close(fresh.weight, before, 2 * tolerance)


def test_an_atom_layer_can_be_made_on_the_meta_device():
    layer = AtomConv2d(3, 4, 3, device="meta")
    assert layer(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_atoms": 0}, "num_atoms is 0; it must be at least 1"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": -1}, "out_channels is -1"),
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"kernel_size": (3,)}, "kernel_size is .3,.; it must be one side or"),
        ({"groups": 3}, "groups is 3; it must divide in_channels=4 and out_channels=8"),
        ({"groups": 0}, "groups is 0"),
        ({"padding": "full"}, "padding is 'full'; known words: same, valid"),
        ({"padding": "same", "stride": 2}, "padding 'same' works with stride 1 only"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'; known: zeros, reflect, replicate, circular"),
    ],
)
def test_wrong_arguments_of_an_atom_layer_are_named_in_the_error(arguments, message):
    with pytest.raises(FsclError, match=message):
        AtomConv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **arguments})
