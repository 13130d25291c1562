"""Turns any convolutional network into a network of atom layers, and back."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fscl.atoms.entries import within
from fscl.atoms.layers import AtomConv2d
from fscl.atoms.replacing import copy_with_replaced
from fscl.errors import FsclError

__all__ = ["Decomposition", "decompose", "recompose", "with_atom_layers"]


@dataclass(frozen=True)
class Decomposition:
    """A network of atom layers, and how well it approximates the original.

    Attributes:
        model: a copy of the original whose spatial convolutions are :class:`AtomConv2d`.
        errors: per atom layer, the relative error ``|W - coefficients x atoms| / |W|`` (Frobenius norm).
    """

    model: nn.Module
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """The largest relative error of a layer."""
        return max(self.errors.values())


def decompose(model: nn.Module, num_atoms: int = 9, skip: Collection[str] = ()) -> Decomposition:
    """Writes every spatial convolution of a network as coefficients times atoms, in a copy of the network.

    Stride, padding, dilation, groups, bias, device and dtype are kept. ``num_atoms`` is for a 3x3 kernel; a larger
    kernel gets more in proportion, ``ceil(num_atoms * height * width / 9)``. So from 9 atoms on the network is exact to
    float precision, whatever its kernels. 1x1 convolutions have no spatial part and stay as they are.

    The atom layer keeps the hooks and the attributes of its convolution. Convolutions that share one weight share
    coefficients and atoms. If the network also holds a convolution in a list, a dict or a plain attribute, the atom
    layer is put there as well.

    Args:
        model: any module with ``nn.Conv2d`` layers.
        num_atoms: atoms of a layer whose kernels are 3x3 or smaller.
        skip: dotted names of modules to leave as they are, with everything below them.

    Raises:
        FsclError: there is nothing to decompose, a name in ``skip`` is unknown, the network cannot be copied, filters
            are not finite real numbers, or a convolution cannot be replaced. It cannot be replaced if its class
            overrides ``forward``, if it is lazy, if its weight is parametrised or another kind of module uses it, or if
            the network also holds it where it cannot be exchanged, as in a tuple or a function.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> result = decompose(net, num_atoms=9)
        >>> list(result.errors), result.error < 1e-6
        (['0'], True)
    """
    names = {name for name, _ in model.named_modules()}
    if unknown := sorted(set(skip) - names):
        raise FsclError(f"skip names no module {unknown[0]!r}; modules: {', '.join(sorted(names - {''}))}")
    if type(model) is nn.Conv2d:
        raise FsclError("the model is a single nn.Conv2d; use AtomConv2d.from_conv")
    convolutions = [name for name, m in model.named_modules() if not within(name, skip) and _is_spatial(name, m)]
    _check_filters(model, convolutions)
    errors: dict[str, float] = {}
    layers: dict[int, AtomConv2d] = {}  # by the id of the weight that they replace

    def atoms_of(name: str, conv: nn.Module) -> nn.Module | None:
        if name not in convolutions:
            return None
        assert isinstance(conv, nn.Conv2d)
        layer = AtomConv2d.from_conv(conv, max(num_atoms, math.ceil(num_atoms * math.prod(conv.kernel_size) / 9)))
        tied = layers.setdefault(id(conv.weight), layer)
        layer.coefficients, layer.atoms = tied.coefficients, tied.atoms
        assert conv.bias is None or isinstance(conv.bias, nn.Parameter)
        layer.register_parameter("bias", conv.bias)
        errors[name] = _relative_error(layer.weight, conv.weight)
        if not math.isfinite(errors[name]):
            raise FsclError(f"{name}: its filters cannot be written as atoms in {conv.weight.dtype}; use float32")
        return layer

    result = copy_with_replaced(model, atoms_of)
    if not errors and not any(isinstance(m, AtomConv2d) for m in result.modules()):
        raise FsclError(
            f"{type(model).__name__} has no spatial convolutions (nn.Conv2d with a kernel larger than 1x1) to decompose"
        )
    return Decomposition(result, errors)


def with_atom_layers(model: nn.Module, counts: Mapping[str, int]) -> nn.Module:
    """A copy of the model with atom layers in place of some convolutions, to be filled from a bank.

    Args:
        model: a network of ordinary convolutions.
        counts: name of a convolution -> its number of atoms.

    Raises:
        FsclError: the network has no convolution of such a name, or cannot be copied.
    """
    modules = dict(model.named_modules())
    if astray := next((name for name in counts if not isinstance(modules.get(name), nn.Conv2d)), None):
        raise FsclError(
            f"{type(model).__name__} has no convolution {astray!r}; give the network whose atoms the bank holds"
        )
    _check_filters(model, counts)

    def atoms_of(name: str, conv: nn.Module) -> nn.Module | None:
        if name not in counts:
            return None
        assert isinstance(conv, nn.Conv2d)
        return AtomConv2d.from_conv(conv, counts[name])

    return copy_with_replaced(model, atoms_of)


def recompose(model: nn.Module) -> nn.Module:
    """A copy of the model with ordinary convolutions in place of atom layers. It computes the same function.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3))
        >>> recompose(decompose(net).model)
        Sequential(
          (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    if isinstance(model, AtomConv2d):
        return model.to_conv()
    convolutions: dict[tuple[int, int], nn.Conv2d] = {}  # by the ids of the parameters that they replace

    def conv_of(_: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, AtomConv2d):
            return None
        conv = layer.to_conv()
        conv.weight = convolutions.setdefault((id(layer.coefficients), id(layer.atoms)), conv).weight
        conv.bias = layer.bias
        return conv

    return copy_with_replaced(model, conv_of)


def _is_spatial(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.LazyConv2d):
        raise FsclError(f"{name}: a lazy convolution has no filters yet; run the model once, then decompose it")
    if not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1):
        return False
    # spectral norm, weight norm and pruning, in their old and new forms, remove `weight` from the parameters
    if hasattr(module, "parametrizations") or "weight" not in module._parameters:
        raise FsclError(f"{name}: its weight is parametrised; remove the parametrisation first, or add it to skip")
    cls = type(module)
    ordinary = (
        cls.forward is nn.Conv2d.forward
        and cls._conv_forward is nn.Conv2d._conv_forward
        and cls.__call__ is nn.Module.__call__
    )
    if not ordinary or not {"forward", "_conv_forward"}.isdisjoint(vars(module)):
        raise FsclError(f"{name}: {cls.__name__} overrides nn.Conv2d's forward; add it to skip")
    return True


def _check_filters(model: nn.Module, convolutions: Collection[str]) -> None:
    """Refuses filters that are not finite real numbers, and filters that another kind of module also uses."""
    places: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for place, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter.data_ptr(), []).append((place, parameter))
    modules = {model.get_submodule(name) for name in convolutions}  # a module may have further names
    for name in convolutions:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        if weight.is_meta or not weight.is_floating_point():
            numbers = "on the meta device, without values" if weight.is_meta else str(weight.dtype)
            raise FsclError(f"{name}: its filters are {numbers}; they must be floating-point values")
        if not bool(weight.isfinite().all()):
            raise FsclError(f"{name}: its filters are not all finite; repair the network, or add the layer to skip")
        for place, parameter in places[weight.data_ptr()] if weight.numel() else []:
            if parameter is not weight:
                raise FsclError(
                    f"{name}: its weight and {place} are two parameters in the same memory; make them one parameter"
                )
            owner, _, leaf = place.rpartition(".")
            if leaf != "weight" or model.get_submodule(owner) not in modules:
                raise FsclError(f"{name}: {place} is the same parameter as its weight; add {name!r} to skip")


@torch.no_grad()
def _relative_error(approximation: Tensor, filters: Tensor) -> float:
    """``|approximation - filters| / |filters|``, Frobenius norms in float64.

    Values are divided by the largest first, as the squares of tiny or huge filters are outside the range of float64.
    """
    filters, approximation = filters.double(), approximation.double()
    largest = float(filters.abs().max()) if filters.numel() else 0.0
    if largest == 0:
        return 0.0
    return float(((approximation - filters) / largest).norm() / (filters / largest).norm())
