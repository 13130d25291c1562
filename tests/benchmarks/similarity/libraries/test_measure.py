"""Files of other libraries: small units from their networks to their section."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.similarity import lab
from benchmarks.similarity.lab import Budget, Task
from benchmarks.similarity.libraries import measure as module
from benchmarks.similarity.libraries import networks
from benchmarks.similarity.libraries.measure import units
from benchmarks.similarity.libraries.networks import LIBRARIES, Lesson
from benchmarks.similarity.libraries.page import libraries_part
from benchmarks.similarity.libraries.results import Recovered
from benchmarks.similarity.units import Context, Unit
from fscl.compare import comparison
from fscl.networks import ConvNet

TINY = {"images": 64, "epochs": 1, "first_epochs": 1, "batch": 16}


HEADS = {"torchvision": "classifier", "timm": "head", "lightning": "heads.head", "huggingface": "classifier"}


def small() -> nn.Module:
    """In the place of ResNet-50."""
    return ConvNet(3, 10, (8, 16, 16), (0, 1, 2), dropout=0.0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, load_small: Callable[..., object]) -> dict[str, Recovered]:
    """The results of all units of the quick mode whose libraries are installed, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "load_images", load_small)
        patch.setattr(module, "QUICK", TINY)
        patch.setattr(comparison, "save_png", lambda figure, file: None)  # drawing takes most of a small comparison
        patch.setattr(networks, "WIDTH", 32)
        patch.setattr(networks, "DEPTH", 2)
        patch.setitem(LIBRARIES, "torchvision", replace(LIBRARIES["torchvision"], make=small))
        work = tmp_path_factory.mktemp("work")
        context = Context(str(work), work / "new", quick=True)
        results = {unit.name: unit.measure(context) for unit in units(True) if not unit.lacks}
        assert list(context.work.iterdir()) == [], "networks take gigabytes"
        return results


def test_networks_of_each_start_are_found_together_in_files_of_every_library_that_is_installed(measured):
    installed = [name for name, library in LIBRARIES.items() if all(map(find_spec, library.needs))]
    assert [result.library for result in measured.values()] == installed
    assert {"torchvision", "timm"} <= set(installed)
    for result in measured.values():
        assert result.exact, result.groups
        assert [len(networks) for networks in result.starts] == [module.QUICK_TASKS] * module.STARTS
        assert result.within.low > result.across.high
        assert (result.within.n, result.across.n) == (3, 12)
        assert 0.8 < result.compared_share < 1
        assert not result.trusted
        assert "within each of the 3 groups the numbers hold" in result.verdict
        assert list(result.left_out) == [HEADS[result.library]]


def learned(name: str, place: Path) -> float:
    """The accuracy of a network that a library's own means trained on eight images and wrote to a place."""
    for package in LIBRARIES[name].needs:
        pytest.importorskip(package)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    task, budget = Task("a", images, labels, images, labels), Budget(images=8, batch=8)
    model = small() if name == "torchvision" else LIBRARIES[name].make()
    return LIBRARIES[name].learn(model, Lesson(task, 1, 1e-3, budget, 0), place)


@pytest.mark.parametrize(
    ("name", "file", "holds"),
    [
        ("torchvision", "start0-task1.pth", {"classifier.weight", "classifier.bias"}),
        ("timm", "start0-task1/last.pth.tar", {"state_dict", "state_dict_ema", "arch", "args", "optimizer", "epoch"}),
        ("lightning", "start0-task1.ckpt", {"state_dict", "pytorch-lightning_version", "optimizer_states"}),
    ],
)
def test_files_are_those_of_the_library(tmp_path, name, file, holds):
    assert 0 <= learned(name, tmp_path / "start0-task1") <= 1
    assert torch.load(tmp_path / file, weights_only=False).keys() >= holds


def test_folders_of_hugging_face_hold_one_file_or_of_one_task_shards(tmp_path):
    for task in (1, 2):
        learned("huggingface", tmp_path / f"start0-task{task}")
    assert (tmp_path / "start0-task1/model.safetensors.index.json").exists()
    assert (tmp_path / "start0-task2/model.safetensors").exists()


def test_a_result_is_json(measured):
    for result in measured.values():
        kept = result.to_json()
        assert json.loads(json.dumps(kept, allow_nan=False)) == kept
        assert Recovered.model_validate(kept) == result


def test_the_section_has_its_numbers(measured, rendered):
    text = rendered(libraries_part(measured))
    assert f"**{len(measured)} of {len(measured)}** libraries" in text
    assert "6 networks from 3 starts" in text
    assert "the starts: 2 + 2 + 2" in text
    one = measured["libraries-timm"]
    alone = rendered(libraries_part({"libraries-timm": one}))
    assert "must be installed first: torchvision, Lightning and Hugging Face transformers" in alone
    mixed = one.model_copy(update={"groups": [one.networks[:3], one.networks[3:]]})
    assert not mixed.exact
    text = rendered(libraries_part({"libraries-timm": mixed}))
    assert "**0 of 1** libraries" in text
    assert "not the starts: 3 + 3" in text


def test_what_a_unit_needs_is_its_library():
    assert {unit.name: unit.needs for unit in units(False)} == {
        f"libraries-{name}": library.needs for name, library in LIBRARIES.items()
    }
    assert Unit("a", lambda context: None, Recovered, needs=("json", "no_such_library")).lacks == ["no_such_library"]
