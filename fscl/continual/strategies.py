"""Avalanche strategies by class path; and which of them the recipe of a stranger may name."""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avalanche.training.templates.base_sgd import BaseSGDTemplate

from fscl.errors import FsclError
from fscl.factories import NotTrustedError, check_arguments, import_named, is_within

__all__ = ["Learner", "check_learner", "learner_class", "strategy_class"]

LEARNERS = ("avalanche.training", "fscl.continual")

PLAIN = {int, float, bool, str, type(None)}


@dataclass(frozen=True)
class Learner:
    """A strategy by the dotted path of its class, and its own arguments."""

    class_path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def strategy_class(class_path: str, arguments: Mapping[str, Any] | None = None) -> type[BaseSGDTemplate]:
    """The strategy class at a dotted path, checked to take the arguments.

    Raises:
        FsclError: there is no such class, it is no Avalanche strategy, or an argument is unknown.

    Example:
        >>> strategy_class("avalanche.training.EWC", {"ewc_lambda": 1.0}).__name__
        'EWC'
    """
    found = learner_class(class_path)
    if not (isinstance(found, type) and issubclass(found, BaseSGDTemplate)):
        raise FsclError(f"{class_path} is not an Avalanche strategy (a subclass of BaseSGDTemplate)")
    own = list(inspect.signature(found).parameters.values())
    taken = {p.name for p in own if p.kind is not p.VAR_KEYWORD}
    reserved = {"model", "optimizer", "criterion", "plugins", "evaluator", "device", "train_mb_size", "train_epochs"}
    reserved |= {"eval_mb_size", "eval_every"}
    for argument in arguments or {}:
        if argument in reserved or argument not in taken:
            known = ", ".join(sorted(taken - reserved)) or "none"
            raise FsclError(f"{class_path} takes no recipe argument {argument!r}; arguments: {known}")
    _check_types(class_path, found, arguments or {})
    return found


def _check_types(class_path: str, kind: type, arguments: Mapping[str, Any]) -> None:
    """Where a class says that an argument is a number, a truth value or a text, no other is one: it would fail late."""
    try:
        hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]  # whatever a user's class has there
    except Exception:  # names that are imported for type checkers alone
        return
    for name, value in arguments.items():
        kinds = set(typing.get_args(hints.get(name)) or [hints.get(name)])
        wanted = kinds | {int} if float in kinds else kinds
        if kinds <= PLAIN and type(value) not in wanted:
            said = " or ".join(sorted(kind.__name__ for kind in kinds - {type(None)}))
            raise FsclError(f"{class_path}: args.{name} = {value!r} is {type(value).__name__}; {said} would do")


def learner_class(class_path: str) -> Any:
    """The object at a dotted path, which may be in the current folder.

    Raises:
        FsclError: there is none.
    """
    module, _, name = class_path.rpartition(".")
    known = "expected a dotted path such as avalanche.training.EWC or fscl.continual.AtomSwapping"
    if not module or not all(part.isidentifier() for part in class_path.split(".")):
        raise FsclError(f"unknown strategy class {class_path!r}; {known}")
    return import_named(module, name, f"strategy class {class_path!r}", known, LEARNERS)


def check_learner(class_path: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a learner that is neither Avalanche's nor ours; nothing else is imported for it.

    Raises:
        FsclError: it is refused.
    """
    known = f"a recipe may name strategies of {' and '.join(LEARNERS)}"
    if not is_within(class_path, LEARNERS):
        raise NotTrustedError(f"class = {class_path!r}: {known}")
    found = learner_class(class_path)
    if not (isinstance(found, type) and issubclass(found, BaseSGDTemplate) and is_within(found.__module__, LEARNERS)):
        raise NotTrustedError(f"class = {class_path!r} is not an Avalanche strategy: {known}")
    check_arguments("args", arguments)
