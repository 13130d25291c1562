"""What a training loop does to a network between tasks: freeze what tasks share, train what belongs to a task."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.entries import live_state, within
from fscl.errors import FsclError

__all__ = [
    "check_head",
    "check_names",
    "check_shared",
    "check_ties",
    "freeze",
    "own_parameters",
    "reset",
    "resettable",
    "train_only",
]


def own_parameters(
    model: nn.Module, shared: Collection[str], heads: Sequence[str], head: Sequence[str] | None = None
) -> list[nn.Parameter]:
    """The parameters that belong to one task, each once.

    Args:
        model: the network.
        shared: names of the entries that all tasks share.
        heads: modules or entries that hold the heads of all tasks.
        head: the heads of this task; None takes all heads.

    Raises:
        FsclError: the network lacks a shared entry, or ``head`` names something that is not a head.
    """
    state = live_state(model)
    if missing := next((name for name in shared if name not in state), None):
        raise FsclError(
            f"{type(model).__name__} has no entry {missing!r}; give the network that the bank was made with, not a "
            "wrapper of it"
        )
    check_head(model, heads, head)
    frozen = {id(state[name]) for name in shared}  # by identity, since a tied parameter has several names
    parameters = {
        id(parameter): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) not in frozen and (head is None or within(name, head) or not within(name, heads))
    }
    return list(parameters.values())


def check_head(model: nn.Module, heads: Sequence[str], head: Sequence[str] | None) -> None:
    """Refuses names that are not heads of the network."""
    state = live_state(model)
    check_names("head", head or [])
    for name in head or []:
        if not within(name, heads) or not any(within(entry, [name]) for entry in state):
            raise FsclError(f"{name!r} is no head of {type(model).__name__}; its heads: {', '.join(heads) or 'none'}")


def check_names(argument: str, names: Collection[str]) -> None:
    """Refuses a text where a list of names is expected: each of its letters would be taken for a name."""
    if isinstance(names, str):
        raise FsclError(f"{argument} is the text {names!r}; a list of names would do, such as [{names!r}]")


def check_shared(state: Mapping[str, Tensor], shared: Mapping[str, Tensor], layers: Collection[str]) -> None:
    """Refuses a network whose shared entries differ from those that the stored tasks were learned with.

    Args:
        state: the tensors of the network.
        shared: the bank's shared tensors, which they must equal.
        layers: the atom layers, whose coefficients are checked first.
    """
    coefficients = {f"{layer}.coefficients" for layer in layers}
    for name in sorted(shared, key=lambda name: name not in coefficients):
        expected, actual = shared[name], state.get(name)
        if actual is not None and expected.dtype == actual.dtype and torch.equal(actual, expected.to(actual.device)):
            continue
        advice = (
            "make a new bank for a network with other coefficients"
            if name in coefficients
            else "name it in the bank's `own`, so that each task keeps its own"
        )
        raise FsclError(
            f"{name} of this network differs from the bank's, and all tasks share it: train only "
            f"bank.parameters(model), or {advice}"
        )


def check_ties(state: Mapping[str, Tensor], shared: Collection[str]) -> None:
    """Refuses a tied parameter that is shared under one name and belongs to a task under another."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        if len({name in shared for name in tied}) > 1:
            raise FsclError(
                f"{' and '.join(tied)} are one parameter, which tasks would both share and own; give each name a "
                "parameter of its own, or list all of these names in `own`"
            )


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Sets ``requires_grad`` of these parameters, freezes all other parameters, and drops all gradients."""
    trained = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        freeze(parameter)
        if id(parameter) in trained:
            parameter.requires_grad_(True)


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


def reset(modules: Sequence[Any]) -> None:
    for module in modules:
        module.reset_parameters()
