"""Every learner declares its arguments, its scenarios, and the attributes that are made anew for each experience."""

import inspect
import sys
import typing
from types import ModuleType
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn

import fscl.continual
from fscl.atoms import atom_layers
from fscl.continual.learner import (
    AVALANCHE_TRANSIENT,
    Learner,
    LearnerPlugin,
    PluginStrategy,
    has_own_loss,
    scenarios_of,
    strategy_class,
    transient_names,
)
from fscl.continual.training.learner_state import Codec, plugin_state, strategy_state
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.runs.recipe import load_strategy, names_of
from fscl.runs.records.record import AT_ONCE
from fscl.settings import Network, Training

RECIPES = {name: load_strategy(name) for name in names_of("strategies", federated=False)}
EXPORTED = [kind for kind in vars(fscl.continual).values() if isinstance(kind, type)]
BUILT_IN = [kind for kind in EXPORTED if issubclass(kind, PluginStrategy) and kind is not PluginStrategy]
SMALL = {"widths": [8, 8], "pool_after": [0], "dropout": 0.1}


def trained(name: str, stream: Any, tasks: int) -> Trainer:
    recipe = RECIPES[name]
    learner = Learner(recipe.class_path, recipe.args)
    trainer = Trainer(stream, learner, Training(epochs=1, batch_size=16), Network(args=SMALL))
    for _ in range(tasks):
        trainer.train_next()
    return trainer


def net_and_optimizer() -> dict[str, Any]:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    return {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1), "evaluator": None}


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_a_strategy_takes_the_arguments_of_its_plugin_and_of_naive(kind: type[PluginStrategy]) -> None:
    (plugin_class,) = (
        p for p in typing.get_type_hints(kind).values() if isinstance(p, type) and issubclass(p, LearnerPlugin)
    )
    own, taken = inspect.signature(plugin_class).parameters, inspect.signature(kind).parameters
    for name, parameter in {**inspect.signature(Naive).parameters, **own}.items():
        assert taken[name].default == parameter.default or name in ("criterion", "plugins"), name
        assert taken[name].kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD), name
    hints = typing.get_type_hints(kind.__init__)
    assert {name: hints[name] for name in own} == {name: p.annotation for name, p in own.items()}


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_the_built_in_plugin_comes_before_the_user_s_plugins(kind: type[PluginStrategy]) -> None:
    more = SupervisedPlugin()
    strategy = kind(**net_and_optimizer(), plugins=[more])
    first, second = strategy.plugins[:2]
    assert isinstance(first, LearnerPlugin)
    assert second is more
    (attribute,) = (name for name, value in vars(strategy).items() if value is first)
    assert attribute.replace("_", "") == kind.__name__.lower()


def test_an_unknown_argument_or_a_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match="prune_share"):
        fscl.continual.PackNet(**net_and_optimizer(), prune_share=0.5)
    with pytest.raises(FsclError, match=r"no recipe argument 'prune_share'; arguments: post_prune_share, prune_prop"):
        strategy_class("fscl.continual.PackNet", {"prune_share": 0.5})
    with pytest.raises(FsclError, match="num_atoms = 'nine' is str; int would do"):
        strategy_class("fscl.continual.AtomEnsemble", {"num_atoms": "nine"})


def test_a_user_s_subclass_may_have_another_constructor() -> None:
    class Halving(fscl.continual.PackNet):
        def __init__(self, share: float = 0.5, **arguments: Any) -> None:
            super().__init__(prune_proportion=share, **arguments)

    assert list(inspect.signature(Halving).parameters) == ["share", "arguments"]
    assert Halving(**net_and_optimizer()).packnet.prune_proportion == 0.5


