"""What an interpreter and a notebook show of objects that hold images, features, networks or results."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from fscl.compare import joint_decompose
from fscl.compare.checkpoints import Checkpoints
from fscl.compare.comparison import compare
from fscl.continual import split_classes
from fscl.continual.learner import Learner
from fscl.continual.stream import Task, TaskImages
from fscl.continual.training.trainer import Trainer
from fscl.data import ImageSet
from fscl.runs.records.record import RunRecord
from fscl.runs.results import read_record
from fscl.settings import Network, Training
from fscl.similarity import atoms_of_filters
from fscl.text import html_table

EVIL = "<script>alert('&')"


def images(per_class=6, num_classes=4):
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    names = [EVIL, *(f"class {i}" for i in range(1, num_classes))]
    return ImageSet(torch.randint(256, (len(labels), 1, 8, 8), dtype=torch.uint8), labels, names)


def stream(**options):
    return split_classes(images(), images(per_class=2), tasks=2, shuffle=False, **options)


def comparison():
    start = torch.randn(8, 8, 3, 3)
    weights = {EVIL: start, "b": start + 0.1 * torch.randn_like(start), "c": torch.randn_like(start)}
    return compare(joint_decompose({name: {"conv.weight": values} for name, values in weights.items()}))


def record(**changes) -> RunRecord:
    data = {
        "format": 1,
        "status": "running",
        "benchmark": {"name": "split_made_up"},
        "strategy": {"name": "ewc", "class": "avalanche.training.EWC"},
        "recipe_hash": "0123",
        "seed": 3,
        "tasks": [{"name": EVIL, "classes": ["ant"]}, {"name": "cat", "classes": [2]}],
        "accuracy": [[0.1, None]],
        "similarity": {"metric": "cosine", "layers": ["a"], "matrix": [[[1.0, 0.5], [0.5, 1.0]]]},
    }
    return read_record("made up", data | changes)


def trainer():
    return Trainer(stream(), Learner("fscl.continual.AtomSwapping"), Training(), Network(name="convnet"), seed=3)


OBJECTS = {
    "ImageSet": (images, "ImageSet(24 images of 1x8x8, 4 classes)"),
    "TaskImages": (
        lambda: TaskImages(torch.zeros(5, 3, 4, 6, dtype=torch.uint8), torch.zeros(5)),
        "TaskImages(5 images of 3x4x6)",
    ),
    "Task": (
        lambda: Task("a", ["b"], *[TaskImages(torch.zeros(5, 3, 4, 6), torch.zeros(5))] * 2),
        "Task(name='a', classes=['b'], train=TaskImages(5 images of 3x4x6), test=TaskImages(5 images of 3x4x6))",
    ),
    "Stream": (stream, "Stream(2 tasks of 2 classes, scenario 'task', images of 1x8x8)"),
    "Trainer": (trainer, "Trainer(AtomSwapping, 0 of 2 tasks learned, seed 3, cpu)"),
    "Comparison": (comparison, "Comparison(3 networks, 2 starts, cosine mean, not to be trusted as a whole)"),
    "LayerFilters": (
        lambda: comparison().joint.filters["conv"],
        "LayerFilters(3 networks, filters (8, 8, 3, 3))",
    ),
    "Checkpoints": (
        lambda: Checkpoints({"a": {"w": torch.zeros(9)}}, {}, ["w"]),
        "Checkpoints(1 networks, 1 layers, 0 files left out)",
    ),
    "FilterAtoms": (
        lambda: atoms_of_filters(torch.randn(2, 8, 8, 3, 3)),
        "FilterAtoms(2 snapshots, 9 atoms of 3x3)",
    ),
    "RunRecord": (record, "RunRecord(split_made_up, ewc, seed 3: running, 1 of 2 tasks)"),
    "Similarity": (lambda: record().similarity, "Similarity(cosine product over 1 layers of 2 tasks)"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_repr_is_one_line_of_sizes_and_holds_no_values(name):
    make, expected = OBJECTS[name]
    shown = make()
    assert repr(shown) == str(shown) == expected


def test_the_repr_of_a_finished_run_has_its_accuracy_also_if_all_tasks_were_learned_at_once():
    finished = {"status": "finished", "accuracy": [[0.5, None], [0.75, 0.25]]}
    assert repr(record(**finished)).endswith("finished, 2 of 2 tasks, accuracy 50.00 %)")
    at_once = {"strategy": {"name": "joint", "class": "fscl.continual.Joint"}, "accuracy": [[0.75, 0.5]]}
    joint = record(status="finished", **at_once)
    assert repr(joint).endswith("finished, 2 of 2 tasks, accuracy 62.50 %)")
    assert cells(joint._repr_html_())[1] == ["all tasks", "75.00", "50.00"]


def cells(html: str) -> list[list[str]]:
    return [[cell.text or "" for cell in row] for row in ET.fromstring(html).iter("tr")]


@pytest.mark.parametrize("make", [stream, record, comparison])
def test_names_in_html_are_escaped(make):
    html = make()._repr_html_()
    assert "<script" not in html
    assert "alert" in html  # the name is shown
    tree = ET.fromstring(html)  # well-formed
    assert EVIL in "".join(tree.itertext())


def test_html_of_a_stream_has_classes_and_numbers_of_images_of_each_task():
    heading, *rows = cells(stream(validation=0.5)._repr_html_())
    assert heading == ["task", "name", "classes", "training images", "test images"]
    assert rows == [["0", "", f"{EVIL}, class 1", "6", "6"], ["1", "", "class 2, class 3", "6", "6"]]
    named = split_classes(images(num_classes=16), images(num_classes=16), tasks={"few": ["class 1"], "many": NAMES})
    assert repr(named).startswith("Stream(2 tasks of 1 to 12 classes")
    rows = cells(named._repr_html_())[1:]
    assert rows[0] == ["0", "few", "class 1", "6", "6"]
    assert rows[1][2] == ", ".join(NAMES[:10]) + " and 2 more"


NAMES = [f"class {i}" for i in range(2, 14)]


def test_html_of_a_run_has_the_accuracies_after_each_task():
    assert cells(record(accuracy=[[0.125, None], [0.5, 1]])._repr_html_()) == [
        ["after", EVIL, "cat"],
        [EVIL, "12.50", "–"],
        ["cat", "50.00", "100.00"],
    ]


def test_html_of_a_comparison_is_a_heatmap_and_its_verdict_with_ids_of_its_own():
    first, second = comparison(), comparison()
    html = first._repr_html_()
    tree = ET.fromstring(html)
    assert tree.find("figcaption").text == first.verdict
    ids = [set(re.findall(r'\bid="([^"]+)"', each)) for each in (html, second._repr_html_())]
    assert ids[0]
    assert not ids[0] & ids[1]  # else the second figure of a notebook would refer to shapes of the first
    assert np.isfinite(first.matrix).all()


def test_html_tables_escape_every_text():
    html = html_table(EVIL, [EVIL], [[EVIL], [3]])
    assert html.count("&lt;script&gt;") == 3
    assert cells(html) == [[EVIL], [EVIL], ["3"]]
