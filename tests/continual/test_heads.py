"""Networks with a head for each task."""

import copy

import pytest
import torch
from avalanche.models import as_multitask
from avalanche.models.utils import avalanche_model_adaptation

from fscl.continual import ConvNet, build_network, split_classes
from fscl.data.images import ImageSet


@pytest.fixture
def pair():
    """Avalanche's network and that of fscl, with equal weights and heads for three tasks."""
    labels = torch.arange(6).repeat(2)
    images = ImageSet(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), labels, [str(c) for c in range(6)])
    stream = split_classes(images, images, tasks=3, seed=0)
    options = {"widths": [8, 8], "pool_after": [0], "dropout": 0.0}
    theirs = as_multitask(ConvNet(1, 2, **options), "classifier")
    ours = build_network("convnet", (1, 8, 8), 2, options)
    for experience in stream.train_stream:
        avalanche_model_adaptation(theirs, experience)
        avalanche_model_adaptation(ours, experience)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_multi_head_network_equals_avalanche_s_in_evaluation(pair):
    theirs, ours = pair
    x, tasks = torch.rand(30, 1, 8, 8), torch.arange(3).repeat(10)
    for model in pair:
        model.eval()
    assert torch.allclose(theirs(x, tasks), ours(x, tasks), atol=1e-6)
    for labels in (torch.ones(30, dtype=torch.long), 1):
        assert torch.equal(theirs(x, labels), ours(x, labels))
    assert all(torch.equal(theirs(x, None)[t], ours(x, None)[t]) for t in range(3))


def test_a_mini_batch_of_several_tasks_is_normalised_as_one_batch(pair):
    theirs, ours = (model.train() for model in pair)
    alone = copy.deepcopy(ours)
    x, tasks = torch.rand(30, 1, 8, 8) * torch.rand(30, 1, 1, 1), torch.arange(3).repeat(10)
    found = ours(x, tasks)
    for task in range(3):  # each head's answer to the whole batch, whose statistics do not depend on the heads
        whole = alone(x, task)
        assert torch.allclose(found[tasks == task], whole[tasks == task], atol=1e-6)
    assert not torch.allclose(theirs(x, tasks), found, atol=1e-3), "Avalanche normalises each task's images apart"


def test_gradients_reach_each_head_from_its_own_images(pair):
    _, ours = pair
    ours.train()(torch.rand(8, 1, 8, 8), torch.tensor([0, 2] * 4)).sum().backward()
    heads = [ours.classifier.classifiers[str(t)].classifier.weight.grad for t in range(3)]
    assert heads[1] is None or not heads[1].any()
    assert heads[0].any()
    assert heads[2].any()
