"""Experiences and mini-batches with the samples of several tasks, for learners that store a network for each task."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.models import IncrementalClassifier
from torch import nn

from fscl.continual import WSN, AtomEnsemble, AtomSwapping, FromScratch, InMemoryLoader, PackNet, split_classes
from fscl.errors import FsclError

LEARNERS = [AtomSwapping, AtomEnsemble, FromScratch, PackNet, WSN]
SEPARATE = [AtomSwapping, FromScratch]  # learners that can learn tasks of different sizes with one growing head


@pytest.fixture
def build(network) -> Callable[..., Any]:
    def make(kind: Any, model: nn.Module | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        if model is None:
            model = network()
            model.classifier.masking = False  # Avalanche masks only units of experiences with one task
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        options = {"train_mb_size": 16, "train_epochs": 1, "eval_mb_size": 512, "evaluator": None, **options}
        return kind(model=model, optimizer=optimizer, **options)

    return make


def together(experiences: list[Any], number: int) -> Any:
    """One experience with the samples of several."""
    data = experiences[0].dataset
    for experience in experiences[1:]:
        data = data.concat(experience.dataset)
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(train=[data], test=[data])))
    (experience,) = benchmark.train_stream
    experience.current_experience = number
    return experience


def growing() -> nn.Module:
    """A network with one head, which grows with the number of classes."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), IncrementalClassifier(8 * 6 * 6, 2))


@pytest.mark.parametrize("loader", [[], [InMemoryLoader]])
@pytest.mark.parametrize("kind", LEARNERS)
def test_each_sample_of_a_mixed_experience_is_answered_by_the_network_of_its_task(
    build, stream, outputs, kind, loader
) -> None:
    strategy = build(kind, plugins=[*(make() for make in loader), outputs])
    for experience in stream.train_stream:
        strategy.train(experience)
    apart = torch.cat(outputs.say(strategy, stream.test_stream))
    (mixed,) = outputs.say(strategy, [together(list(stream.test_stream), 3)])
    assert torch.allclose(mixed, apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SEPARATE)
def test_a_sample_of_a_mixed_experience_gets_no_class_that_its_task_s_head_does_not_have(
    build, digits, outputs, kind
) -> None:
    """A head that grows is narrower in the stored network of an earlier task than in that of a later one."""
    stream = split_classes(*digits, tasks=[["0", "1"], ["2", "3", "4", "5"]])
    strategy = build(kind, growing(), plugins=[outputs])
    for experience in stream.train_stream:
        strategy.train(experience)
    narrow, wide = outputs.say(strategy, stream.test_stream)
    mixed = together(list(stream.test_stream), 2)
    for before in ([], [stream.test_stream[0]]):  # the second shows the narrow head when the mixed samples come
        said = outputs.say(strategy, [*before, mixed])[-1]
        first, second = said[: len(narrow)], said[len(narrow) :]
        assert torch.equal(first.argmax(1), narrow.argmax(1))
        assert torch.allclose(first[:, :2], narrow, atol=1e-6)
        assert torch.allclose(second, wide, atol=1e-6)


@pytest.mark.parametrize("kind", LEARNERS)
def test_tasks_that_were_trained_apart_cannot_be_trained_further_together(build, stream, outputs, kind) -> None:
    strategy = build(kind, plugins=[outputs])
    for experience in list(stream.train_stream)[:2]:
        strategy.train(experience)
    before = outputs.say(strategy, stream.test_stream)
    with pytest.raises(FsclError, match="task labels 0, 1, which were trained apart: their stored networks differ in"):
        strategy.train(together(list(stream.train_stream)[:2], 3))
    assert all(torch.equal(a, b) for a, b in zip(outputs.say(strategy, stream.test_stream)[:2], before, strict=False))


@pytest.mark.parametrize("kind", [AtomSwapping, FromScratch])
def test_tasks_that_were_trained_together_are_trained_further_with_the_heads_of_both(
    build, stream, starts, kind
) -> None:
    strategy = build(kind, plugins=[starts])
    both = together(list(stream.train_stream)[:2], 0)
    strategy.train(both)
    plugin = strategy.from_scratch if kind is FromScratch else strategy.atom_swapping
    stored = {name: tensor.clone() for task in (0, 1) for name, tensor in plugin.stored(task).items()}
    heads = {name for name in stored if name.endswith("classifier.weight")}
    assert {name.split(".")[2] for name in heads} == {"0", "1"}
    strategy.train(stream.train_stream[2])
    with torch.no_grad():  # something else may have changed the heads meanwhile
        for name in heads:
            strategy.model.get_parameter(name).add_(1)
    strategy.train(both)
    assert all(torch.equal(starts.states[-1][name], tensor) for name, tensor in stored.items())
