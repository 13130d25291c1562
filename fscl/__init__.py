"""fscl: continual learning with convolution filter atoms, on Avalanche.

A filter is ``coefficients x atoms``. Coefficients are learned once and shared; each task learns its own atoms. Tasks
are never forgotten, cost kilobytes, and are compared by comparing their atoms.
"""

import lazy_loader

# torch and Avalanche take seconds to import: the names of __init__.pyi are fetched when they are first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
