"""Recipes and records of federations that are not trusted run no code of a stranger."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl import load_network
from fscl.errors import FsclError
from fscl.runs.federation.flower_app import spec_of
from fscl.runs.recipe import load_any_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

RECIPE = """
[data]
name = "digits"
[federation]
clients = 3
groups = 1
rounds = 1
most_images = 20
most_test_images = 10
[model]
name = "strange_net:net"
[training]
epochs = 1
"""
NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe in the current folder, beside a network and a method that leave a file when they are imported."""
    monkeypatch.chdir(tmp_path)
    modules = ("strange_net", "strange_method")
    for module in modules:
        (tmp_path / f"{module}.py").write_text(f"{NET}\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "method.toml").write_text('class = "strange_method.net"')
    (tmp_path / "theirs.toml").write_text(RECIPE)
    yield tmp_path / "theirs.toml"
    for module in modules:
        sys.modules.pop(module, None)


def test_the_command_line_refuses_networks_and_methods_of_a_stranger(fscl, stranger: Path) -> None:
    for arguments, error in (
        (("theirs.toml", "-s", "fedavg"), "theirs.toml: model.name = 'strange_net:net': a recipe may name convnet, "),
        (("federated_digits", "-s", "method.toml"), "method.toml: class = 'strange_method.net': a recipe may name "),
    ):
        ended = fscl("run", *arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith(f"error: {error}")
        assert ended.err.endswith("; if you trust the file, --trust lets it run any code\n")
    assert not (stranger.parent / "ran").exists()


def test_a_run_and_an_app_of_flower_refuse_a_strangers_network(stranger: Path) -> None:
    recipes = with_overrides(load_any_benchmark(stranger), load_strategy("fedavg"))
    for spec in (RunSpec(*recipes, 0), spec_of({"benchmark": str(stranger), "strategy": "fedavg"})):
        with pytest.raises(FsclError, match=r"theirs.toml: model.name = 'strange_net:net': .*--trust"):
            run_one(spec, stranger.parent / "out")
    assert not (stranger.parent / "ran").exists()


def test_the_record_of_a_strangers_run_is_served_only_with_trust(stranger: Path) -> None:
    recipes = with_overrides(load_any_benchmark(stranger, trust=True), load_strategy("fedavg"))
    folder = run_one(RunSpec(*recipes, 0), stranger.parent / "out")
    (stranger.parent / "ran").unlink()
    del sys.modules["strange_net"]
    with pytest.raises(FsclError, match=r"run.json: model.name = 'strange_net:net': .*--trust"):
        load_network(folder, 0)
    assert not (stranger.parent / "ran").exists()
    assert len(load_network(folder, 0, trust=True).classes) == 10
    assert (stranger.parent / "ran").exists()
