"""fscl without the extra ``federated``."""

import importlib
import importlib.util
import sys

import pytest

from fscl.errors import FsclError


def test_without_flower_the_error_names_the_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "flwr" else find_spec(name, *rest)
    )
    for name in [name for name in sys.modules if name.split(".")[:2] == ["fscl", "federated"]]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FsclError) as caught:
        importlib.import_module("fscl.federated")
    assert str(caught.value) == "fscl.federated needs Flower; install it with: pip install 'fscl[federated]'"
