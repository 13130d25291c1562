"""Checkpoints as other libraries write them: folders, shards, several networks in a file, wrappers."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV2
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from fscl.compare.checkpoints import Architecture, find_checkpoints, load_checkpoints, read_checkpoint
from fscl.compare.comparison import compare
from fscl.compare.joint import joint_decompose
from fscl.errors import FsclError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[n], expected[n]) for n in expected)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


# several networks in one file

FIRST, SECOND = network(1).state_dict(), network(2).state_dict()
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(4, 1, 3, 3)}}, "param_groups": [{"params": [0]}]}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state_dict": FIRST, "state_dict_ema": SECOND}, "state_dict_ema"),
        ({"state_dict": FIRST, "optimizer": OPTIMIZER, "ema": {"module": SECOND, "decay": 0.9}}, "ema"),
        ({"ema": {"module": SECOND, "old": FIRST}, "model": FIRST}, "ema.module"),
        ({"params": FIRST, "params_ema": SECOND}, "params_ema"),
        ({"generator": FIRST, "discriminator": SECOND}, "discriminator"),
        ({"epoch": 3, "nets": {"generator": FIRST, "discriminator": SECOND}}, "discriminator"),
        ({"state_dict": {"generator": FIRST, "discriminator": SECOND}}, "discriminator"),
        ({"state_dict": {"generator": FIRST, "discriminator": SECOND}}, "state_dict.discriminator"),
        ({"generator": {"state_dict": FIRST}, "discriminator": {"state_dict": SECOND}}, "discriminator"),
        ({"state_dict": prefixed(FIRST, "teacher.") | prefixed(SECOND, "student.")}, "student"),
        ({"state_dict": prefixed(FIRST, "m.teacher.") | prefixed(SECOND, "m.student.")}, "m.student"),
        ({"a.b": SECOND, "a": {"b": FIRST}}, "a.b"),
        (prefixed(FIRST, "encoder_q.") | prefixed(SECOND, "encoder_k."), "encoder_k"),
    ],
    ids=range(13),
)
def test_the_network_under_a_key_is_read(tmp_path: Path, content: Any, key: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt", key), SECOND)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ({"generator": FIRST, "discriminator": SECOND, "optimizer": OPTIMIZER}, ["generator", "discriminator"]),
        ({"generator": {"state_dict": FIRST}, "discriminator": {"state_dict": SECOND}}, ["generator", "discriminator"]),
        ({"nets": {"g": FIRST, "d": SECOND}}, ["g", "d"]),
        ({"model": FIRST, "net": SECOND}, ["model", "net"]),
        ({f"expert{i:02}": FIRST if i else SECOND for i in range(20)}, [f"expert{i:02}" for i in range(8)]),
    ],
    ids=range(5),
)
def test_several_networks_in_a_file_are_refused_with_the_keys_that_would_do(
    tmp_path: Path, content: Any, options: list[str]
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FsclError, match=r"a\.pt: holds \d+ networks; --state takes ") as error:
        read_checkpoint(tmp_path / "a.pt")
    assert all(repr(option) in str(error.value) for option in options)
    first, second = (read_checkpoint(tmp_path / "a.pt", option) for option in options[:2])
    assert (same(first, FIRST) and same(second, SECOND)) or (same(first, SECOND) and same(second, FIRST))
    with pytest.raises(FsclError, match=rf"holds no network 'ema'; --state takes '{options[0]}'"):
        read_checkpoint(tmp_path / "a.pt", "ema")


def test_a_network_that_many_keys_lead_to_is_found_at_once(tmp_path: Path) -> None:
    content: dict[str, Any] = FIRST
    for _ in range(60):
        content = {"a": content, "b": content, "c": content}
    torch.save(content, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), FIRST)


def test_random_states_and_scores_beside_a_network_are_no_networks(tmp_path: Path) -> None:
    rng = {"numpy": np.arange(624, dtype=np.uint32), "torch": torch.get_rng_state()}
    scores = {"loss": torch.ones(9), "best": torch.tensor(1.0)}
    torch.save({"my_net": FIRST, "rng": rng, "scores": scores, "optimizer": OPTIMIZER}, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), FIRST)


def test_one_network_under_two_keys_is_no_choice(tmp_path: Path) -> None:
    torch.save({"model": FIRST, "net": FIRST}, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), FIRST)


def test_networks_beside_the_usual_one_are_named_unless_one_was_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        content = {"state_dict": FIRST, "state_dict_ema": SECOND, "optimizer": OPTIMIZER, "rng": torch.ones(9, 9)}
        torch.save(content, tmp_path / f"{name}.pt")
    loaded = load_checkpoints([tmp_path])
    assert loaded.unread == ["state_dict_ema"]
    assert same(loaded.states["a"], FIRST)
    loaded = load_checkpoints([tmp_path], state="state_dict_ema")
    assert loaded.unread == []
    assert same(loaded.states["a"], SECOND)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": FIRST}, FIRST, [1], {"state_dict": {"a": {}}}])
def test_a_key_that_no_file_has_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FsclError, match=r"a\.pt: (holds no network|no tensors in) 'ema'"):
        read_checkpoint(tmp_path / "a.pt", "ema")


# timm, with its own saver


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[nn.Module]]:
    """Two checkpoints of timm's training script, with its averaged networks, and the networks."""
    folder = tmp_path_factory.mktemp("timm")
    nets = []
    for i in range(2):
        torch.manual_seed(i)
        net = timm.create_model("resnet10t", num_classes=4, in_chans=1)
        ema = ModelEmaV2(network())
        saver = CheckpointSaver(
            net,
            torch.optim.SGD(net.parameters(), 0.1),
            args=argparse.Namespace(model="resnet10t", lr=0.1, output=Path("out")),
            model_ema=ema,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
        )
        saver._save(str(folder / f"run{i}.pth.tar"), epoch=3, metric=81.5)
        nets.append(net)
    return folder, nets


