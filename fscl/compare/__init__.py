"""Networks compared without training: checkpoints, the atoms they share, and what their filters do without data."""

import lazy_loader

# torch takes seconds to import: the names of __init__.pyi are fetched when they are first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
