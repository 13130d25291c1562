"""What makes networks and learners, by name; and which of them a stranger's recipe may name.

An installed library does more than build networks: ``torch.hub:load`` runs code from anywhere. So a recipe that nobody
vouches for may name networks of libraries of networks, and learners of Avalanche and of fscl, and nothing else.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import nn

from fscl.errors import FsclError

__all__ = [
    "LIBRARIES",
    "NotTrustedError",
    "check_learner",
    "check_network",
    "current_folder",
    "fresh",
    "in_words",
    "is_users",
    "learner_class",
    "network_factory",
]

# what a network's name begins with, and the module in which a library has its networks
LIBRARIES = {
    "torchvision": "torchvision.models",
    "pytorchcv": "pytorchcv.models",
    "avalanche": "avalanche.models",
    "timm": "timm.models",
}
LEARNERS = ("avalanche.training", "fscl.continual")
CLASSES = ("num_classes", "nclasses", "n_classes")  # how libraries call the number of classes
OTHERS = ("name", "model_name")  # of what a function would look up and call
KNOWN = f"convnet, {', '.join(f'{library}:NAME' for library in LIBRARIES)}"


class NotTrustedError(FsclError):
    """A recipe that nobody vouches for names what it may not."""


def network_factory(name: str) -> Callable[..., Any]:
    """What makes a network.

    Args:
        name: ``torchvision:resnet18``, ``pytorchcv:resnet20_cifar10``, ``avalanche:SlimResNet18``, ``timm:NAME``; or
            ``package.module:callable`` or ``folder/file.py:callable`` of your own, installed or in the current folder.

    Raises:
        FsclError: there is none of that name.

    Example:
        >>> network_factory("torchvision:resnet18").__name__
        'resnet18'
    """
    library, _, attribute = name.partition(":")
    if not library or not attribute:
        raise FsclError(f"unknown network {name!r}; known: {KNOWN}, or package.module:callable")
    if library in ("pytorchcv", "timm"):  # which look their networks up by name
        return _registered(library, attribute)
    known = f"known: {KNOWN}, or package.module:callable"
    made = _find(LIBRARIES.get(library, _module_of(library)), attribute, f"network {name!r}", known)
    if not callable(made):
        raise FsclError(
            f"network {name!r} is {type(made).__name__}; a callable that returns a torch.nn.Module would do"
        )
    return made


def is_users(name: str) -> bool:
    """Whether a network is of a module of the user's own, not of a library's."""
    library = name.partition(":")[0]
    return name != "convnet" and not _within(LIBRARIES.get(library, library), tuple(LIBRARIES.values()))


def fresh(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments by which a factory is told to download no weights.

    Example:
        >>> fresh(network_factory("avalanche:MobilenetV1"))
        {'pretrained': False}
    """
    would = [p.name for p in inspect.signature(make).parameters.values() if p.default is not p.empty and p.default]
    return {name: None if name.startswith("weights") else False for name in would if _is_weights(name)}


def learner_class(class_path: str) -> Any:
    """The object at a dotted path, which may be in the current folder.

    Raises:
        FsclError: there is none.
    """
    module, _, name = class_path.rpartition(".")
    known = "expected a dotted path such as avalanche.training.EWC or fscl.continual.AtomSwapping"
    if not module or not all(part.isidentifier() for part in class_path.split(".")):
        raise FsclError(f"unknown strategy class {class_path!r}; {known}")
    return _find(module, name, f"strategy class {class_path!r}", known)