def test_the_trainer_respects_the_constructor_of_a_user_s_subclass(
    stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Few(fscl.continual.AtomSwapping):
        def __init__(self, *, share: int = 2, **arguments: Any) -> None:
            super().__init__(num_atoms=9 // share, **arguments)

    users = ModuleType("learners_of_a_user")
    users.Few = Few  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, users.__name__, users)
    learner = Learner("learners_of_a_user.Few", {"share": 3})
    trainer = Trainer(stream, learner, Training(epochs=1, batch_size=16), Network(args=SMALL))
    assert {layer.num_atoms for layer in atom_layers(trainer.strategy.model).values()} == {3}


def test_a_second_built_in_plugin_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Two has more than one plugin built in; give further ones as plugins="):

        class Two(fscl.continual.PackNet, wsn=fscl.continual.WSNPlugin):
            pass


@pytest.mark.parametrize("name", RECIPES)
def test_a_learner_without_its_transient_attributes_continues_equally(name: str, digits: Any) -> None:
    """All transient attributes are removed between two experiences; the learner then learns the same."""
    fits = [s for s in ("task", "class") if s in getattr(strategy_class(RECIPES[name].class_path), "scenarios", [s])]
    stream = fscl.continual.split_classes(*digits, tasks=[["0", "1"], ["2", "3"]], scenario=fits[0])
    whole, other = trained(name, stream, 1), trained(name, stream, 1)
    fresh = trained(name, stream, 0)
    parts = [(s.strategy, *s.strategy.plugins) for s in (other, fresh)]
    for part, new in zip(*parts, strict=True):
        for attribute in transient_names(part):
            if hasattr(part, attribute):
                delattr(part, attribute)
            if attribute in vars(new):
                setattr(part, attribute, vars(new)[attribute])
    a, b = whole.train_next(), other.train_next()
    assert (a.accuracy, a.transfer, a.start, a.stored) == (b.accuracy, b.transfer, b.start, b.stored)


@pytest.mark.parametrize("name", RECIPES)
def test_declared_transient_attributes_exist(name: str, digits: Any) -> None:
    fits = [s for s in ("task", "class") if s in getattr(strategy_class(RECIPES[name].class_path), "scenarios", [s])]
    stream = fscl.continual.split_classes(*digits, tasks=[["0", "1"], ["2", "3"]], scenario=fits[0])
    trainer = trained(name, stream, 2)
    for part in (trainer.strategy, *trainer.strategy.plugins):
        if isinstance(part, tuple(AVALANCHE_TRANSIENT)):  # of replayed mini-batches some classes have a part
            assert transient_names(part) & vars(part).keys()
        else:
            assert transient_names(part) <= vars(part).keys()


@pytest.mark.parametrize(("value", "refused"), [(torch.ones(2), False), ({"a": [1, "b"]}, False), (iter([]), True)])
def test_an_attribute_that_is_not_transient_is_saved_or_refused(stream: Any, value: Any, refused: bool) -> None:
    strategy = fscl.continual.WSN(**net_and_optimizer())
    strategy.wsn._new = value
    codec = Codec(stream, lambda: strategy.model)
    if refused:
        with pytest.raises(FsclError, match=r"WSNPlugin\._new is a list_iterator, which a checkpoint cannot hold"):
            plugin_state(strategy, codec)
    else:
        assert str(plugin_state(strategy, codec)[0]["_new"]) == str(value)
    assert strategy_state(strategy, codec) == {}  # the plugin is saved once, with the plugins


def test_scenarios_and_own_loss_are_declared_by_strategy_and_plugins() -> None:
    from avalanche.training import ER_ACE

    class Sorted(SupervisedPlugin):
        scenarios, own_loss = ("class", "task"), True

    assert scenarios_of(Naive(**net_and_optimizer())) == ["task", "domain", "class"]
    assert scenarios_of(Naive(**net_and_optimizer(), plugins=[Sorted()])) == ["task", "class"]
    assert scenarios_of(fscl.continual.WSN(**net_and_optimizer(), plugins=[Sorted()])) == ["task"]
    assert has_own_loss(Naive(**net_and_optimizer(), plugins=[Sorted()]))
    assert has_own_loss(ER_ACE(**net_and_optimizer()))
    assert has_own_loss(fscl.continual.ICaRL(**net_and_optimizer()))
    assert not has_own_loss(Naive(**net_and_optimizer()))


def test_the_class_name_that_reports_know_is_that_of_joint_training() -> None:
    """Reports read run.json without importing Avalanche, so they know joint training only by its class name."""
    assert strategy_class(AT_ONCE) is fscl.continual.Joint


@pytest.mark.parametrize("name", ["AtomSwapping", "AtomEnsemble"])
def test_preparing_the_network_before_the_optimizer_changes_no_result(
    name: str, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without preparation the strategy decomposes the network and repoints the optimizer, with the same results."""

    def numbers() -> tuple[Any, dict[str, torch.Tensor], list[tuple[int, ...]]]:
        learner = Learner(f"fscl.continual.{name}", {"num_atoms": 6})
        trainer = Trainer(stream, learner, Training(epochs=1, batch_size=16), Network(args=SMALL))
        shapes = [tuple(p.shape) for p in trainer.strategy.optimizer.param_groups[0]["params"]]
        measured = [trainer.train_next() for _ in range(2)]
        return [(m.accuracy, m.transfer, m.start) for m in measured], trainer.strategy.model.state_dict(), shapes

    first = numbers()
    monkeypatch.setattr(PluginStrategy, "prepare", classmethod(lambda kind, model, **_: model))
    second = numbers()
    assert (first[0], first[2]) == (second[0], second[2])
    assert all(torch.equal(tensor, second[1][entry]) for entry, tensor in first[1].items())


def test_a_trainer_never_repoints_its_optimizer(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an optimizer is pointed at other parameters")

    monkeypatch.setattr("fscl.continual.learners.atoms._repoint_optimizer", refuse)
    for name in ("AtomSwapping", "AtomEnsemble"):
        learner = Learner(f"fscl.continual.{name}")
        Trainer(stream, learner, Training(epochs=1, batch_size=16), Network(args=SMALL)).train_next()


def test_two_built_in_plugins_are_refused():
    with pytest.raises(TypeError, match="Both has more than one plugin built in"):
        type("Both", (fscl.continual.AtomSwapping, fscl.continual.PackNet), {})


@pytest.mark.parametrize(("attribute", "argument"), [("optimizer", "share"), ("sparse", "device")])
def test_a_plugin_that_takes_a_name_of_naive_is_refused(attribute, argument):
    namespace: dict = {}
    exec(
        "from fscl.continual import LearnerPlugin\n"
        f"class SparsePlugin(LearnerPlugin):\n    def __init__(self, {argument}=0.1):\n        super().__init__()",
        namespace,
    )
    clash = "optimizer" if attribute == "optimizer" else "device"
    with pytest.raises(TypeError, match=f"'{clash}' is an argument of avalanche.training.Naive"):
        type("Sparse", (fscl.continual.PluginStrategy,), {}, **{attribute: namespace["SparsePlugin"]})