@pytest.mark.parametrize("arch", [None, "timm:resnet10t"])
def test_checkpoints_of_timms_training_are_read(of_timm: tuple[Path, list[nn.Module]], arch: str | None) -> None:
    folder, nets = of_timm
    loaded = load_checkpoints([folder], None if arch is None else Architecture(arch))
    assert list(loaded.states) == ["run0", "run1"]
    assert all(same(s, net.state_dict()) for s, net in zip(loaded.states.values(), nets, strict=True))
    assert loaded.unread == ["state_dict_ema"]
    averaged = load_checkpoints([folder], state="state_dict_ema")
    assert averaged.layers == ["0", "2"]  # of the other network, which was given as the average


# folders and shards, as Hugging Face's libraries write them


def shards(folder: Path, state: dict[str, Tensor], name: str = "model", suffix: str = ".safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"{name}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    of = {entry: files[i % 2] for i, entry in enumerate(state)}
    for file in files:
        part = {entry: tensor for entry, tensor in state.items() if of[entry] == file}
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": of}
    (folder / f"{name}{suffix}.index.json").write_text(json.dumps(index))


def folder_of(path: Path, kind: str, state: dict[str, Tensor]) -> None:
    path.mkdir(parents=True)
    if kind in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        save_file(state, path / kind)
    elif kind == "pytorch_model.bin":
        torch.save(state, path / kind)
    else:
        name, _, suffix = kind.removeprefix("shards of ").partition(".")
        shards(path, state, name, f".{suffix}")
    (path / "trainer_state.json").write_text("{}")


KINDS = [
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "shards of model.safetensors",
    "shards of pytorch_model.bin",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_one_network_is_a_checkpoint_with_the_folders_name(tmp_path: Path, kind: str) -> None:
    for i in range(2):
        folder = tmp_path / f"checkpoint-{i}"
        folder_of(folder, kind, network(i).state_dict())
        torch.save(OPTIMIZER, folder / "optimizer.pt")  # what a trainer keeps beside it
        torch.save({"cpu": torch.ones(9)}, folder / "rng_state.pth")
        torch.save(argparse.Namespace(), folder / "training_args.bin")
    for paths in ([tmp_path], sorted(tmp_path.iterdir())):
        loaded = load_checkpoints(paths)
        assert list(loaded.states) == ["checkpoint-0", "checkpoint-1"]
        assert all(same(state, network(i).state_dict()) for i, state in enumerate(loaded.states.values()))
        assert loaded.files["checkpoint-1"] == tmp_path / "checkpoint-1"


def test_folders_and_files_of_networks_are_found_in_one_folder(tmp_path: Path) -> None:
    folder_of(tmp_path / "b", "model.safetensors", FIRST)
    torch.save(FIRST, tmp_path / "a.pt")
    torch.save(FIRST, tmp_path / "c.pt")
    (tmp_path / "logs").mkdir()
    torch.save(FIRST, tmp_path / "logs/x.pt")  # a folder of files below the folder is not searched
    assert list(find_checkpoints([tmp_path])) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (["a/last.pth.tar", "b/last.pth.tar"], "out/*/*.pth.tar"),  # timm
        ([f"version_{i}/checkpoints/epoch=1.ckpt" for i in range(2)], "out/*/*/*.ckpt"),  # Lightning
        ([f"a/checkpoint-{i}/{name}" for i in range(2) for name in ("optimizer.pt", "model.safetensors")], "out/*"),
        ([f"a/{name}/model-00001-of-00002.safetensors" for name in "bc"], "out/*"),
        (["a/optimizer.pt", "a/notes.txt"], ""),
        (["a/b/c/d/e.pt"], ""),
    ],
)
def test_a_folder_of_folders_of_files_is_answered_by_the_pattern_that_gives_them(
    tmp_path: Path, files: list[str], pattern: str
) -> None:
    for file in files:
        (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / file).touch()
        if "-of-" in file:
            (tmp_path / "out" / file).with_name("model.safetensors.index.json").touch()
    with pytest.raises(FsclError, match="out: no checkpoint files in this folder") as error:
        find_checkpoints([tmp_path / "out"])
    given = re.findall("'(.*)' gives those in the folders below it$", str(error.value))
    assert given == ([f"{tmp_path}/{pattern}"] if pattern else [])
    assert len(find_checkpoints(given)) == 2 * len(given)


