"""Finds the callable that builds a network by name, and checks which names a stranger's recipe may use.

Installed libraries do more than build networks: ``torch.hub:load`` runs code from anywhere. So a recipe that is not
trusted may name networks of libraries of networks, and nothing else.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from fscl.catalog import KNOWN, LIBRARIES, module_of, similar_names
from fscl.errors import FsclError

__all__ = [
    "NotTrustedError",
    "check_arguments",
    "check_network",
    "current_folder",
    "fresh",
    "import_named",
    "in_words",
    "is_users",
    "is_within",
    "network_factory",
]

CLASSES = ("num_classes", "nclasses", "n_classes")  # how libraries call the number of classes
OTHERS = ("name", "model_name")  # names of arguments that a function looks up and calls


class NotTrustedError(FsclError):
    """A recipe that is not trusted names something that it may not name."""


def network_factory(name: str) -> Callable[..., Any]:
    """The callable that builds a network.

    Args:
        name: ``torchvision:resnet18``, ``pytorchcv:resnet20_cifar10``, ``avalanche:SlimResNet18``, ``timm:NAME``; or
            ``package.module:callable`` or ``folder/file.py:callable``: your own callable, installed or in the current
            folder.

    Raises:
        FsclError: no callable has this name.

    Example:
        >>> network_factory("torchvision:resnet18").__name__
        'resnet18'
    """
    library, _, attribute = name.partition(":")
    if not library or not attribute:
        raise FsclError(f"unknown network {name!r}; known: {KNOWN}, or package.module:callable")
    if library in ("pytorchcv", "timm"):  # these look up their networks by name
        return _registered(library, attribute)
    known = f"known: {KNOWN}, or package.module:callable"
    factory = import_named(
        LIBRARIES.get(library, module_of(library)), attribute, f"network {name!r}", known, tuple(LIBRARIES.values())
    )
    if not callable(factory):
        raise FsclError(
            f"network {name!r} is {type(factory).__name__}; a callable that returns a torch.nn.Module would do"
        )
    return factory


def is_users(name: str) -> bool:
    """Whether a network is from a user's own module, not from a library."""
    library = name.partition(":")[0]
    return name != "convnet" and not is_within(LIBRARIES.get(library, library), tuple(LIBRARIES.values()))


def fresh(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that tell a factory not to download weights.

    Example:
        >>> fresh(network_factory("avalanche:MobilenetV1"))
        {'pretrained': False}
    """
    enabled = [p.name for p in inspect.signature(make).parameters.values() if p.default is not p.empty and p.default]
    return {name: None if name.startswith("weights") else False for name in enabled if _is_weights(name)}


def check_network(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a network that is neither fscl's nor from a library of networks, or whose arguments load weights.

    Only such libraries are imported for the check.

    Raises:
        NotTrustedError: the network or its arguments are refused.
        FsclError: the network does not exist.
    """
    allowed = f"a recipe may name {KNOWN}"
    if name != "convnet":
        library, _, attribute = name.partition(":")
        module = LIBRARIES.get(library, library)
        if not is_within(module, (*LIBRARIES.values(), "fscl.networks")):
            raise NotTrustedError(f"model.name = {name!r}: {allowed}")
        factory = network_factory(name)
        if library not in ("pytorchcv", "timm") and not _is_constructor(factory, attribute):
            raise NotTrustedError(f"model.name = {name!r} is no network: {allowed}")
    check_arguments("model.args", arguments)


@contextmanager
def current_folder() -> Iterator[None]:
    """Within the block, modules in the current folder can be imported: an installed command otherwise cannot."""
    sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove("")


def import_named(module: str, attribute: str, what: str, known: str, trusted: tuple[str, ...]) -> Any:
    """An attribute of a module. A module outside the trusted packages may be in the current folder.

    Args:
        what: what the attribute is, for messages.
        known: which names would do, for messages.
        trusted: packages that are imported only as installed.

    Raises:
        FsclError: the module cannot be imported, or has no such attribute.
    """
    is_trusted = is_within(module, trusted)
    try:
        if is_trusted:
            imported = importlib.import_module(module)
        else:
            with current_folder():
                imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            where = "installed" if is_trusted else "in the current folder, nor installed"
            raise FsclError(f"unknown {what}: there is no module {error.name!r} {where}") from error
        raise FsclError(f"{what}: {module} cannot be imported: {in_words(error)}") from error
    except Exception as error:  # a user's own module can fail in any way
        raise FsclError(f"{what}: {module} cannot be imported: {in_words(error)}") from error
    named = getattr(imported, attribute, None)
    if named is None:
        has = [name for name, item in vars(imported).items() if getattr(item, "__module__", "") == module]
        raise FsclError(
            f"unknown {what}; {known if is_trusted else f'{module} has ' + (', '.join(has[:8]) or 'no callables')}"
        )
    return named


def _registered(library: str, attribute: str) -> Callable[..., Any]:
    try:
        if library == "pytorchcv":
            from pytorchcv.model_provider import _models, get_model

            is_known, make = attribute.lower() in _models, get_model
        else:
            import timm

            is_known, make = timm.is_model(attribute), partial(timm.create_model, pretrained=False)
    except ImportError as error:
        why = f"{library} is not installed; `pip install {library}` would do"
        raise FsclError(f"unknown network '{library}:{attribute}': {why}") from error
    if not is_known:
        why = f"{library} has none of that name; known: {KNOWN}{similar_names(library, attribute)}"
        raise FsclError(f"unknown network '{library}:{attribute}'; {why}")
    return partial(make, attribute)


def _is_constructor(candidate: Any, name: str) -> bool:
    """Whether an attribute is a class of networks, or a function that builds one.

    A function counts if the number of classes is all that it requires, and no argument names something to call.
    """
    if name.startswith("_") or not is_within(
        getattr(candidate, "__module__", ""), (*LIBRARIES.values(), "fscl.networks")
    ):
        return False
    if isinstance(candidate, type):
        return issubclass(candidate, nn.Module)
    if not inspect.isfunction(candidate) or is_within(candidate.__module__, ("fscl.networks",)):
        return False
    parameters = inspect.signature(candidate).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return required <= set(CLASSES) and not any(p.name in OTHERS for p in parameters)


def check_arguments(section: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that would load weights.

    Raises:
        NotTrustedError: an argument would.
    """
    for name, value in arguments.items():
        if _is_weights(name) and value:
            raise NotTrustedError(
                f"{section}.{name} = {value!r}: a recipe may not name weights to load; its networks are fresh"
            )


def _is_weights(name: str) -> bool:
    """Whether an argument of a library's function names weights to load, or a folder to put them into."""
    return "pretrained" in name or name in ("weights", "weights_backbone", "checkpoint_path", "cache_dir", "root")


def is_within(path: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted path is one of these packages or below one."""
    return any(f"{path}.".startswith(f"{package}.") for package in packages)


def in_words(error: Exception) -> str:
    """The type and the message of an error.

    >>> in_words(KeyError("width")), in_words(ValueError("odd width")), in_words(AssertionError())
    ("KeyError: 'width'", 'ValueError: odd width', 'AssertionError')
    """
    return f"{type(error).__name__}: {error}".removesuffix(": ")
