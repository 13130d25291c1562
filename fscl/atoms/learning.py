"""What a training loop does to a network between tasks: freeze what tasks share, train what belongs to a task."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fscl.atoms.layers import atom_layers
from fscl.errors import FsclError

__all__ = ["check_finite", "freeze", "freeze_coefficients", "resettable", "train_only"]


def freeze_coefficients(model: nn.Module, scale: float | None = None) -> None:
    """Fixes the gauge of every atom layer and stops training its coefficients; the function computed stays the same.

    :class:`fscl.AtomBank` calls it, and also freezes all else that tasks share.

    Args:
        model: a network with atom layers.
        scale: see :meth:`fscl.atoms.AtomConv2d.fix_gauge`.

    Raises:
        FsclError: the model has no atom layers, a parameter is not finite, coefficients or atoms are computed from
            other parameters, or two layers share their coefficients but not their atoms, or the reverse.

    Example:
        >>> from fscl.atoms import AtomConv2d
        >>> model = nn.Sequential(AtomConv2d(1, 8, 3, num_atoms=4))
        >>> freeze_coefficients(model)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.atoms', '0.bias']
    """
    layers = atom_layers(model)
    if not layers:
        raise FsclError(f"{type(model).__name__} has no atom layers; call fscl.decompose on it first")
    check_finite(dict(model.named_parameters()))
    used: dict[int, tuple[str, tuple[int, int]]] = {}
    for name, layer in layers.items():
        parts = {"coefficients": layer.coefficients, "atoms": layer.atoms}
        for part, factor in parts.items():
            if part not in layer._parameters:
                raise FsclError(
                    f"{name}.{part} is computed by pruning or a parametrisation; remove it first (prune.remove, "
                    "parametrize.remove_parametrizations)"
                )
            pair = (id(layer.coefficients), id(layer.atoms))
            other, other_pair = used.setdefault(id(factor), (name, pair))
            if other_pair != pair:
                raise FsclError(
                    f"{other} and {name} share {part} but not their other factor, so that no gauge fits both; give "
                    "each its own"
                )
    for layer in layers.values():
        layer.fix_gauge(scale)
        freeze(layer.coefficients)


def check_finite(entries: Mapping[str, Tensor]) -> None:
    """Raises :class:`FsclError` for a NaN or an infinite parameter, which training leaves when it diverges."""
    for name, tensor in entries.items():
        if not tensor.is_floating_point():
            continue
        # buffers may be masks of -inf
        is_good = tensor.isfinite() if isinstance(tensor, nn.Parameter) else ~tensor.isnan()
        if not bool(is_good.all()):
            raise FsclError(
                f"{name} is not finite: training has diverged; a smaller learning rate or clipped gradients may help"
            )


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Sets ``requires_grad`` of these parameters, freezes all other parameters, and drops all gradients."""
    trained = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        freeze(parameter)
        parameter.requires_grad_(id(parameter) in trained)


def freeze(parameter: nn.Parameter) -> None:
    """Stops training a parameter. Its gradient goes too: with one, an optimizer still applies momentum and decay."""
    parameter.requires_grad_(False)
    parameter.grad = None


def resettable(model: nn.Module, heads: Sequence[str]) -> list[Any]:
    """The modules of the heads that hold parameters. All of them can initialise themselves.

    Raises:
        FsclError: a head is a plain parameter, or holds a module that cannot initialise itself.
    """
    resettable_modules = []
    for name in heads:
        try:
            modules = list(model.get_submodule(name).modules())
        except AttributeError:
            modules = []
        holders = [module for module in modules if any(True for _ in module.parameters(recurse=False))]
        # weight norm, spectral norm and pruning compute `weight`, so initialising it would have no effect
        weights_are_stored = all(isinstance(getattr(module, "weight", None), nn.Parameter | None) for module in holders)
        can_reset = all(callable(getattr(module, "reset_parameters", None)) for module in holders)
        if not holders or not weights_are_stored or not can_reset:
            raise FsclError(
                f"head {name!r} cannot initialise itself (reset_parameters); initialise it yourself, and begin the "
                "task with fresh_head=False"
            )
        resettable_modules += holders
    return resettable_modules