def test_a_folder_with_further_checkpoints_is_one_network_only_with_its_description(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "model.safetensors")
    torch.save(SECOND, tmp_path / "best.pt")
    assert list(find_checkpoints([tmp_path])) == ["best", "model"]
    (tmp_path / "config.json").write_text("{}")
    assert list(find_checkpoints([tmp_path])) == [tmp_path.name]
    assert same(read_checkpoint(tmp_path), FIRST)


def test_safetensors_are_preferred_to_pickles_of_the_same_network(tmp_path: Path) -> None:
    folder_of(tmp_path / "net", "model.safetensors", FIRST)
    torch.save(SECOND, tmp_path / "net/pytorch_model.bin")
    assert same(read_checkpoint(tmp_path / "net"), FIRST)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
            r"00002-of-00002\.safetensors: no such file",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), r"index\.json: not an index of shards"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), r"index\.json: not an index of shards"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "an index of no entries"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}'),
            r"shard '\.\./secret\.safetensors' is not the name of a file in the index's folder",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"x": 3}}'),
            "shard '3' is not the name of a file",
        ),
        (
            lambda f: save_file({"x": torch.ones(1)}, f / "model-00001-of-00002.safetensors"),
            r"model-00001-of-00002\.safetensors: entry '0\.weight' is missing, which model\.safetensors\.index\.json n",
        ),
    ],
    ids=range(7),
)
def test_incomplete_shards_are_refused_by_name(tmp_path: Path, change: Any, says: str) -> None:
    shards(tmp_path / "net", FIRST)
    assert same(read_checkpoint(tmp_path / "net/model.safetensors.index.json"), FIRST)
    change(tmp_path / "net")
    with pytest.raises(FsclError, match=says):
        read_checkpoint(tmp_path / "net")


def test_one_shard_is_not_taken_for_a_network(tmp_path: Path) -> None:
    shards(tmp_path, FIRST)
    with pytest.raises(FsclError, match=r"00001-of-00002\.safetensors: one of 2 shards of a network; give its index"):
        read_checkpoint(tmp_path / "model-00001-of-00002.safetensors")


