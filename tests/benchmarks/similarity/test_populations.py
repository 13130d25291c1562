"""Populations are trained once and kept, and their networks begin from where their regime says."""

import copy
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from benchmarks.similarity import populations as module
from benchmarks.similarity.lab import Budget, Images, accuracy, blank, learn
from benchmarks.similarity.populations import REGIMES, below_diagonal, networks_of, population
from benchmarks.similarity.units import Context
from fscl.atoms import AtomBank

TINY = Budget(images=48, epochs=2, first_epochs=1, batch=16)


@pytest.fixture
def context(data, tmp_path, monkeypatch) -> Context:
    monkeypatch.setattr(module, "QUICK", TINY)
    monkeypatch.setattr(module, "QUICK_NETWORKS", 4)
    monkeypatch.setattr(module, "QUICK_PROBE", 40)
    return Context(data, tmp_path / "work", quick=True)


def entries(bank: AtomBank) -> dict[str, Tensor]:
    return {f"{task} {name}": value for task in bank.tasks for name, value in bank.entries(task).items()}


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def refused(*_: object, **__: object) -> NoReturn:
    raise AssertionError("it was trained before")


def test_what_was_trained_is_not_trained_again(context, monkeypatch):
    first = population("fmnist", "plain", "first", context)
    for name in ("start", "learn"):
        monkeypatch.setattr(module, name, refused)
    again = population("fmnist", "plain", "first", context)
    assert alike(entries(again.bank), entries(first.bank))
    assert alike(again.model.state_dict(), first.model.state_dict())
    assert torch.equal(again.probe, first.probe)
    assert (again.accuracies, again.seconds) == (first.accuracies, first.seconds)
    for other in (("fmnist", "plain", "sequence", context), ("fmnist", "plain", "first", context, 1)):
        with pytest.raises(AssertionError, match="trained before"):
            population(*other)  # another population is not taken for this one


def test_training_that_was_interrupted_starts_anew(context, monkeypatch):
    def broken(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", broken)
        with pytest.raises(KeyboardInterrupt):
            population("fmnist", "plain", "first", context)
    found = population("fmnist", "plain", "first", context)
    assert len(found.bank) == len(found.accuracies) == 4


@pytest.mark.parametrize("regime", ["first", "sequence"])
def test_networks_are_learned_from_where_the_regime_says(context, regime):
    found, source = population("fmnist", "plain", regime, context, seed=5), Images("fmnist", context.data)
    assert found.bank.names[0] == "0°"
    networks = networks_of(found.bank, found.model)
    for number in (1, 3):
        angle = float(found.bank.names[number].removesuffix("°"))
        task = source.rotated(angle, TINY, 5 + number)
        for origin in {0, number - 1}:
            network = copy.deepcopy(networks[origin])
            reached = learn(network, found.bank, task, TINY, 5 + number)
            said = origin == (0 if regime == "first" else number - 1)
            assert alike(network.state_dict(), networks[number].state_dict()) == said, (number, origin)
            assert not said or reached == found.accuracies[number]


def test_classes_of_tasks_are_drawn_for_each(context):
    found, source = population("cifar100", "plain", "first", context), Images("cifar100", context.data)
    shown = [tuple(name.split()) for name in found.bank.names]  # the first three of the ten
    assert len(set(shown)) == 4
    for names in shown:
        assert len(set(names)) == 3
        assert set(names) <= set(source.train.classes)
    assert found.probe.shape == (40, 3, 32, 32)


def test_snapshots_go_from_the_first_network_to_the_last_step(context):
    found, source = population("fmnist", "plain", "snapshots", context), Images("fmnist", context.data)
    steps = [int(name.removeprefix("step ")) for name in found.bank.names[1:]]
    assert len(steps) == 3
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 6)  # of 48 images 3 batches an epoch
    first, last = networks_of(found.bank, found.model)[0], networks_of(found.bank, found.model)[-1]
    sequence = population("fmnist", "plain", "sequence", context)
    assert alike(first.state_dict(), networks_of(sequence.bank, sequence.model)[0].state_dict())
    # what is trained is the task that comes second in a sequence
    assert alike(last.state_dict(), networks_of(sequence.bank, sequence.model)[1].state_dict())
    turned = source.rotated(float(sequence.bank.names[1].removesuffix("°")), TINY, 1)
    assert found.accuracies == [accuracy(last, turned.test_images, turned.test_labels)]


@pytest.mark.parametrize("regime", REGIMES)
def test_a_population_is_one_set_of_coefficients_and_its_probe(context, regime):
    found = population("fmnist", "plain", regime, context)
    assert (found.images, found.architecture, found.regime) == ("fmnist", "plain", regime)
    assert len(found.bank) == 4
    assert all(0 <= reached <= 1 for reached in found.accuracies)
    assert found.probe.shape == (40, 1, 32, 32)
    assert not found.model.training
    own = found.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.bank.entries(0).items())
    assert all(torch.equal(value, own[name]) for name, value in found.bank.shared.items())
    outputs = torch.stack([network.eval()(found.probe) for network in networks_of(found.bank, found.model)])
    assert torch.equal(outputs[0], found.model(found.probe))
    assert torch.pdist(outputs.flatten(1)).min() > 0


def test_a_bank_s_networks_are_those_of_its_tasks():
    torch.manual_seed(0)
    model = blank("plain", 1)
    bank, head = AtomBank(model), [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    for task in (3, 1, 2):
        with torch.no_grad():
            head.bias.fill_(task)
        bank.store(model, task)
    networks = networks_of(bank, model.train())
    assert [int([*network.parameters()][-1][0]) for network in networks] == [3, 1, 2]
    assert not any(network.training for network in networks)
    assert model.training


def test_entries_below_the_diagonal_row_by_row():
    assert below_diagonal(torch.tensor([[9, 8, 7], [1, 9, 7], [2, 3, 9]])).tolist() == [1, 2, 3]
