"""The network from which all methods of a federation start."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl.errors import FsclError
from fscl.networks import make_network
from fscl.runs.federation.building import build_network
from fscl.runs.recipe import load_any_benchmark, load_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

FEDERATION = load_any_benchmark("federated_digits")


def starting_from(path: Path) -> RunSpec:
    settings = [f"federation.start={path}"]
    return RunSpec(*with_overrides(FEDERATION, load_strategy("fedavg"), settings), 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path / "start.pt", classes=7, seed=5)


def saved(path: Path, classes: int, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(make_network("convnet", (1, 8, 8), classes, FEDERATION.model.args).state_dict(), path)
    return path


def test_filters_are_those_of_the_checkpoint_and_a_head_of_other_classes_is_not(checkpoint):
    network, state = build_network(starting_from(checkpoint)).state_dict(), torch.load(checkpoint)
    assert [name for name in network if not torch.equal(network[name], state[name])] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert len(network["classifier.bias"]) == 10


def test_a_finished_run_on_a_stream_is_a_start(tmp_path):
    args = [f"model.args={FEDERATION.model.args}".replace("'", '"').replace(": ", "=").replace('"', "")]
    stream = with_overrides(load_benchmark("split_digits"), load_strategy("naive"), ["training.epochs=1", *args])
    folder = run_one(RunSpec(*stream, 3, first=1), tmp_path)
    from fscl import load_network

    learned = {name.split("features.")[1]: values for name, values in load_network(folder).state_dict().items()
               if "features." in name}  # fmt: skip
    network = build_network(starting_from(folder)).features.state_dict()
    assert network.keys() == learned.keys()
    assert all(torch.equal(network[name], learned[name]) for name in network)


def test_what_the_file_holds_decides_the_hash_and_its_place_does_not(checkpoint, tmp_path):
    first = starting_from(checkpoint)
    moved = tmp_path / "moved.pt"
    moved.write_bytes(checkpoint.read_bytes())
    assert starting_from(moved).hash == first.hash
    saved(checkpoint, classes=7, seed=6)
    assert starting_from(checkpoint).hash != first.hash
    with pytest.raises(
        FsclError, match=r"start\.pt: its digest is \w{16}, and that of the start of this run is \w{16}"
    ):
        build_network(first)


def test_a_start_that_is_not_there_or_does_not_fit_is_refused(checkpoint, tmp_path):
    with pytest.raises(FsclError, match=r"federation.start = .*none\.pt.*: there is no file"):
        starting_from(tmp_path / "none.pt")
    with pytest.raises(FsclError, match=r"there is no file .*weights\.safetensors"):
        starting_from(tmp_path)
    torch.save({"other.weight": torch.zeros(3, 2)}, checkpoint)
    with pytest.raises(FsclError, match=r"it has no filters features.0.weight of shape \(8, 1, 3, 3\)"):
        build_network(starting_from(checkpoint))
