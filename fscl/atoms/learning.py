"""What a training loop does to a network between tasks: freeze what tasks share, train what is a task's own."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fscl.atoms.entries import live_state, within
from fscl.errors import FsclError

__all__ = ["check_head", "check_names", "check_ties", "freeze", "own_parameters", "reset", "resettable", "train_only"]


def own_parameters(
    model: nn.Module, shared: Collection[str], heads: Sequence[str], head: Sequence[str] | None = None
) -> list[nn.Parameter]:
    """The parameters that belong to one task, each once.

    Args:
        model: the network.
        shared: names of the entries that all tasks share.
        heads: modules or entries that hold the heads of all tasks.
        head: which of them is this task's; None takes all.

    Raises:
        FsclError: the network lacks a shared entry, or ``head`` names what is no head of it.
    """
    state = live_state(model)
    if missing := next((name for name in shared if name not in state), None):
        raise FsclError(
            f"{type(model).__name__} has no entry {missing!r}; give the network that the bank was made with, not what "
            "wraps it"
        )
    check_head(model, heads, head)
    frozen = {id(state[name]) for name in shared}  # whatever other names they have
    own = {
        id(parameter): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) not in frozen and (head is None or within(name, head) or not within(name, heads))
    }
    return list(own.values())


def check_head(model: nn.Module, heads: Sequence[str], head: Sequence[str] | None) -> None:
    """Refuses names that are of no head of the network."""
    state = live_state(model)
    check_names("head", head or [])
    for name in head or []:
        if not within(name, heads) or not any(within(entry, [name]) for entry in state):
            raise FsclError(f"{name!r} is no head of {type(model).__name__}; its heads: {', '.join(heads) or 'none'}")


def check_names(what: str, names: Collection[str]) -> None:
    """Refuses one text in the place of a list, for its letters would be taken for names."""
    if isinstance(names, str):
        raise FsclError(f"{what} is the text {names!r}; a list of names would do, such as [{names!r}]")


def check_ties(state: Mapping[str, Tensor], shared: Collection[str]) -> None:
    """Refuses a parameter of two names of which one is shared and the other belongs to a task."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        if len({name in shared for name in tied}) > 1:
            raise FsclError(
                f"{' and '.join(tied)} are one parameter, which tasks would both share and own; give each a parameter "
                "of its own, or name all of them in `own`"
            )


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Sets ``requires_grad`` of these parameters, freezes all others, and drops all gradients."""
    trained = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        freeze(parameter)
        if id(parameter) in trained:
            parameter.requires_grad_(True)


def freeze(parameter: nn.Parameter) -> None:
    """Stops training a parameter; without a gradient no optimizer moves it, neither by momentum nor by decay."""
    parameter.requires_grad_(False)
    parameter.grad = None


def resettable(model: nn.Module, heads: Sequence[str]) -> list[Any]:
    """The modules of heads that hold parameters, all of which can initialise themselves.

    Raises:
        FsclError: a head is a plain parameter, or holds a module that cannot.
    """
    found = []
    for name in heads:
        try:
            modules = list(model.get_submodule(name).modules())
        except AttributeError:
            modules = []
        holders = [module for module in modules if any(True for _ in module.parameters(recurse=False))]
        # of weight and spectral norm, and pruning, `weight` is computed, and initialising it does nothing
        plain = all(isinstance(getattr(module, "weight", None), nn.Parameter | None) for module in holders)
        if not holders or not plain or not all(callable(getattr(m, "reset_parameters", None)) for m in holders):
            raise FsclError(
                f"head {name!r} cannot initialise itself (reset_parameters); do so yourself, and begin the task with "
                "fresh_head=False"
            )
        found += holders
    return found


def reset(modules: Sequence[Any]) -> None:
    for module in modules:
        module.reset_parameters()
