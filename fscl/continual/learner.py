"""What a learner is made of, what it declares, and how a recipe names it.

A learner is an Avalanche strategy, perhaps with a plugin built in. Learners of fscl and of users declare themselves by
class attributes; the tables below declare it for Avalanche's learners. Each attribute is looked up on the strategy and
on its plugins:

- ``transient``: names of attributes that a checkpoint leaves out. They are made anew for each experience, or when the
  strategy is built.
- ``own_loss``: True if the learner's loss is not always the criterion that the strategy was given.
- ``scenarios``: the scenarios whose streams it can learn, see :class:`fscl.continual.Stream`; by default all.
"""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from avalanche.core import SupervisedPlugin
from avalanche.training import DER, ER_ACE, ER_AML, FeatureReplay, Naive
from avalanche.training.plugins import AGEMPlugin, GEMPlugin, MIRPlugin, RARPlugin
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import nn
from torch.optim import Optimizer

from fscl.continual.stream import Scenario
from fscl.errors import FsclError
from fscl.factories import NotTrustedError, check_arguments, import_named, is_within

__all__ = [
    "AVALANCHE_OWN_LOSS",
    "AVALANCHE_TRANSIENT",
    "UNSEEN",
    "Learner",
    "LearnerPlugin",
    "PluginStrategy",
    "check_learner",
    "has_own_loss",
    "learner_class",
    "only_trains",
    "scenarios_of",
    "strategy_class",
    "transient_names",
    "with_arguments_of",
]

UNSEEN = -1000.0  # the logit of a class that a learner has not learned yet; Avalanche's heads use this value


class LearnerPlugin(SupervisedPlugin):
    """Base class of plugins that are learners.

    Attributes:
        transient: names of attributes that are made anew for each experience, so that a checkpoint between two
            experiences does not need them. All other attributes must be plain data.
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

    if TYPE_CHECKING:

        def __init__(self, *, model: nn.Module, optimizer: Optimizer, **arguments: Any) -> None: ...

    _plugin_class: ClassVar[type[LearnerPlugin] | None] = None
    # the generated constructor, which takes the plugin's arguments
    _constructor: ClassVar[Callable[..., None]] = Naive.__init__

    def __init_subclass__(cls, **plugin: type[LearnerPlugin]) -> None:
        super().__init_subclass__()
        built_in = [base for base in cls.__mro__[1:] if vars(base).get("_plugin_class") is not None]
        if len(plugin) + len(built_in) > 1:
            raise TypeError(f"{cls.__name__} has more than one plugin built in; give further ones as plugins=[...]")
        taken = inspect.signature(Naive).parameters
        for name in (*plugin, *(own for kind in plugin.values() for own in inspect.signature(kind).parameters)):
            if name in taken:
                raise TypeError(
                    f"{cls.__name__}: {name!r} is an argument of avalanche.training.Naive; use another name"
                )
        for name, plugin_class in plugin.items():
            cls._plugin_class = plugin_class
            cls.__init__ = cls._constructor = _constructor_with(name, plugin_class, cls)  # type: ignore[method-assign]
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


def _constructor_with(name: str, plugin_class: type[LearnerPlugin], owner: type) -> Callable[..., None]:
    plugin_arguments = inspect.signature(plugin_class).parameters

    @with_arguments_of(plugin_class, Naive)
    def __init__(self: Any, *, plugins: Sequence[SupervisedPlugin] | None = None, **arguments: Any) -> None:
        plugin = plugin_class(**{name: arguments.pop(name) for name in plugin_arguments if name in arguments})
        setattr(self, name, plugin)
        Naive.__init__(self, plugins=[plugin, *(plugins or [])], **arguments)
        plugin.attach(self)

    __init__.__qualname__ = f"{owner.__qualname__}.__init__"  # which messages show
    return __init__


# the replayed part of a mini-batch, and the loader that makes it
REPLAY_ATTRIBUTES = ("replay_loader", "mb_buffer_x", "mb_buffer_y", "mb_buffer_tid", "mb_buffer_out", "batch_logits")
AVALANCHE_TRANSIENT: Mapping[type, tuple[str, ...]] = {
    AGEMPlugin: ("buffer_dataloader", "buffer_dliter", "reference_gradients"),
    GEMPlugin: ("G",),
    **dict.fromkeys((MIRPlugin, RARPlugin, DER, ER_ACE, ER_AML, FeatureReplay), REPLAY_ATTRIBUTES),
}
AVALANCHE_OWN_LOSS = (DER, ER_ACE)


def transient_names(owner: Any) -> frozenset[str]:
    """The attributes of a plugin or strategy that its class or a base class declares transient."""
    return frozenset(
        name
        for base in type(owner).__mro__
        for name in (*vars(base).get("transient", ()), *AVALANCHE_TRANSIENT.get(base, ()))
    )


def has_own_loss(strategy: Any) -> bool:
    """Whether a strategy or one of its plugins uses another loss than the criterion."""
    declared = any(getattr(part, "own_loss", False) for part in _strategy_and_plugins(strategy))
    return declared or isinstance(strategy, AVALANCHE_OWN_LOSS)


def scenarios_of(strategy: Any) -> list[Scenario]:
    """The scenarios that a strategy and all its plugins can learn."""
    known = get_args(Scenario)
    return [
        name
        for name in known
        if all(name in getattr(part, "scenarios", known) for part in _strategy_and_plugins(strategy))
    ]


def only_trains(strategy: Any, plugin: Any) -> bool:
    """Whether a plugin cannot change what the strategy answers in evaluation.

    It has no callback of evaluation then, and the strategy answers as Avalanche's strategies do.
    """
    callbacks = [name for name in dir(SupervisedPlugin) if "eval" in name]
    overridden = [n for n in callbacks if getattr(type(plugin), n, None) is not getattr(SupervisedPlugin, n)]
    answers_alike = all(getattr(type(strategy), n) is getattr(Naive, n) for n in ("forward", "eval", "eval_epoch"))
    return answers_alike and not overridden


def _strategy_and_plugins(strategy: Any) -> tuple[Any, ...]:
    return strategy, *strategy.plugins


ALLOWED_PACKAGES = ("avalanche.training", "fscl.continual")

CHECKED_TYPES = {int, float, bool, str, type(None)}


@dataclass(frozen=True)
class Learner:
    """The dotted path of a strategy's class, and the arguments that a recipe gives it."""

    class_path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def strategy_class(class_path: str, arguments: Mapping[str, Any] | None = None) -> type[BaseSGDTemplate]:
    """The strategy class at a dotted path. Checks that it takes the arguments.

    Raises:
        FsclError: there is no such class, it is not an Avalanche strategy, or an argument is unknown or of the wrong
            type.

    Example:
        >>> strategy_class("avalanche.training.EWC", {"ewc_lambda": 1.0}).__name__
        'EWC'
    """
    strategy = learner_class(class_path)
    if not (isinstance(strategy, type) and issubclass(strategy, BaseSGDTemplate)):
        raise FsclError(f"{class_path} is not an Avalanche strategy (a subclass of BaseSGDTemplate)")
    parameters = inspect.signature(strategy).parameters.values()
    accepted = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    reserved = {"model", "optimizer", "criterion", "plugins", "evaluator", "device", "train_mb_size", "train_epochs"}
    reserved |= {"eval_mb_size", "eval_every"}
    for argument in arguments or {}:
        if argument in reserved or argument not in accepted:
            known = ", ".join(sorted(accepted - reserved)) or "none"
            raise FsclError(f"{class_path} takes no recipe argument {argument!r}; arguments: {known}")
    _check_types(class_path, strategy, arguments or {})
    return strategy


