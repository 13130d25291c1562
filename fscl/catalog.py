"""Which networks there are by name. The names are read from the source of libraries, whose import takes seconds."""

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from fscl.errors import FsclError

__all__ = ["KNOWN", "LIBRARIES", "check_network_name", "full_name", "module_of", "similar_names"]

# the prefix of a network's name, and the module that has the library's networks
LIBRARIES = {
    "torchvision": "torchvision.models",
    "pytorchcv": "pytorchcv.models",
    "avalanche": "avalanche.models",
    "timm": "timm.models",
}
KNOWN = f"convnet, {', '.join(f'{library}:NAME' for library in LIBRARIES)}"
DEFINED = re.compile(r"^(?:def|class) (\w+)", re.MULTILINE)


def full_name(name: str) -> str:
    """A network's name with its library. A plain name is one of torchvision's.

    >>> full_name("resnet18"), full_name("timm:resnet18"), full_name("convnet")
    ('torchvision:resnet18', 'timm:resnet18', 'convnet')
    """
    return name if ":" in name or name == "convnet" else f"torchvision:{name}"


def check_network_name(name: str) -> None:
    """Refuses a network's name, if its mistake can be told without an import.

    Raises:
        FsclError: the library is not installed, or there is no such module or callable.
    """
    library, _, attribute = name.partition(":")
    if name == "convnet" or not library or not attribute:
        return
    if library not in LIBRARIES:
        _check_own(name, module_of(library), attribute)
        return
    names = _defined_names(library)
    if not names and importlib.util.find_spec(library) is None:
        raise FsclError(f"unknown network {name!r}: {library} is not installed; `pip install {library}` would do")
    # a name of timm may end with a tag of its weights; pytorchcv's capitals do not matter
    wanted = {attribute, attribute.partition(".")[0], attribute.lower()}
    if names and not wanted & names and not (_folder(library) / attribute).with_suffix(".py").exists():
        raise FsclError(
            f"unknown network {name!r}; known: {KNOWN}, or package.module:callable{similar_names(library, attribute)}"
        )


def similar_names(library: str, attribute: str) -> str:
    """Networks of a library with a name like this one, as the end of a message; empty if there are none."""
    builders = [name for name in _defined_names(library) if not name.startswith("_")]
    near = difflib.get_close_matches(attribute, sorted(builders), 3)
    return f"; did you mean {' or '.join(f'{library}:{name}' for name in near)}?" if near else ""


def module_of(library: str) -> str:
    """The module of a name that may be a path: ``folder/file.py`` is ``folder.file``."""
    return library.removesuffix(".py").replace("/", ".") if library.endswith(".py") else library


def _check_own(name: str, module: str, attribute: str) -> None:
    """Refuses a user's own network, if there is no such module, or its source does not mention the callable."""
    top, *inner = module.split(".")
    if top in sys.modules or not module:
        return
    folders = [Path(), *map(Path, sys.path)]
    files = [folder.joinpath(top, *inner).with_suffix(".py") for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        if not any((folder / top).is_dir() for folder in folders) and importlib.util.find_spec(top) is None:
            raise FsclError(
                f"unknown network {name!r}: there is no module {top!r} in the current folder, nor installed"
            )
        return
    text = file.read_text(errors="replace")
    if not re.search(rf"\b{re.escape(attribute)}\b|import \*|__getattr__", text):
        has = ", ".join(DEFINED.findall(text)[:8]) or "no callables"
        raise FsclError(f"unknown network {name!r}; {module} has {has}")


def _defined_names(library: str) -> set[str]:
    """The functions and classes that a library's modules of networks define; empty if it is not installed."""
    return {name for file in _sources(library) for name in DEFINED.findall(file.read_text(errors="replace"))}


def _sources(library: str) -> Iterator[Path]:
    return _folder(library).rglob("*.py")


def _folder(library: str) -> Path:
    """The folder of a library's networks. The library is not imported to find it."""
    top, *inner = LIBRARIES[library].split(".")
    spec = importlib.util.find_spec(top)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0], *inner) if folders else Path("/nonexistent")
