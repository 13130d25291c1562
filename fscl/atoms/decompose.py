"""Any convolutional network as a network of atom layers, and back."""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn

from fscl.atoms.entries import within
from fscl.atoms.layers import AtomConv2d
from fscl.errors import FsclError

__all__ = ["Decomposition", "decompose", "recompose"]


@dataclass(frozen=True)
class Decomposition:
    """A network of atom layers and how well it stands for the original.

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
    """Writes every spatial convolution of a network as coefficients times atoms; the original is left as it was.

    Stride, padding, dilation, groups, bias, device and dtype are kept. ``num_atoms`` is meant for a 3x3 kernel; a
    larger one gets in proportion, ``ceil(num_atoms * height * width / 9)``. So the network is exact to float precision
    from 9 atoms on, whatever its kernels. 1x1 convolutions have no spatial part and stay as they are.

    Args:
        model: any module with ``nn.Conv2d`` layers.
        num_atoms: atoms of a layer with 3x3 kernels, or smaller ones.
        skip: dotted names of modules to leave as they are, with all below them.

    Raises:
        FsclError: there is nothing to decompose, a name in ``skip`` is unknown, a convolution cannot be replaced (its
            class overrides ``forward``, it is lazy, or its weight is parametrised), or the network cannot be copied.

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
    for name, module in model.named_modules():
        if not within(name, skip):
            is_spatial(name, module)  # refuses before anything is done
    try:
        result = copy.deepcopy(model)
    except RuntimeError as error:
        raise FsclError(f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]})") from error
    errors: dict[str, float] = {}

    def atoms_of(name: str, conv: nn.Module) -> nn.Module | None:
        if within(name, skip) or not is_spatial(name, conv):
            return None
        assert isinstance(conv, nn.Conv2d)
        layer = AtomConv2d.from_conv(conv, max(num_atoms, math.ceil(num_atoms * math.prod(conv.kernel_size) / 9)))
        norm = float(conv.weight.detach().norm())
        errors[name] = float((layer.weight - conv.weight).detach().norm()) / norm if norm else 0.0
        return layer

    _replace(result, atoms_of)
    if not errors and not any(isinstance(m, AtomConv2d) for m in result.modules()):
        raise FsclError(
            f"{type(model).__name__} has no spatial convolutions (nn.Conv2d with a kernel larger than 1x1) to decompose"
        )
    return Decomposition(result, errors)


def recompose(model: nn.Module) -> nn.Module:
    """A copy of the model with ordinary convolutions in place of atom layers; the same function.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3))
        >>> recompose(decompose(net).model)
        Sequential(
          (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    if isinstance(model, AtomConv2d):
        return model.to_conv()
    result = copy.deepcopy(model)
    _replace(result, lambda _, module: module.to_conv() if isinstance(module, AtomConv2d) else None)
    return result


def is_spatial(name: str, module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or isinstance(module, nn.LazyConv2d):
        if isinstance(module, nn.LazyConv2d):
            raise FsclError(f"{name}: a lazy convolution has no filters yet; run the model once, then decompose it")
        return False
    if module.kernel_size == (1, 1):
        return False
    # spectral norm, weight norm and pruning, old and new, all take the weight out of the parameters
    if hasattr(module, "parametrizations") or "weight" not in module._parameters:
        raise FsclError(f"{name}: its weight is parametrised; remove the parametrisation first, or add it to skip")
    if type(module).forward is not nn.Conv2d.forward or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        raise FsclError(f"{name}: {type(module).__name__} overrides nn.Conv2d's forward; add it to skip")
    return True


def _replace(model: nn.Module, new: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Puts ``new(name, module)`` in place of each module for which it is not None, once for modules used twice."""
    done: dict[int, nn.Module | None] = {}
    for path, parent in list(model.named_modules(remove_duplicate=True)):
        for key, child in list(parent._modules.items()):  # named_children() would leave out a second name
            if child is None:
                continue
            if id(child) not in done:
                done[id(child)] = new(f"{path}.{key}" if path else key, child)
            replacement = done[id(child)]
            if replacement is not None:
                setattr(parent, key, replacement)
