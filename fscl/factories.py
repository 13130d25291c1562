"""What makes a network, by its name; and which names the recipe of a stranger may use.

An installed library does more than build networks: ``torch.hub:load`` runs code from anywhere. So a recipe that nobody
vouches for may name networks of libraries of networks, and nothing else.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from fscl.errors import FsclError

__all__ = [
    "LIBRARIES",
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

# what a network's name begins with, and the module in which a library has its networks
LIBRARIES = {
    "torchvision": "torchvision.models",
    "pytorchcv": "pytorchcv.models",
    "avalanche": "avalanche.models",
    "timm": "timm.models",
}
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
    made = import_named(
        LIBRARIES.get(library, _module_of(library)), attribute, f"network {name!r}", known, tuple(LIBRARIES.values())
    )
    if not callable(made):
        raise FsclError(
            f"network {name!r} is {type(made).__name__}; a callable that returns a torch.nn.Module would do"
        )
    return made


def is_users(name: str) -> bool:
    """Whether a network is of a module of the user's own, not of a library's."""
    library = name.partition(":")[0]
    return name != "convnet" and not is_within(LIBRARIES.get(library, library), tuple(LIBRARIES.values()))


def fresh(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments by which a factory is told to download no weights.

    Example:
        >>> fresh(network_factory("avalanche:MobilenetV1"))
        {'pretrained': False}
    """
    would = [p.name for p in inspect.signature(make).parameters.values() if p.default is not p.empty and p.default]
    return {name: None if name.startswith("weights") else False for name in would if _is_weights(name)}


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
        if not is_within(module, (*LIBRARIES.values(), "fscl.networks")):
            raise NotTrustedError(f"model.name = {name!r}: {known}")
        made = network_factory(name)
        if library not in ("pytorchcv", "timm") and not _is_constructor(made, attribute):
            raise NotTrustedError(f"model.name = {name!r} is no network: {known}")
    check_arguments("model.args", arguments)


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


def import_named(module: str, attribute: str, what: str, known: str, trusted: tuple[str, ...]) -> Any:
    """An attribute of a module. A module outside the trusted packages may be in the current folder.

    Args:
        what: what is asked for, and ``known`` what would do; for messages.

    Raises:
        FsclError: the module cannot be imported, or has no such attribute.
    """
    ours = is_within(module, trusted)
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
    if name.startswith("_") or not is_within(getattr(made, "__module__", ""), (*LIBRARIES.values(), "fscl.networks")):
        return False
    if isinstance(made, type):
        return issubclass(made, nn.Module)
    if not inspect.isfunction(made) or is_within(made.__module__, ("fscl.networks",)):
        return False
    parameters = inspect.signature(made).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return needed <= set(CLASSES) and not any(p.name in OTHERS for p in parameters)


def check_arguments(section: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that would load weights.

    Raises:
        NotTrustedError: one does.
    """
    for name, value in arguments.items():
        if _is_weights(name) and value:
            raise NotTrustedError(
                f"{section}.{name} = {value!r}: a recipe may not name weights to load; its networks are fresh"
            )


def _is_weights(name: str) -> bool:
    """What libraries call weights that they would download or read, and where they would put them."""
    return "pretrained" in name or name in ("weights", "weights_backbone", "checkpoint_path", "cache_dir", "root")


def is_within(path: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted path is one of these packages or below one."""
    return any(f"{path}.".startswith(f"{package}.") for package in packages)


def in_words(error: Exception) -> str:
    """
    >>> in_words(KeyError("width")), in_words(ValueError("odd width")), in_words(AssertionError())
    ("KeyError: 'width'", 'ValueError: odd width', 'AssertionError')
    """
    return f"{type(error).__name__}: {error}".removesuffix(": ")
