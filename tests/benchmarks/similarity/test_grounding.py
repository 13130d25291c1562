"""Networks made to be told apart: how they are made, what is measured of them, and the units with their section."""

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from benchmarks.similarity import grounding, grounding_networks
from benchmarks.similarity.contents import Context
from benchmarks.similarity.grounding import damaged, units
from benchmarks.similarity.grounding_networks import (
    MEASURES,
    VARIANTS,
    Origin,
    networks,
    noisy,
    probe_of,
    similarities,
    similarities_to_first,
    worth,
)
from benchmarks.similarity.grounding_page import part
from benchmarks.similarity.lab import Budget, Images, Task, accuracy, start
from fscl.similarity import noise_images, recall_images

TINY = Budget(images=48, epochs=1, first_epochs=2, batch=16)


@pytest.fixture
def first(data) -> Origin:
    source = Images("fmnist", data)
    model, reached = start("plain", source.rotated(0, TINY, 0), TINY, 0)
    return Origin(source, TINY, model.eval(), 48, reached, noise_images(16, (1, 32, 32)), probed=30, positions=9)


@pytest.fixture
def tasks(first) -> list[Task]:
    return [first.source.rotated(angle, TINY, place + 1) for place, angle in enumerate((90, 30, 200, 90))]


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
    found, row = similarities(first, bank, probe), similarities_to_first(first, bank, probe)
    assert set(found) == {*MEASURES, *VARIANTS}
    assert set(MEASURES) <= set(row)
    for name, matrix in found.items():
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
        found = noisy(task, share, 1)
        wrong = float((found.labels != task.labels).float().mean())
        assert wrong == pytest.approx(0.9 * share, abs=0.08)  # a tenth of what is drawn is what it was
        assert found.images is task.images
        assert torch.equal(found.test_labels, task.test_labels)
        assert set(found.labels.tolist()) <= set(range(10))
        assert torch.equal(noisy(task, share, 1).labels, found.labels)
        assert not torch.equal(noisy(task, share, 2).labels, found.labels)


def test_damage_is_of_its_size_and_where_it_is_said(first):
    state = first.model.state_dict()
    layers = [name.removesuffix(".atoms") for name in state if name.endswith(".atoms")]
    for size in (0.1, 2.0):
        changed = damaged(state, layers[1:3], size, seed=4)
        for name, value in changed.items():
            if name in (f"{layers[1]}.atoms", f"{layers[2]}.atoms"):
                noise = (value - state[name]).square().mean().sqrt() / state[name].square().mean().sqrt()
                assert float(noise) == pytest.approx(size, rel=0.3)  # of 81 numbers
            else:
                assert torch.equal(value, state[name]), name
    assert not torch.equal(
        damaged(state, layers[:1], 1.0, 4)[f"{layers[0]}.atoms"],
        damaged(state, layers[:1], 1.0, 5)[f"{layers[0]}.atoms"],
    )


def test_features_are_worth_what_the_nearest_class_mean_gets_right(first, tasks):
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
    found = worth(first, bank, tasks, per_class=3, tested=50)
    network = copy.deepcopy(first.model).eval()
    flat = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[Tensor] = []
    flat.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))

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
    np.testing.assert_allclose(found, expected, atol=0.021)  # an image may be as near to two means
    assert np.abs(expected - expected.T).max() > 0.1, "which is the task and which the network matters"


def short(name: str, data: str, work: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The quick unit of that name, made shorter."""
    monkeypatch.setattr(grounding_networks, "QUICK", TINY)
    monkeypatch.setattr(grounding_networks, "dead_leaves", noise_images)
    monkeypatch.setattr(
        grounding_networks, "recall_images", lambda model, images, steps: recall_images(model, images, 1)
    )
    monkeypatch.setattr(grounding, "ANGLES", {"fan": (12, 40, 60, 77)})
    (unit,) = (unit for unit in units(True) if unit.name == name)
    return unit.call(Context(data, work, quick=True))


@pytest.mark.parametrize(
    "kind", ["noise", "fan", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("seeds", "damage"))]
)
def test_a_unit_is_json_and_makes_a_section(data, tmp_path, monkeypatch, rendered, kind):
    name = f"grounding-{kind}-fmnist"
    result = short(name, data, tmp_path, monkeypatch)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["kind"] == kind
    for by_measure in result["scores"].values():
        for row in (row for row in by_measure.values() if isinstance(row, dict) and row["score"] is not None):
            assert row["low"] is None or row["low"] <= row["score"] + 1e-9
            assert row["high"] is None or row["score"] <= row["high"] + 1e-9
    section = part({name: result})
    text = rendered(section)
    assert all(title in text for title in ("linear CKA", "mean CCA"))
    assert "nan" not in text
