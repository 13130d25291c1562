"""What a learner is made of: a plugin, and a strategy that has it built in and takes its arguments."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn

__all__ = ["UNSEEN", "LearnerPlugin", "PluginStrategy", "with_arguments_of"]

UNSEEN = -1000.0  # a learner's answer for a class that it does not know (yet), as Avalanche's heads give it


class LearnerPlugin(SupervisedPlugin):
    """Base of plugins that make a strategy another learner.

    Attributes:
        transient: attributes that are made anew for each experience, and are not needed to resume between two. All
            others must be plain data, see ``fscl.continual.declared``.
    """

    supports_distributed = False
    transient: ClassVar[tuple[str, ...]] = ()

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network that takes the place of a strategy's network; as it is, unless a learner needs another one."""
        return model

    def attach(self, strategy: Any) -> None:
        """Gives the strategy's network what the learner needs of it; a second time it changes nothing."""


def with_arguments_of(*sources: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes the signature of a constructor show the arguments that it passes on as ``**arguments``.

    So an argument and its default are written once. The signature is what completion, documentation and the check of
    recipes read.

    Args:
        sources: the classes that take the arguments; a later one's come after an earlier one's, all by keyword.

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
        rest: inspect.Parameter | None = None  # what the last of them passes on to what is not known here
        for source in sources:
            for parameter in inspect.signature(source).parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    rest = parameter
                else:
                    parameters.setdefault(parameter.name, parameter.replace(kind=parameter.KEYWORD_ONLY))
        shown = [*parameters.values(), *([rest] if rest else [])]
        function: Any = constructor
        function.__signature__ = signature.replace(parameters=shown)
        function.__annotations__ = {p.name: p.annotation for p in shown if p.annotation is not p.empty}
        return constructor

    return decorate


class PluginStrategy(Naive):
    """Base of strategies that are ``Naive`` with one plugin built in.

    A subclass names the attribute that holds its plugin, and the plugin's class. It takes the arguments of both.

    Args:
        plugins: more plugins; they run after the built-in one, so that what they read after an experience is kept
            already.
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
    _constructor: ClassVar[Callable[..., None]] = Naive.__init__  # the one that takes the plugin's arguments

    def __init_subclass__(cls, **plugin: type[LearnerPlugin]) -> None:
        super().__init_subclass__()
        if len(plugin) > 1 or (plugin and cls._plugin_class is not None):
            raise TypeError(f"{cls.__name__} has more than one plugin built in; give further ones as plugins=[...]")
        for name, kind in plugin.items():
            cls._plugin_class = kind
            cls.__init__ = cls._constructor = _constructor_with(name, kind)  # type: ignore[method-assign]
            if scenarios := getattr(kind, "scenarios", ()):
                cls.scenarios = scenarios

    @classmethod
    def prepare(cls, model: nn.Module, **arguments: Any) -> nn.Module:
        """The network that takes the place of another one, for whoever makes the optimizer before the strategy.

        A strategy that is given a network which was not prepared prepares it, and points its optimizer at the new
        parameters.

        Args:
            model: the network that the strategy is meant for.
            **arguments: the strategy's own.

        Raises:
            FsclError: the network or an argument does not fit.
        """
        if cls._plugin_class is None or cls.__init__ is not cls._constructor:
            return model  # what the arguments of another constructor mean for the plugin is not known
        return cls._plugin_class(**arguments).prepare(model)


def _constructor_with(name: str, kind: type[LearnerPlugin]) -> Callable[..., None]:
    own = inspect.signature(kind).parameters

    @with_arguments_of(kind, Naive)
    def __init__(self: Any, *, plugins: Sequence[SupervisedPlugin] | None = None, **arguments: Any) -> None:
        plugin = kind(**{name: arguments.pop(name) for name in own if name in arguments})
        setattr(self, name, plugin)
        Naive.__init__(self, plugins=[plugin, *(plugins or [])], **arguments)
        plugin.attach(self)

    return __init__
