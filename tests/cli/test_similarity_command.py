"""``fscl similarity`` compares a folder of checkpoints and writes a table, figures and plain data."""

import copy
import csv
import errno
import io
import json
import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import fscl as package
from benchmarks.hostile.trial import Trial, attempt
from fscl import AtomBank, decompose
from fscl.compare import joint_decompose
from fscl.compare.checkpoints import load_checkpoints
from fscl.compare.comparison import compare, write_comparison
from fscl.compare.comparison_text import lines

pytestmark = pytest.mark.usefixtures("undrawn")

Fscl = Callable[..., Any]  # the fixture, see conftest.py

LEFT_OUT = ["another.pt", "cut.pt", "evil.pt", "evil_too.bin"]
WRITTEN = ["clustered.png", "similarity.csv", "similarity.json", "similarity.png"]


def refused(ended: Any, says: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert re.search(says, ended.err), ended.err
    assert ended.out == ""


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    rows = list(csv.reader(path.open(newline="")))
    assert [row[0] for row in rows[1:]] == rows[0][1:]
    return rows[0][1:], np.array([[float(v) for v in row[1:]] for row in rows[1:]])


@pytest.mark.parametrize("written", range(4))
def test_a_full_disk_leaves_all_files_of_a_comparison_or_none(
    fscl: Fscl, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    flushed = iter(range(written))

    def flush(_: int) -> None:
        if next(flushed, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", flush)
    ended = fscl("similarity", folder, "-o", "out")
    assert ended.code == 2
    assert re.search(r"cannot write .*out/.*: the disk is full", ended.err)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.usefixtures("drawn")
def test_a_folder_of_checkpoints_is_compared_and_its_files_read_back(
    fscl: Fscl, folder: Path, tmp_path: Path, fine_tuned: dict[str, nn.Module]
) -> None:
    ended = fscl("similarity", folder, "-o", "deep/out")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    out = tmp_path / "deep/out"
    assert sorted(os.listdir(out)) == WRITTEN
    expected = compare(joint_decompose({n: m.state_dict() for n, m in fine_tuned.items()}))
    names, matrix = read_csv(out / "similarity.csv")
    assert names == list(fine_tuned)
    np.testing.assert_array_equal(matrix, expected.matrix)
    data = json.loads((out / "similarity.json").read_text())
    np.testing.assert_array_equal(data["matrix"], matrix)
    assert (data["metric"], data["aggregate"], data["arch"], data["left_out"]) == ("cosine", "mean", None, {})
    assert data["fscl"] == package.__version__
    assert [g["members"] for g in data["groups"]] == [[n for n in names if n.startswith(f"start{s}")] for s in range(3)]
    assert data["files"]["start1_task2"] == str(folder / "start1_task2.pt")
    for picture in ("similarity.png", "clustered.png"):
        with Image.open(out / picture) as image:
            image.load()
            assert min(image.size) > 400
    assert "Not to be trusted as a whole: these networks do not share a start" in ended.out
    assert "group 3: start2_task0, start2_task1, start2_task2, start2_task3 (9" in ended.out


def test_json_on_stdout_is_what_the_file_holds_and_quiet_prints_nothing(
    fscl: Fscl, folder: Path, tmp_path: Path
) -> None:
    ended = fscl("similarity", folder, "--json")
    assert (ended.code, ended.err) == (0, "")
    printed = json.loads(ended.out)
    files = [f"similarity/{name}" for name in WRITTEN]
    assert (printed.pop("notes"), sorted(printed.pop("written"))) == ([], files)
    assert printed == json.loads((tmp_path / "similarity/similarity.json").read_text())
    assert fscl("similarity", folder, "-q") == (0, "", "")


def test_equal_networks_in_other_file_formats_give_equal_similarities(
    fscl: Fscl, tmp_path: Path, fine_tuned: dict[str, nn.Module]
) -> None:
    few = {name: model for name, model in fine_tuned.items() if name[-1] in "03"}
    for name, model in few.items():
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    ended = fscl("similarity", tmp_path / "*.safetensors", "-o", "other")
    assert ended.code == 0, ended.err
    names, matrix = read_csv(tmp_path / "other/similarity.csv")
    assert names == list(few)
    np.testing.assert_allclose(matrix, compare(joint_decompose(few)).matrix, atol=1e-6)


def test_checkpoints_are_compared_in_the_order_given(fscl: Fscl, folder: Path, tmp_path: Path) -> None:
    files = [folder / f"start2_task{t}.pt" for t in (3, 0, 2)]
    ended = fscl("similarity", *files, "--metric", "filter", "--aggregate", "product", "--atoms", 27)
    assert ended.code == 0, ended.err
    assert "Trusted: these networks share a start, and 27 atoms explain 100 % of their filters" in ended.out
    names, matrix = read_csv(tmp_path / "similarity/similarity.csv")
    assert names == ["start2_task3", "start2_task0", "start2_task2"]
    assert (matrix.diagonal() == 1).all()
    assert (matrix == matrix.T).all()


@pytest.mark.usefixtures("drawn")
def test_names_with_commas_and_quotes_read_back(fscl: Fscl, folder: Path, tmp_path: Path) -> None:
    for old, new in (("start0_task0", 'apple, "pear"'), ("start0_task1", "a $x_1$ b")):
        (folder / f"{old}.pt").rename(tmp_path / f"{new}.pt")
    assert fscl("similarity", tmp_path / 'apple, "pear".pt', tmp_path / "a $x_1$ b.pt").code == 0
    assert read_csv(tmp_path / "similarity/similarity.csv")[0] == ['apple, "pear"', "a $x_1$ b"]


NAMES = ["a\nb", "a\tb", "\x1b[31mred", "na\udcefve", "=cmd|' C'!A0", "+1", "-1", "@sum", "$\\frac{a$", "花"]


@pytest.mark.usefixtures("drawn")
def test_file_names_of_any_bytes_are_escaped_in_tables(fscl: Fscl, folder: Path, tmp_path: Path) -> None:
    content = (folder / "start0_task0.pt").read_bytes()
    (tmp_path / "odd").mkdir()
    for name in NAMES:
        (tmp_path / "odd" / f"{name}.pt").write_bytes(content)
    (tmp_path / "odd" / "\ncut.pt").write_bytes(content[:900])
    ended = fscl("similarity", "odd", "--skip-broken")
    assert ended.code == 0, ended.err
    assert ended.err.count("\n") == ended.err.count("left out: ") == 1
    assert all(line.isprintable() for line in ended.out.splitlines())
    names, matrix = read_csv(tmp_path / "similarity/similarity.csv")
    assert matrix.shape == (len(NAMES), len(NAMES))
    assert {"a\\nb", "a\\tb", "na\\xefve", "'=cmd|' C'!A0", "'+1", "'-1", "'@sum", "花"} < set(names)
    data = json.loads((tmp_path / "similarity/similarity.json").read_text())
    assert set(data["names"]) == set(data["files"])
    assert {os.path.basename(path) for path in data["left_out"]} == {"\\ncut.pt"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda net: parametrizations.orthogonal(net[9]),
            r"Not compared: 9 \(its weight is computed by '.*', in an unknown way",
        ),
        (lambda net: net.register_buffer("blur", torch.ones(1, 1, 5, 5)), r"Not compared: blur \(an entry of an unk"),
        (lambda net: net.append(nn.Conv3d(3, 4, 3)), r"Not compared: 14 \(a convolution of three dimensions\)"),
    ],
)
def test_layers_that_cannot_be_compared_are_named_and_the_verdict_is_not_trusted(
    fscl: Fscl, tmp_path: Path, fine_tuned: dict[str, nn.Module], change: Any, says: str
) -> None:
    for name in ("start0_task0", "start0_task1"):
        net = copy.deepcopy(fine_tuned[name])
        change(net)
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    ended = fscl("similarity", *sorted(tmp_path.glob("*.pt")), "--atoms", 18)
    assert ended.code == 0, ended.err
    assert "Not compared: 13 (the head, which each task has for itself)\n" in ended.out
    assert re.search(says, ended.out)
    assert re.search(r"To be read with care: .*; 1 of \d layers could not be compared", ended.out)
    data = json.loads((tmp_path / "similarity/similarity.json").read_text())
    assert not data["verdict"]["trusted"]
    assert len(data["layers"]["not_compared"]) == 1
    assert 0 < data["layers"]["compared_share"] < 1


def test_pruned_networks_are_compared_by_their_remaining_weights(
    fscl: Fscl, tmp_path: Path, fine_tuned: dict[str, nn.Module]
) -> None:
    nets = [copy.deepcopy(fine_tuned[f"start0_task{t}"]) for t in range(3)]
    for i, net in enumerate(nets):
        for layer in (0, 4, 9):
            prune.l1_unstructured(net[layer], "weight", 0.5)
        torch.save(net.state_dict(), tmp_path / f"{i}.pt")
    ended = fscl("similarity", *sorted(tmp_path.glob("*.pt")), "--atoms", 27)
    assert "3 checkpoints, 4 layers" in ended.out
    expected = []
    for layer in (0, 4, 7, 9):
        flat = np.stack([net[layer].weight.detach().double().flatten().numpy() for net in nets])
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        expected.append(flat @ flat.T)
    np.testing.assert_allclose(
        read_csv(tmp_path / "similarity/similarity.csv")[1], np.mean(expected, axis=0), atol=1e-6
    )


@pytest.mark.usefixtures("drawn")
def test_comparing_a_thousand_networks_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    start = nn.Conv2d(3, 8, 3).state_dict()
    for i in range(1000):
        moved = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in start.items()}
        torch.save(moved, tmp_path / "nets" / f"network_{i:04}.pt")

    def compare_all() -> bool:
        found = load_checkpoints([tmp_path / "nets"])
        compared = compare(joint_decompose(found.states, 9, found.layers), not_compared=found.not_compared)
        return len(write_comparison(compared, tmp_path / "out", {})) == 4 and len(lines(compared)) > 1000

    # of 1 GB, what is imported takes up to 700
    outcome = attempt(Trial("a thousand networks", compare_all), seconds=250, megabytes=400)
    assert outcome.kind == "right", outcome.text
    with Image.open(tmp_path / "out/clustered.png") as image:
        assert max(image.size) < 3000


