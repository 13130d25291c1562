"""Networks made to be told apart: how they are learned, and what is measured of them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from benchmarks.similarity.grounding.networks import (
    networks,
    noisy,
    probe_of,
    similarities,
    similarities_to_first,
    transfer_accuracy,
)
from benchmarks.similarity.lab import Budget, accuracy, head_of
from benchmarks.similarity.measures import COMPARED, VARIANTS


def test_networks_are_learned_apart_from_the_first_one(first, tasks):
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    bank, reached = networks(first, tasks, [1, 2, 3, 1])
    again, _ = networks(first, tasks[2:], [3, 1])
    assert all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    assert bank.names == ["90°", "30°", "200°", "90°"]
    network = copy.deepcopy(first.model)
    for place, task in enumerate(tasks):
        bank.restore(network, place)
        assert accuracy(network, task.test_images, task.test_labels) == reached[place]
    for name, value in again.entries(0).items():
        assert torch.equal(value, bank.entries(2)[name]), "of no matter what was learned before"


def test_all_pairs_or_those_with_the_first_are_the_same(first, tasks):
    bank, _ = networks(first, tasks, [1, 2, 3, 1])
    probe = probe_of(tasks, first.probed)
    whole, row = similarities(first, bank, probe), similarities_to_first(first, bank, probe)
    assert set(whole) == {*COMPARED, *VARIANTS}
    assert set(COMPARED) <= set(row)
    for name, matrix in whole.items():
        assert matrix.shape == (4, 4)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
        np.testing.assert_allclose(matrix.diagonal(), 1, atol=1e-5)
        if name in row:
            np.testing.assert_allclose(row[name], matrix[0, 1:], atol=1e-5, err_msg=name)


def test_a_probe_holds_as_much_of_each_task(tasks):
    probe = probe_of(tasks, 20)
    expected = torch.cat([task.test_images[:5] for task in tasks])
    assert torch.equal(probe, expected)
    assert len(probe_of(tasks[:3], 20)) == 20


def test_some_labels_are_drawn_anew(first):
    task = first.source.rotated(0, Budget(images=200), 0)
    assert torch.equal(noisy(task, 0.0, 1).labels, task.labels)
    for share in (0.4, 1.0):
        changed = noisy(task, share, 1)
        wrong = float((changed.labels != task.labels).float().mean())
        assert wrong == pytest.approx(0.9 * share, abs=0.08)  # a tenth of what is drawn is what it was
        assert changed.images is task.images
        assert torch.equal(changed.test_labels, task.test_labels)
        assert set(changed.labels.tolist()) <= set(range(10))
        assert torch.equal(noisy(task, share, 1).labels, changed.labels)
        assert not torch.equal(noisy(task, share, 2).labels, changed.labels)


def test_transfer_is_what_the_nearest_class_mean_of_features_gets_right(first, tasks):
    bank, _ = networks(first, tasks, [1, 2, 3, 1])
    tasks = [  # not all as easy
        replace(
            task,
            **{
                name: getattr(task, name) + k * torch.randn_like(getattr(task, name))
                for name in ("images", "test_images")
            },
        )
        for k, task in enumerate(tasks)
    ]
    transfer = transfer_accuracy(first, bank, tasks, per_class=3, tested=50)
    network = copy.deepcopy(first.model).eval()
    seen: list[Tensor] = []
    head_of(network).register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))

    def features(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            network(images)
        values = seen[-1].flatten(1).double()
        return (values / values.norm(dim=1, keepdim=True)).numpy()

    expected = np.zeros((4, 4))
    for j in range(4):
        bank.restore(network, j)
        for i, task in enumerate(tasks):
            classes = task.labels.unique()
            means = np.stack([features(task.images[task.labels == label][:3]).mean(0) for label in classes])
            oracle = KNeighborsClassifier(1, metric="cosine").fit(means, classes.numpy())
            expected[i, j] = oracle.score(features(task.test_images[:50]), task.test_labels[:50].numpy())
    np.testing.assert_allclose(transfer, expected, atol=0.021)  # an image may be as near to two means
    assert np.abs(expected - expected.T).max() > 0.1, "which is the task and which the network matters"