def check_network(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a network that is not of a library of networks, or ours, or that would be given weights to download.

    Nothing but such a library is imported for it.

    Raises:
        FsclError: it is refused.
    """
    known = f"a recipe may name {KNOWN}"
    if name != "convnet":
        library, _, attribute = name.partition(":")
        module = LIBRARIES.get(library, library)
        if not _within(module, (*LIBRARIES.values(), "fscl.continual")):
            raise NotTrustedError(f"model.name = {name!r}: {known}")
        made = network_factory(name)
        if library not in ("pytorchcv", "timm") and not _is_constructor(made, attribute):
            raise NotTrustedError(f"model.name = {name!r} is no network: {known}")
    _check_arguments("model.args", arguments)


def check_learner(class_path: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a learner that is neither Avalanche's nor ours; nothing else is imported for it.

    Raises:
        FsclError: it is refused.
    """
    known = f"a recipe may name strategies of {' and '.join(LEARNERS)}"
    if not _within(class_path, LEARNERS):
        raise NotTrustedError(f"class = {class_path!r}: {known}")
    found = learner_class(class_path)
    if not (isinstance(found, type) and issubclass(found, BaseSGDTemplate) and _within(found.__module__, LEARNERS)):
        raise NotTrustedError(f"class = {class_path!r} is not an Avalanche strategy: {known}")
    _check_arguments("args", arguments)


@contextmanager
def current_folder() -> Iterator[None]:
    """Modules are found there, too, as ``python`` itself finds them; an installed command does not look there."""
    sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove("")


def _module_of(library: str) -> str:
    """A file is a module by another name."""
    return library.removesuffix(".py").replace("/", ".") if library.endswith(".py") else library


def _find(module: str, attribute: str, what: str, known: str) -> Any:
    """An attribute of a module, which is looked for in the current folder unless it is one of those that all trust."""
    ours = _within(module, (*LIBRARIES.values(), *LEARNERS))
    try:
        if ours:
            found = importlib.import_module(module)
        else:
            with current_folder():
                found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            where = "installed" if ours else "in the current folder, nor installed"
            raise FsclError(f"unknown {what}: there is no module {error.name!r} {where}") from error
        raise FsclError(f"{what}: {module} cannot be imported: {in_words(error)}") from error
    except Exception as error:  # a user's own module can fail in any way
        raise FsclError(f"{what}: {module} cannot be imported: {in_words(error)}") from error
    made = getattr(found, attribute, None)
    if made is None:
        has = [name for name, item in vars(found).items() if getattr(item, "__module__", "") == module]
        raise FsclError(
            f"unknown {what}; {known if ours else f'{module} has ' + (', '.join(has[:8]) or 'no callables')}"
        )
    return made


def _registered(library: str, attribute: str) -> Callable[..., Any]:
    try:
        if library == "pytorchcv":
            from pytorchcv.model_provider import _models, get_model

            known, make = attribute.lower() in _models, get_model
        else:
            import timm

            known, make = timm.is_model(attribute), partial(timm.create_model, pretrained=False)
    except ImportError as error:
        raise FsclError(f"unknown network '{library}:{attribute}': {library} is not installed") from error
    if not known:
        raise FsclError(f"unknown network '{library}:{attribute}'; {library} has none of that name; known: {KNOWN}")
    return partial(make, attribute)


def _is_constructor(made: Any, name: str) -> bool:
    """Whether it is a class of networks, or a function that makes one, which says so by what it must be given."""
    if name.startswith("_") or not _within(getattr(made, "__module__", ""), (*LIBRARIES.values(), "fscl.continual")):
        return False
    if isinstance(made, type):
        return issubclass(made, nn.Module)
    if not inspect.isfunction(made) or _within(made.__module__, ("fscl.continual",)):
        return False
    parameters = inspect.signature(made).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return needed <= set(CLASSES) and not any(p.name in OTHERS for p in parameters)


def _check_arguments(section: str, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if _is_weights(name) and value:
            raise NotTrustedError(
                f"{section}.{name} = {value!r}: a recipe may not name weights to load; its networks are fresh"
            )


def _is_weights(name: str) -> bool:
    """What libraries call weights that they would download or read, and where they would put them."""
    return "pretrained" in name or name in ("weights", "weights_backbone", "checkpoint_path", "cache_dir", "root")


def _within(path: str, packages: tuple[str, ...]) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in packages)


def in_words(error: Exception) -> str:
    """
    >>> in_words(KeyError("width")), in_words(ValueError("odd width")), in_words(AssertionError())
    ("KeyError: 'width'", 'ValueError: odd width', 'AssertionError')
    """
    return f"{type(error).__name__}: {error}".removesuffix(": ")
