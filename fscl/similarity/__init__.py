"""Compares tasks by their filter atoms or by features on data, and correlates task-by-task matrices."""

import lazy_loader

# torch takes seconds to import, and reports need only correlations and means: the names of __init__.pyi are fetched
# when they are first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
