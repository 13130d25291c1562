"""fscl: continual learning with convolution filter atoms, on Avalanche.

A filter is ``coefficients x atoms``. Coefficients are learned once and shared; each task learns its own atoms. Tasks
are never forgotten, cost kilobytes, and are compared by comparing their atoms.
"""

import importlib.util
from typing import Any

import lazy_loader

__version__ = "0.1.0"

# torch and Avalanche take seconds to import: the names of __init__.pyi are fetched when they are first used
_fetch, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _fetch(name)
    if not name.startswith("_") and importlib.util.find_spec(f"fscl.{name}"):
        return importlib.import_module(f"fscl.{name}")
    raise AttributeError(f"module 'fscl' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
