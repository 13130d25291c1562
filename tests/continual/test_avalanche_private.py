"""The private parts of Avalanche that fscl uses still exist and still do the same."""

import ast
from pathlib import Path

import pytest
import torch
from avalanche.benchmarks.utils import TransformGroups
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, TaskBalancedDataLoader
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule, as_multitask
from avalanche.training import Naive
from avalanche.training import SynapticIntelligence as AvalancheSI
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

import fscl
from fscl.atoms.entries import put_entries
from fscl.continual import avalanche_private as private
from fscl.continual.stream import TaskImages


def built(kind=Naive, **options):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return kind(model=net, optimizer=optimizer, train_mb_size=16, evaluator=None, **options)


def test_children_of_a_data_set_are_its_images_and_indices(stream):
    whole = stream.train_stream[0].dataset
    data, wrappers = private.images_of(whole), 0
    while (children := private.children_of(data)) is not None:
        (data,), indices = children
        assert indices is None
        wrappers += 1
    assert wrappers > 0
    assert isinstance(data, TaskImages)
    assert private.images_of(data) is data
    (_,), indices = private.children_of(private.images_of(whole.subset([5, 3])))
    assert list(indices) == [5, 3]


def test_transform_groups_of_a_data_set_are_those_that_it_applies(stream):
    train = stream.train_stream[0].dataset
    for data, name in ((train, "train"), (train.eval(), "eval")):
        groups = private.transform_groups_of(private.images_of(data))
        assert all(isinstance(group, TransformGroups) for group in groups)
        assert groups[-1].current_group == name
    frozen = train.freeze_transforms().replace_current_transform_group(abs)
    before, after = private.transform_groups_of(private.images_of(frozen))
    assert before.transform_groups["train"] != after.transform_groups["train"]


def test_attributes_of_a_data_set_are_those_of_its_samples(stream):
    attributes = private.attributes_of(stream.train_stream[1].dataset)
    assert set(attributes) == {"targets", "targets_task_labels"}
    assert attributes["targets_task_labels"].use_in_getitem
    assert private.attributes_of(object()) == {}


def test_an_experience_with_other_data_is_a_copy_that_has_them(stream):
    first, second = list(stream.train_stream)[:2]
    dataset = first.dataset
    copied = private.with_dataset(first, second.dataset)
    assert copied.dataset is second.dataset
    assert copied.current_experience == first.current_experience
    assert first.dataset is dataset


def test_samplers_of_a_loader_draw_what_the_loader_yields(stream):
    loader = TaskBalancedDataLoader(stream.train_stream[0].dataset, batch_size=16, shuffle=True)
    assert private.is_plain_multi_loader(loader)
    torch.manual_seed(0)
    samplers = private.samplers_of(loader)
    assert [len(sampler) for sampler in samplers] == [len(loader)]
    assert sorted(i for batch in samplers[0] for i in batch) == list(range(len(stream.train_stream[0].dataset)))


def test_a_loader_with_its_own_samplers_is_not_plain(stream):
    class Backwards(MultiDatasetDataLoader):
        def _create_samplers(self, *arguments):
            return super()._create_samplers(*arguments)[::-1]

    assert not private.is_plain_multi_loader(Backwards([stream.train_stream[0].dataset], [16]))
    assert not private.is_plain_multi_loader([])


def test_head_entries_are_those_of_a_multi_head_classifier(stream):
    model = as_multitask(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "1")
    for experience in stream.train_stream:
        model.train().adaptation(experience)
        getattr(model, "1").adaptation(experience)
    state = model.state_dict()
    for task in range(3):
        head, mask = private.head_entries(task)
        assert f"1.{mask}" in state
        assert f"1.{head}.classifier.weight" in state


def test_putting_a_wide_head_widens_the_outputs_of_multi_task_modules(stream):
    """Otherwise a mini-batch of several tasks would get outputs that are too narrow for this head."""
    model = as_multitask(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "1")
    head, mask = private.head_entries(7)
    wide = {f"1.{head}.classifier.weight": torch.ones(5, 4), f"1.{head}.classifier.bias": torch.ones(5)}
    put_entries(model, {**wide, f"1.{mask}": torch.ones(5, dtype=torch.int8)})
    assert model.max_class_label == getattr(model, "1").max_class_label == 5
    assert model(torch.ones(3, 4), torch.tensor([0, 7, 7])).shape == (3, 5)
    assert MultiTaskModule().max_class_label == 0


def test_the_silent_evaluator_has_no_event_methods():
    silent = private.SilentEvaluator()
    with pytest.warns(UserWarning, match="No loggers specified"):
        loud = EvaluationPlugin()
    assert callable(loud.before_forward)
    assert not hasattr(silent, "before_forward")
    assert silent.before_eval(None) is None
    assert silent.get_last_metrics() == {}


def test_criterion_of_returns_the_loss_function_of_the_strategy():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert private.criterion_of(built(criterion=loss)) is loss


def test_backward_can_be_replaced_and_the_next_step_skipped(stream):
    class Counting(SupervisedPlugin):
        supports_distributed = False
        weights, steps = None, 0

        def before_update(self, strategy, **kwargs):
            self.weights = strategy.model[1].weight.detach().clone()
            if self.steps == 0:
                private.skip_next_step(strategy)

        def after_update(self, strategy, **kwargs):
            moved = not torch.equal(self.weights, strategy.model[1].weight)
            assert moved == (self.steps > 0)
            self.steps += 1

    counting, calls = Counting(), []
    strategy = built(plugins=[counting], criterion=nn.CrossEntropyLoss())
    private.use_backward(strategy, lambda: (calls.append(1), type(strategy).backward(strategy)))
    strategy.train(stream.train_stream[0])
    assert len(calls) == counting.steps > 1
    private.use_own_backward(strategy)
    strategy.train(stream.train_stream[0])
    assert len(calls) == counting.steps / 2


def test_synaptic_intelligence_keeps_weights_and_importances_by_parameter(stream):
    strategy = built(AvalancheSI, si_lambda=1.0, criterion=nn.CrossEntropyLoss())
    strategy.train(stream.train_stream[0])
    (plugin,) = (p for p in strategy.plugins if hasattr(p, "ewc_data"))
    weights = dict(strategy.model.named_parameters())
    for kept in (private.weights_after_task, private.weights_importance, private.weights_before_step):
        assert {name: value.data.numel() for name, value in kept(plugin).items()} == {
            name: weight.numel() for name, weight in weights.items()
        }
    assert torch.equal(private.weights_after_task(plugin)["1.bias"].data.flatten(), weights["1.bias"].detach())


PRIVATE = {
    "_dataset", "_flat_data", "_datasets", "_indices", "_data_attributes", "_transform_groups",
    "_frozen_transform_groups", "_create_samplers", "_get_loader", "_make_taskaware_classification_dataset",
    "_criterion", "ewc_data", "syn_data",
}  # fmt: skip


def test_private_names_of_avalanche_are_in_one_module():
    for file in Path(fscl.__file__).parent.rglob("*.py"):
        if file.name == "avalanche_private.py":
            continue
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", getattr(node, "name", ""))
            assert not isinstance(name, str) or name not in PRIVATE, f"{file}: {name}"