def test_shards_that_claim_gigabytes_are_refused(tmp_path: Path) -> None:
    shards(tmp_path, {**FIRST, "big": torch.ones(2)}, "pytorch_model", ".bin")
    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())
    shard = tmp_path / index["weight_map"]["big"]
    torch.save({**torch.load(shard), "big": torch.zeros(1).expand(2**20, 2**20)}, shard)
    with pytest.raises(FsclError, match=r"entry 'big' .* claims more values than a file of \d+ bytes may have"):
        read_checkpoint(tmp_path)


def test_a_distributed_checkpoint_is_refused_with_the_function_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").touch()
    (tmp_path / ".metadata").touch()
    with pytest.raises(FsclError, match=r"a distributed checkpoint; torch\.\S*\.dcp_to_torch_save makes one"):
        find_checkpoints([tmp_path])


# Lightning, and what else wraps networks


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """The contents of a checkpoint of Lightning's trainer."""
    return {
        "epoch": 3,
        "global_step": 300,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "kth": None}},
        "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
        "hparams_name": "hparams",
        "hyper_parameters": {"lr": 0.1, "options": argparse.Namespace(width=4)},
    }


def test_checkpoints_of_lightning_are_read_and_what_is_outside_the_network_is_left_out_by_name(tmp_path: Path) -> None:
    own = {"head.weight": torch.randn(5, 3), "head.bias": torch.zeros(5), "metric.count": torch.tensor(3)}
    for i in range(2):
        torch.save(lightning(prefixed(network(i).state_dict(), "model.") | own), tmp_path / f"epoch={i}.ckpt")
    loaded = load_checkpoints([tmp_path])
    assert loaded.layers == ["0", "2", "4"]
    assert all(torch.equal(loaded.states[f"epoch={i}"]["2.weight"], network(i)[2].weight) for i in range(2))
    compared = compare(joint_decompose(loaded.states, 9, loaded.layers), not_compared=loaded.not_compared)
    assert compared.coverage.left_out == {"head": 15}
    assert "of the parameters are compared, without head" in compared.verdict


def test_a_head_outside_a_wrapper_does_not_take_the_name_of_a_layer_inside(tmp_path: Path) -> None:
    for i in range(2):
        state = prefixed(network(i).state_dict(), "model.") | {"4.weight": torch.ones(2, 2)}
        torch.save(state, tmp_path / f"{i}.pt")
    loaded = load_checkpoints([tmp_path])
    assert loaded.layers == ["model.0", "model.2", "model.4"]
    assert loaded.states["0"].keys() == state.keys()


@pytest.mark.parametrize("prefix", ["net.backbone.", "model.encoder.module.", "learner._orig_mod.net.", "a.b.c.d."])
@pytest.mark.parametrize("with_architecture", [False, True])
def test_prefixes_that_all_entries_share_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, with_architecture: bool
) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "my_networks", types.SimpleNamespace(build=network))
    for i in range(2):
        torch.save(lightning(prefixed(network(i).state_dict(), prefix)), tmp_path / f"{i}.ckpt")
    loaded = load_checkpoints([tmp_path], Architecture("my_networks:build") if with_architecture else None)
    assert all(same(state, network(i).state_dict()) for i, state in enumerate(loaded.states.values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: prune.l1_unstructured(net[2], "weight", 0.5),
        lambda net: parametrizations.weight_norm(net[2]),
        lambda net: nn.utils.weight_norm(net[2]),
        lambda net: net.half(),
        lambda net: net.bfloat16(),
    ],
    ids=["pruned", "weight norm", "weight norm by hooks", "half", "bfloat16"],
)
def test_similarities_are_those_of_the_weights_that_networks_compute_with(tmp_path: Path, change: Any) -> None:
    nets = [network(i) for i in range(3)]
    for i, net in enumerate(nets):
        change(net)
        torch.save(lightning(prefixed(net.state_dict(), "model.")), tmp_path / f"{i}.ckpt")
    loaded = load_checkpoints([tmp_path])
    similarity = compare(joint_decompose(loaded.states, 27, loaded.layers)).matrix
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for layer in (0, 2):
        flat = torch.stack([net[layer].weight.detach().double().flatten() for net in nets])
        flat /= flat.norm(dim=1, keepdim=True)
        expected += flat @ flat.T / 2
    torch.testing.assert_close(torch.from_numpy(similarity), expected, atol=1e-5, rtol=0)
