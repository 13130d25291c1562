"""Avalanche strategies by class path."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from avalanche.training.templates.base_sgd import BaseSGDTemplate

from fscl.errors import FsclError

__all__ = ["strategy_class"]


def strategy_class(class_path: str, arguments: Mapping[str, Any] | None = None) -> type[BaseSGDTemplate]:
    """The strategy class at a dotted path, checked to take the arguments.

    Raises:
        FsclError: there is no such class, it is no Avalanche strategy, or an argument is unknown.

    Example:
        >>> strategy_class("avalanche.training.EWC", {"ewc_lambda": 1.0}).__name__
        'EWC'
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FsclError(
            f"unknown strategy class {class_path!r} ({error}); expected a dotted path such as avalanche.training.EWC "
            "or fscl.continual.AtomSwapping"
        ) from error
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
    return found
