"""The two parts of a learner: a plugin, and a strategy that has the plugin built in and takes its arguments."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn

__all__ = ["UNSEEN", "LearnerPlugin", "PluginStrategy", "with_arguments_of"]

UNSEEN = -1000.0  # the logit of a class that a learner has not learned yet; Avalanche's heads use this value


class LearnerPlugin(SupervisedPlugin):
    """Base class of plugins that are learners.

    Attributes:
        transient: names of attributes that are made anew for each experience, so that a checkpoint between two
            experiences does not need them. All other attributes must be plain data, see ``fscl.continual.declared``.
    """

    supports_distributed = False
    transient: ClassVar[tuple[str, ...]] = ()

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network that the learner trains in place of a strategy's network; by default that network itself."""
        return model

    def attach(self, strategy: Any) -> None:
        """Adds to the strategy's network what the learner needs. A second call changes nothing."""


def with_arguments_of(*sources: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a constructor's signature show the arguments that it passes on as ``**arguments``.

    An argument and its default are then written once. Completion, documentation and the check of recipes read the
    signature.

    Args:
        sources: the classes that take the arguments. Their arguments are shown in this order, as keyword arguments.

    Example:
        >>> class Net:
        ...     def __init__(self, width: int = 8) -> None: ...
        >>> class Deep(Net):
        ...     @with_arguments_of(Net)
        ...     def __init__(self, depth: int = 3, **arguments) -> None: ...
        >>> inspect.signature(Deep)
        <Signature (depth: int = 3, *, width: int = 8) -> None>
    """

    def decorate(constructor: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(constructor)
        parameters = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
        keywords: inspect.Parameter | None = None  # the ``**arguments`` of the last source that has them
        for source in sources:
            for parameter in inspect.signature(source).parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    keywords = parameter
                else:
                    parameters.setdefault(parameter.name, parameter.replace(kind=parameter.KEYWORD_ONLY))
        shown = [*parameters.values(), *([keywords] if keywords else [])]
        function: Any = constructor
        function.__signature__ = signature.replace(parameters=shown)
        function.__annotations__ = {p.name: p.annotation for p in shown if p.annotation is not p.empty}
        return constructor

    return decorate


class PluginStrategy(Naive):
    """Base class of strategies that are ``Naive`` with one plugin built in.

    A subclass names the attribute that holds its plugin, and the plugin's class. It takes the arguments of the plugin
    and of ``Naive``.

    Args:
        plugins: more plugins. They run after the built-in one: after an experience they see what it has stored.
        **arguments: as in the plugin's class and in ``avalanche.training.Naive``.

    Example:
        >>> import torch
        >>> from fscl.continual import PackNetPlugin
        >>> class Packed(PluginStrategy, packed=PackNetPlugin):
        ...     packed: PackNetPlugin
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> Packed(model=net, optimizer=optimizer, prune_proportion=0.5, evaluator=None).packed.prune_proportion
        0.5
    """

    _plugin_class: ClassVar[type[LearnerPlugin] | None] = None
    # the generated constructor, which takes the plugin's arguments
    _constructor: ClassVar[Callable[..., None]] = Naive.__init__

    def __init_subclass__(cls, **plugin: type[LearnerPlugin]) -> None:
        super().__init_subclass__()
        if len(plugin) > 1 or (plugin and cls._plugin_class is not None):
            raise TypeError(f"{cls.__name__} has more than one plugin built in; give further ones as plugins=[...]")
        for name, plugin_class in plugin.items():
            cls._plugin_class = plugin_class
            cls.__init__ = cls._constructor = _constructor_with(name, plugin_class)  # type: ignore[method-assign]
            if scenarios := getattr(plugin_class, "scenarios", ()):
                cls.scenarios = scenarios

    @classmethod
    def prepare(cls, model: nn.Module, **arguments: Any) -> nn.Module:
        """The network that the strategy trains in place of ``model``. Make the optimizer for this network's parameters.

        This call is optional: a strategy prepares a network that was not prepared, and points its optimizer at the new
        parameters.

        Args:
            model: the network.
            **arguments: the arguments of the strategy's plugin.

        Raises:
            FsclError: the network or an argument does not fit.
        """
        if cls._plugin_class is None or cls.__init__ is not cls._constructor:
            return model  # a user's constructor may give its arguments another meaning
        return cls._plugin_class(**arguments).prepare(model)


def _constructor_with(name: str, plugin_class: type[LearnerPlugin]) -> Callable[..., None]:
    plugin_arguments = inspect.signature(plugin_class).parameters

    @with_arguments_of(plugin_class, Naive)
    def __init__(self: Any, *, plugins: Sequence[SupervisedPlugin] | None = None, **arguments: Any) -> None:
        plugin = plugin_class(**{name: arguments.pop(name) for name in plugin_arguments if name in arguments})
        setattr(self, name, plugin)
        Naive.__init__(self, plugins=[plugin, *(plugins or [])], **arguments)
        plugin.attach(self)

    return __init__
