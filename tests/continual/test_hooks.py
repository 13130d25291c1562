import importlib
import inspect
import pkgutil

import pytest
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric

import fscl.continual

MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(fscl.continual.__path__, "fscl.continual.")]
PLUGINS = sorted(
    {
        found
        for module in MODULES
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, SupervisedPlugin | PluginMetric) and found.__module__.startswith("fscl.")
    },
    key=lambda plugin: plugin.__name__,
)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.__name__)
def test_every_hook_of_a_plugin_is_an_event_of_avalanche(plugin):
    """Avalanche would silently ignore a misspelt hook."""
    bases = [base for base in plugin.__mro__ if not base.__module__.startswith("fscl.")]
    hooks = [n for n, f in vars(plugin).items() if callable(f) and n.startswith(("before", "after"))]
    unknown = [name for name in hooks if not any(callable(getattr(base, name, None)) for base in bases)]
    assert unknown == []


def test_the_search_for_plugins_finds_all_of_them():
    names = {plugin.__name__ for plugin in PLUGINS}
    assert names >= {"AtomSwappingPlugin", "FromScratchPlugin", "InMemoryLoader", "SubspaceSimilarity"}
    assert len(names) >= 8
