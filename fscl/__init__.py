"""fscl: continual learning with convolution filter atoms, on Avalanche.

A filter is ``coefficients x atoms``. Coefficients are learned once and shared; each task learns its own atoms. Tasks
are never forgotten, cost kilobytes, and are compared by comparing their atoms.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fscl.atoms import AtomBank, AtomConv2d, decompose, freeze_coefficients
    from fscl.continual import AtomSwapping, AtomSwappingPlugin, subspace_similarity_metrics
    from fscl.errors import FsclError
    from fscl.similarity import mantel, similarity_matrix

__version__ = "0.1.0"

__all__ = [
    "AtomBank",
    "AtomConv2d",
    "AtomSwapping",
    "AtomSwappingPlugin",
    "FsclError",
    "decompose",
    "freeze_coefficients",
    "mantel",
    "similarity_matrix",
    "subspace_similarity_metrics",
]

# Avalanche takes seconds to import: each name is fetched when it is first used
_HOMES = {
    "AtomBank": "fscl.atoms",
    "AtomConv2d": "fscl.atoms",
    "AtomSwapping": "fscl.continual",
    "AtomSwappingPlugin": "fscl.continual",
    "FsclError": "fscl.errors",
    "decompose": "fscl.atoms",
    "freeze_coefficients": "fscl.atoms",
    "mantel": "fscl.similarity",
    "similarity_matrix": "fscl.similarity",
    "subspace_similarity_metrics": "fscl.continual",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fscl' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
