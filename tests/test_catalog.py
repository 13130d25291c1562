"""Mistakes in a network's name are told without importing a library, and no name that exists is refused."""

import sys
from pathlib import Path

import pytest
import timm
import torchvision
from pytorchcv.model_provider import _models

from fscl.catalog import LIBRARIES, check_network_name, full_name
from fscl.errors import FsclError


def test_all_networks_of_the_libraries_pass() -> None:
    names = [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    names += [f"timm:{name}" for name in timm.list_models(include_tags=True)]
    names += [f"pytorchcv:{name}" for name in _models]
    names += ["avalanche:SlimResNet18", "torchvision:ResNet", "pytorchcv:ResNet20_CIFAR10", "convnet"]
    assert len(names) > 3000
    refused = []
    for name in names[:: len(names) // 60]:  # each reads the library's source
        try:
            check_network_name(name)
        except FsclError:
            refused.append(name)
    assert not refused


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnt18", r"unknown network 'torchvision:resnt18'; known: convnet, .*; did you mean torchvision:resnet18"),
        ("torchvision:vgg61", r"did you mean torchvision:vgg1"),
        ("timm:resnet81", r"unknown network 'timm:resnet81'; .*; did you mean timm:resnet18"),
        ("pytorchcv:resnet20cifar10", r"did you mean pytorchcv:resnet20_cifar10"),
        ("avalanche:SlimResnet18", r"did you mean avalanche:SlimResNet18"),
        ("timm:nothing_like_it_at_all", r"or package\.module:callable$"),
        ("no_such_module:build", r"there is no module 'no_such_module' in the current folder, nor installed"),
        ("no/such/file.py:build", r"there is no module 'no' in the current folder"),
        ("my_nets:biuld", r"unknown network 'my_nets:biuld'; my_nets has build, Net"),
        ("folder/nets.py:biuld", r"folder\.nets has no callables"),
    ],
)
def test_mistakes_in_names_of_networks_are_told_with_names_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text("def build():\n    1 / 0\n\nclass Net:\n    pass\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/nets.py").write_text("1 / 0\n")
    with pytest.raises(FsclError, match=says):
        check_network_name(full_name(name))


@pytest.mark.parametrize(
    "name", ["my_nets:build", "my_nets.py:Net", "folder/nets.py:build", "folder.nets:other", "os:x"]
)
def test_ones_own_networks_pass_and_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text("1 / 0\ndef build(): ...\nclass Net: ...\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/nets.py").write_text("1 / 0\nfrom my_nets import *\n")
    check_network_name(name)
    assert not {"my_nets", "folder", "folder.nets"} & sys.modules.keys()


def test_a_library_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARIES, "no_such_library", "no_such_library.models")
    with pytest.raises(FsclError, match=r"no_such_library is not installed; `pip install no_such_library` would do"):
        check_network_name("no_such_library:net")
