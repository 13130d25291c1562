"""Atoms on Flower: clients share coefficients and exchange a few hundred atom values. Needs the extra ``federated``."""

import importlib.util

import lazy_loader

from fscl.errors import FsclError

if importlib.util.find_spec("flwr") is None:
    raise FsclError("fscl.federated needs Flower; install it with: pip install 'fscl[federated]'")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