def test_broken_files_are_refused_or_with_skip_broken_left_out_and_named(
    fscl: Fscl, folder: Path, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    for file in folder.glob("start[12]_*.pt"):
        file.unlink()
    assert fscl("similarity", folder, "-o", "whole").code == 0
    torch.save({"state_dict": Evil()}, folder / "evil.pt")
    (folder / "evil_too.bin").write_bytes(pickle.dumps(Evil(), 2))
    (folder / "cut.pt").write_bytes((folder / "start0_task0.pt").read_bytes()[:5000])
    torch.save(nn.Sequential(nn.Conv2d(1, 8, 3)).state_dict(), folder / "another.pt")  # the first of them
    for name, says in (
        ("evil.pt", r"evil\.pt: holds posix\.system, which is not loaded"),
        ("evil_too.bin", r"evil_too\.bin: holds|evil_too\.bin: damaged"),
        ("cut.pt", r"cut\.pt: damaged or truncated"),
        (
            "another.pt",
            r"another\.pt: layer '0' has filters \(8, 1, 3, 3\) here and filters \(16, 1, 3, 3\) in .*start0",
        ),
    ):
        refused(fscl("similarity", folder / "start0_task0.pt", folder / name, "-o", "out"), says)
        assert not (tmp_path / "out").exists()
    refused(fscl("similarity", folder, "-o", "out"), r"cut\.pt: damaged .*; --skip-broken goes on without it$")
    ended = fscl("similarity", folder, "-o", "out", "--skip-broken")
    assert ended.code == 0
    assert ended.err.count("\n") == 4
    for line, name in zip(ended.err.splitlines(), LEFT_OUT, strict=True):
        assert line.startswith(f"left out: {folder / name}: ")
    assert not (tmp_path / "mark").exists()
    assert (tmp_path / "out/similarity.csv").read_bytes() == (tmp_path / "whole/similarity.csv").read_bytes()
    left = json.loads((tmp_path / "out/similarity.json").read_text())["left_out"]
    assert sorted(Path(path).name for path in left) == LEFT_OUT


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], r"nowhere: no such file or folder"),
        (["nets", "nets/start0_task0.pt"], r"nets/start0_task0\.pt: given twice"),
        (["nets/start0_task0.pt"], r"1 checkpoint to compare; it takes at least 2"),
        (["nets", "--metric", "cosin"], r"--metric is .cosin.; cosine, filter"),
        (["nets", "--aggregate", "sum"], r"--aggregate is .sum.; product, mean"),
        (["nets", "--atoms", "0"], r"--atoms is 0; it must be at least 1"),
        (["nets", "--arch", "torchvision:resnet19"], r"unknown network 'torchvision:resnet19'; known: convnet"),
        (
            ["nets", "--arch", "resnt18"],
            r"unknown network .torchvision:resnt18.; .* mean torchvision:resnet18 or",
        ),
        (["nets", "--arch", "resnet18"], r"entry 'conv1\.weight' \(64, 1, 7, 7\)|is missing"),
        (["nets", "--state", "ema"], r"start0_task0\.pt: holds no network 'ema'; --state takes '0', '1', '4'"),
        (["nets", "--arch", "torchvision:resnet18"], r"entry 'conv1\.weight' \(64, 1, 7, 7\)|is missing"),
        (["nets", "--bank", "b.safetensors"], r"--bank b\.safetensors: give --arch and a \.safetensors file"),
        (["nets", "--bank", "b.pt", "--arch", "convnet"], r"--bank b\.pt: give --arch and a \.safetensors file"),
        (["nets", "-o", "file/out"], r"--out file/out: cannot be written"),
    ],
)
def test_a_mistake_in_fscl_similarity_ends_with_one_line_and_exit_code_2(
    fscl: Fscl, folder: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    refused(fscl("similarity", *arguments), says)
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_are_told_before_torch_is_imported(folder: Path, tmp_path: Path) -> None:
    mistakes = [
        ["nowhere"],
        ["nets/start0_task0.pt"],
        ["nets", "--metric", "cosin"],
        ["nets", "--aggregate", "sum"],
        ["nets", "--atoms", "0"],
        ["nets", "--arch", "resnt18"],
        ["nets", "--arch", "timm:resnt18"],
        ["nets", "--arch", "no_such_module:build"],
        ["nets", "--bank", "b.safetensors"],
    ]
    script = (
        "import sys\n"
        "from fscl.cli import app\n"
        f"for mistake in {mistakes}:\n"
        "    sys.argv = ['fscl', 'similarity', *mistake]\n"
        "    try:\n"
        "        app.main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 2, mistake\n"
        "slow = {'torch', 'torchvision', 'timm', 'numpy', 'matplotlib', 'avalanche'} & sys.modules.keys()\n"
        "assert not slow, slow\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("error: ") == ended.stderr.count("\n") == len(mistakes)


def test_the_network_that_state_names_is_compared_and_other_networks_are_noted(
    fscl: Fscl, tmp_path: Path, fine_tuned: dict[str, nn.Module]
) -> None:
    (tmp_path / "both").mkdir()
    for t in range(3):
        nets = {key: fine_tuned[f"start{s}_task{t}"].state_dict() for s, key in enumerate(("state_dict", "ema"))}
        torch.save({**nets, "args": Namespace(lr=0.1)}, tmp_path / f"both/{t}.pth.tar")
    for s, key in enumerate(("state_dict", "ema")):
        ended = fscl("similarity", "both", "--state", key, "-o", key)
        assert ended.code == 0, ended.err
        assert "Note: " not in ended.out
        expected = compare(joint_decompose({str(t): fine_tuned[f"start{s}_task{t}"] for t in range(3)}))
        np.testing.assert_allclose(read_csv(tmp_path / key / "similarity.csv")[1], expected.matrix, atol=1e-6)
        assert json.loads((tmp_path / key / "similarity.json").read_text())["state"] == key
    ended = fscl("similarity", "both", "-o", "usual")
    assert "Note: the files hold ema, too; --state ema compares it\n" in ended.out
    assert (tmp_path / "usual/similarity.csv").read_bytes() == (tmp_path / "state_dict/similarity.csv").read_bytes()


def test_the_verdict_names_left_out_layers_and_the_compared_share_of_the_parameters(
    fscl: Fscl, folder: Path, tmp_path: Path, fine_tuned: dict[str, nn.Module]
) -> None:
    files = [folder / f"start0_task{t}.pt" for t in (0, 1)]
    ended = fscl("similarity", *files, "--atoms", 18)
    net = fine_tuned["start0_task0"]
    share = sum(net[i].weight.numel() for i in (0, 4, 7, 9)) / sum(p.numel() for p in net.parameters())
    says = rf"Trusted: .*; {int(1000 * share) / 10} % of the parameters are compared, without 13\n"
    assert re.search(says, ended.out), ended.out
    layers = json.loads((tmp_path / "similarity/similarity.json").read_text())["layers"]
    assert layers["left_out"] == {"13": 3 * 128}
    assert layers["compared_share"] == share


@pytest.mark.parametrize("terminal", [True, False])
def test_reading_many_files_shows_a_bar_on_a_terminal_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    shown = io.StringIO()

    def console(stderr: bool) -> Console:
        assert stderr
        return Console(file=shown, force_terminal=terminal, width=80)

    monkeypatch.setattr("fscl.compare.checkpoints.reading.Console", console)
    load_checkpoints([folder], progress=True)
    text = shown.getvalue()
    assert ("Reading" in text and "12/12" in text) if terminal else text == ""
    load_checkpoints([folder])
    assert shown.getvalue() == text


@torch.no_grad()
def test_a_bank_of_checkpoints_restores_their_networks(
    fscl: Fscl, folder: Path, tmp_path: Path, fine_tuned: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    sample = fine_tuned["start0_task0"]

    def build(num_classes: int) -> nn.Module:
        model = copy.deepcopy(sample)
        model[-1] = nn.Linear(128, num_classes)
        return model

    monkeypatch.setitem(sys.modules, "my_own", types.SimpleNamespace(build=build))
    command = ["similarity", folder, "--arch", "my_own:build", "--bank", "all.safetensors", "-o"]
    (tmp_path / "file").write_text("x")
    astray = ["similarity", folder, "--arch", "my_own:build", "--bank", "file/b.safetensors"]
    refused(fscl(*astray), r"--bank file: cannot be written \(")
    assert not (tmp_path / "similarity").exists()
    ended = fscl(*command, "exact", "--atoms", 36)
    assert ended.code == 0
    assert "Note: " not in ended.out
    bank = AtomBank.load(tmp_path / "all.safetensors")
    assert bank.names == list(fine_tuned)
    assert bank.layers == ["0", "4", "9"]
    x = torch.rand(5, 1, 8, 8)
    back = decompose(build(10), 36 * 3).model.eval()
    for task, model in enumerate(fine_tuned.values()):
        bank.restore(back, task)
        torch.testing.assert_close(back(x), model(x), rtol=1e-4, atol=1e-5)
    assert "7.weight" in bank.entries(0)  # the 1x1 convolution is each network's own
    similarity = read_csv(tmp_path / "exact/similarity.csv")[1]
    flat = np.stack([m[7].weight.detach().double().flatten().numpy() for m in fine_tuned.values()])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    atoms = bank.similarity(aggregate="mean").numpy()
    np.testing.assert_allclose((3 * atoms + flat @ flat.T) / 4, similarity, atol=1e-6)
    ended = fscl(*command, "near")
    assert ended.code == 0
    assert "all.safetensors" in ended.out
    assert re.search(
        r"Note: the bank restores filters only to within [\d.]+ % .*; --atoms 36 restores .* exactly\n", ended.out
    )
    bank, back = AtomBank.load(tmp_path / "all.safetensors"), decompose(build(10), 27).model.eval()
    bank.restore(back, 11)
    wrong = (back(x) - fine_tuned["start2_task3"](x)).norm() / fine_tuned["start2_task3"](x).norm()
    assert 1e-4 < wrong < 0.4
    drawn = fscl("heatmap", "all.safetensors", "-o", "h.png")  # a bank like any other
    assert drawn.code == 0, drawn.err


def test_nearer_copies_of_a_resnet18_are_more_similar_and_the_verdict_is_trusted(fscl: Fscl, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    start = resnet18(num_classes=5).state_dict()
    for name, by in (("a", 0.0), ("b", 0.05), ("c", 0.2)):
        moved = {n: t + by * t.std() * torch.randn_like(t) if t.ndim == 4 else t for n, t in start.items()}
        moved |= {"fc.weight": torch.randn(5 + len(name), 512), "fc.bias": torch.zeros(5 + len(name))}
        torch.save({"state_dict": {f"module.{n}": t.half() for n, t in moved.items()}}, tmp_path / f"{name}.pth")
    files = [tmp_path / f"{name}.pth" for name in "abc"]
    ended = fscl("similarity", *files, "--arch", "torchvision:resnet18")
    assert ended.code == 0, ended.err
    assert "20 layers" in ended.out
    assert "Trusted" in ended.out
    _, matrix = read_csv(tmp_path / "similarity/similarity.csv")
    assert matrix[0, 1] > matrix[0, 2] > 0.9
    layers = json.loads((tmp_path / "similarity/similarity.json").read_text())["explained"]["by_layer"]
    assert list(layers)[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
