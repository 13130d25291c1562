"""Avalanche strategies by class path, and the check that a recipe names only strategies that are safe to run."""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avalanche.training.templates.base_sgd import BaseSGDTemplate

from fscl.errors import FsclError
from fscl.factories import NotTrustedError, check_arguments, import_named, is_within

__all__ = ["Learner", "check_learner", "learner_class", "strategy_class"]

ALLOWED_PACKAGES = ("avalanche.training", "fscl.continual")

CHECKED_TYPES = {int, float, bool, str, type(None)}


@dataclass(frozen=True)
class Learner:
    """The dotted path of a strategy's class, and the arguments that a recipe gives it."""

    class_path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def strategy_class(class_path: str, arguments: Mapping[str, Any] | None = None) -> type[BaseSGDTemplate]:
    """The strategy class at a dotted path. Checks that it takes the arguments.

    Raises:
        FsclError: there is no such class, it is not an Avalanche strategy, or an argument is unknown or of the wrong
            type.

    Example:
        >>> strategy_class("avalanche.training.EWC", {"ewc_lambda": 1.0}).__name__
        'EWC'
    """
    strategy = learner_class(class_path)
    if not (isinstance(strategy, type) and issubclass(strategy, BaseSGDTemplate)):
        raise FsclError(f"{class_path} is not an Avalanche strategy (a subclass of BaseSGDTemplate)")
    parameters = inspect.signature(strategy).parameters.values()
    accepted = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    reserved = {"model", "optimizer", "criterion", "plugins", "evaluator", "device", "train_mb_size", "train_epochs"}
    reserved |= {"eval_mb_size", "eval_every"}
    for argument in arguments or {}:
        if argument in reserved or argument not in accepted:
            known = ", ".join(sorted(accepted - reserved)) or "none"
            raise FsclError(f"{class_path} takes no recipe argument {argument!r}; arguments: {known}")
    _check_types(class_path, strategy, arguments or {})
    return strategy


def _check_types(class_path: str, strategy: type, arguments: Mapping[str, Any]) -> None:
    """Checks arguments that the class declares as numbers, truth values or text: a wrong type would fail only later."""
    try:
        hints = typing.get_type_hints(strategy.__init__)  # type: ignore[misc]  # a user's class may have any __init__
    except Exception:  # a name that is imported for type checkers only
        return
    for name, value in arguments.items():
        declared = set(typing.get_args(hints.get(name)) or [hints.get(name)])
        accepted = declared | {int} if float in declared else declared
        if declared <= CHECKED_TYPES and type(value) not in accepted:
            expected = " or ".join(sorted(t.__name__ for t in declared - {type(None)}))
            raise FsclError(f"{class_path}: args.{name} = {value!r} is {type(value).__name__}; {expected} would do")


def learner_class(class_path: str) -> Any:
    """The object at a dotted path. Its module may be in the current folder.

    Raises:
        FsclError: there is no such object.
    """
    module, _, name = class_path.rpartition(".")
    known = "expected a dotted path such as avalanche.training.EWC or fscl.continual.AtomSwapping"
    if not module or not all(part.isidentifier() for part in class_path.split(".")):
        raise FsclError(f"unknown strategy class {class_path!r}; {known}")
    return import_named(module, name, f"strategy class {class_path!r}", known, ALLOWED_PACKAGES)


def check_learner(class_path: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a learner that is not a strategy of Avalanche or fscl. A module of any other package is not imported.

    Raises:
        FsclError: the learner is refused.
    """
    known = f"a recipe may name strategies of {' and '.join(ALLOWED_PACKAGES)}"
    if not is_within(class_path, ALLOWED_PACKAGES):
        raise NotTrustedError(f"class = {class_path!r}: {known}")
    strategy = learner_class(class_path)
    is_strategy = isinstance(strategy, type) and issubclass(strategy, BaseSGDTemplate)
    if not (is_strategy and is_within(strategy.__module__, ALLOWED_PACKAGES)):
        raise NotTrustedError(f"class = {class_path!r} is not an Avalanche strategy: {known}")
    check_arguments("args", arguments)
