"""What a training loop does to a network between tasks: freeze what tasks share, train what is a task's own."""

from collections.abc import Collection, Sequence

from torch import nn

from fscl.atoms.entries import within
from fscl.errors import FsclError

__all__ = ["freeze", "own_parameters", "reset_heads", "train_only"]


def own_parameters(
    model: nn.Module, shared: Collection[str], heads: Sequence[str], head: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters that belong to one task, by name.

    Args:
        model: the network.
        shared: names of the entries that all tasks share.
        heads: modules or entries that hold the heads of all tasks.
        head: which of them is this task's; None takes all.
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name not in shared and (head is None or within(name, head) or not within(name, heads))
    }


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Sets ``requires_grad`` of these parameters, and freezes all others."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
        else:
            freeze(parameter)


def freeze(parameter: nn.Parameter) -> None:
    """Stops training a parameter; without a gradient no optimizer moves it, neither by momentum nor by decay."""
    parameter.requires_grad_(False)
    parameter.grad = None


def reset_heads(model: nn.Module, heads: Sequence[str]) -> None:
    """Initialises heads anew, by the ``reset_parameters`` of their modules.

    Raises:
        FsclError: a head is a plain parameter, or a module that cannot initialise itself.
    """
    for name in heads:
        try:
            modules = list(model.get_submodule(name).modules())
        except AttributeError:
            modules = []
        holders = [module for module in modules if any(True for _ in module.parameters(recurse=False))]
        if not holders or not all(callable(getattr(module, "reset_parameters", None)) for module in holders):
            raise FsclError(
                f"head {name!r} has no reset_parameters; initialise it yourself, and begin the task with "
                "fresh_head=False"
            )
        for module in holders:
            module.reset_parameters()  # type: ignore[operator]  # it is callable
