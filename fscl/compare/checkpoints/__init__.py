"""Networks read from checkpoint files of any library, as data only: finding files, opening them, choosing a network."""

import lazy_loader

# torch takes seconds to import, and finding files needs none: names are fetched when they are first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