def _check_types(class_path: str, strategy: type, arguments: Mapping[str, Any]) -> None:
    """Checks arguments that the class declares as numbers, truth values or text: a wrong type would fail only later."""
    try:
        hints = typing.get_type_hints(strategy.__init__)  # type: ignore[misc]  # a user's class may have any __init__
    except Exception:  # a name that is imported for type checkers only
        return
    for name, value in arguments.items():
        declared = set(typing.get_args(hints.get(name)) or [hints.get(name)])
        accepted = declared | {int} if float in declared else declared
        if declared <= CHECKED_TYPES and type(value) not in accepted:
            expected = " or ".join(sorted(t.__name__ for t in declared - {type(None)}))
            raise FsclError(f"{class_path}: args.{name} = {value!r} is {type(value).__name__}; {expected} would do")


def learner_class(class_path: str) -> Any:
    """The object at a dotted path. Its module may be in the current folder.

    Raises:
        FsclError: there is no such object.
    """
    module, _, name = class_path.rpartition(".")
    known = "expected a dotted path such as avalanche.training.EWC or fscl.continual.AtomSwapping"
    if not module or not all(part.isidentifier() for part in class_path.split(".")):
        raise FsclError(f"unknown strategy class {class_path!r}; {known}")
    return import_named(module, name, f"strategy class {class_path!r}", known, ALLOWED_PACKAGES)


def check_learner(class_path: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a learner that is not a strategy of Avalanche or fscl. A module of any other package is not imported.

    Raises:
        FsclError: the learner is refused.
    """
    known = f"a recipe may name strategies of {' and '.join(ALLOWED_PACKAGES)}"
    if not is_within(class_path, ALLOWED_PACKAGES):
        raise NotTrustedError(f"class = {class_path!r}: {known}")
    strategy = learner_class(class_path)
    is_strategy = isinstance(strategy, type) and issubclass(strategy, BaseSGDTemplate)
    if not (is_strategy and is_within(strategy.__module__, ALLOWED_PACKAGES)):
        raise NotTrustedError(f"class = {class_path!r} is not an Avalanche strategy: {known}")
    check_arguments("args", arguments)
