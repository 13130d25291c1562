"""The command line as users see it: what it prints, its exit code, and what it leaves on disk."""

import errno
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from fscl import AtomBank, decompose, freeze_coefficients
from fscl.cli.run import _seeds
from fscl.cli.stopping import told_to_stop
from fscl.continual.training.trainer import Trainer
from fscl.runs.recipe import find_recipes, load_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

NUMBERS = ("tasks", "accuracy", "transfer", "untrained", "start", "similarity")
THREE = "split.tasks=[['0', '1'], ['2', '3'], ['4', '5']]"
TINY = ("--jobs", "1", "--seeds", "1")
for setting in ("training.epochs=1", "model.args.widths=[8, 8]", THREE):
    TINY += ("--set", setting)

Fscl = Callable[..., Any]  # the fixture, see conftest.py
pytestmark = pytest.mark.usefixtures("undrawn")


def refused(ended: Any, says: str) -> None:
    """Checks that a command ended with one clear line on stderr and exit code 2."""
    assert ended.err.startswith("error: "), ended
    assert ended.err.count("\n") == 1
    assert re.search(says, ended.err), ended.err
    assert ended.code == 2


def numbers(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "run.json").read_text())
    return {key: data[key] for key in NUMBERS}


def learned(folder: Path) -> int:
    """Number of finished experiences of a run on disk."""
    file = folder / "run.json"
    return len(json.loads(file.read_text())["accuracy"]) if file.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def make_bank(path: Path, tasks: int = 3) -> Path:
    model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))).model
    freeze_coefficients(model)
    bank = AtomBank(model)
    for task in range(tasks):
        nn.init.normal_(model[0].atoms)
        bank.store(model, task, f"task {task}")
    bank.save(path)
    return path


def make_images(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat", "dog"), images: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                picture = rng.integers(0, 60, (12 + i, 10, 3)) + np.array([60 * c, 0, 190 - 60 * c])
                Image.fromarray(picture.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


PETS = """
title = "Pets"
[data]
name = "pets"
image_size = 8
[split]
tasks = [["cat", "ant"], ["dog", "bee"]]
[model]
args = { widths = [8, 8], pool_after = [0] }
[training]
epochs = 2
"""


def pets(folder: Path, text: str = PETS) -> Path:
    (folder / "pets.toml").write_text(text)
    return folder / "pets.toml"


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the finished run that ``fscl run -s naive`` with the options TINY does."""
    out = tmp_path_factory.mktemp("finished")
    settings = [TINY[i + 1] for i, option in enumerate(TINY) if option == "--set"]
    run_one(RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy("naive"), settings), 0), out)
    return out


# what the user gets to see


def test_fscl_help_is_quick_and_imports_no_slow_library() -> None:
    code = """
import sys
sys.argv = ["fscl", "--help"]
from fscl.cli.app import main
try:
    main()
except SystemExit as stop:
    print("code", stop.code or 0)
print("slow:", sorted({m.partition(".")[0] for m in sys.modules} & {
    "torch", "torchvision", "avalanche", "matplotlib", "seaborn", "sklearn", "scipy", "numpy", "joblib", "PIL"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "code 0" in done.stdout
    assert "slow: []" in done.stdout
    for command in ("list", "run", "report", "heatmap", "similarity"):
        assert re.search(rf"\b{command}\b", done.stdout)


@pytest.mark.parametrize("command", ["list", "run", "report", "heatmap", "similarity"])
def test_every_command_has_help(fscl: Fscl, command: str) -> None:
    ended = fscl(command, "--help")
    assert ended.code == 0
    assert "Usage" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_fscl_list_shows_every_recipe_and_whether_its_data_is_present(fscl: Fscl, tmp_path: Path) -> None:
    (tmp_path / "data/cifar10/train").mkdir(parents=True)
    (tmp_path / "data/cifar10/test").mkdir()
    ended = fscl("list")
    assert ended.code == 0
    lines = ended.out.splitlines()
    state = {}
    for name in find_recipes("benchmarks"):
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        state[name] = line.split()[-1]
    assert set(state.values()) <= {"present", "missing"}
    assert state["split_digits"] == state["split_cifar10"] == "present"
    assert state["split_cifar100"] == state["split_mnist"] == "missing"
    for name in find_recipes("strategies"):
        assert any(line.split()[:1] == [name] for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("drawn")
def test_fscl_run_prints_a_table_and_writes_a_report(fscl: Fscl, tmp_path: Path) -> None:
    ended = fscl("run", "-s", "naive", "-s", "atom_swapping", "--out", "[b]runs", *TINY)
    assert ended.code == 0
    assert re.fullmatch(
        r"(Fine-tuning|Atom swapping), seed 0: .*\n(Fine-tuning|Atom swapping), seed 0: .*\n", ended.err
    )
    assert "seed 0" not in ended.out, "progress is no result"
    assert "Fine-tuning" in ended.out
    assert "ACC" in ended.out
    assert max(len(line) for line in ended.out.splitlines() if not line.startswith("Report:")) <= 80
    page = tmp_path / "[b]runs/split_digits/report/index.html"
    assert f"Report: {page.relative_to(tmp_path)}" in ended.out
    assert "Fine-tuning" in page.read_text()
    left = {p.name for p in (tmp_path / "[b]runs").rglob("*") if p.is_file() and "report" not in p.parts}
    assert left <= {"run.json", "bank.safetensors", "weights.safetensors", ".lock"}
    # again: nothing is trained, and --report says where to
    before = (tmp_path / "[b]runs/split_digits/naive/seed_0/run.json").stat().st_mtime_ns
    began = time.monotonic()
    again = fscl("run", "-s", "naive", "-s", "naive", "--out", "[b]runs", "--report", "elsewhere", *TINY)
    assert again.code == 0
    assert time.monotonic() - began < 30
    assert (tmp_path / "[b]runs/split_digits/naive/seed_0/run.json").stat().st_mtime_ns == before
    assert (tmp_path / "elsewhere/index.html").exists()
    assert again.err == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "gpu"], "--device gpu: not available here"),
        (["--device", "cuda:77"], "--device cuda:77: not available here"),
        (["--log", "foo"], "--log is 'foo'; "),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--set", "training.epoch=1"], "unknown key 'training.epoch'"),
        (["--set", "args.epochs=1"], "Naive takes no recipe argument 'epochs'"),
        (["--set", "model.args.width=8"], "cannot be built with .*'width'"),
        (["--set", "strategies.naive={}"], "unknown section 'strategies'"),
    ],
)
def test_a_mistake_is_told_although_all_runs_are_finished(
    fscl: Fscl, finished_runs: Path, options: list[str], says: str
) -> None:
    before = contents(finished_runs)
    refused(fscl("run", "-s", "naive", "--out", finished_runs, *TINY, *options), says)
    assert contents(finished_runs) == before


def test_options_that_have_nothing_to_do_are_named(fscl: Fscl, finished_runs: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ended = fscl("run", "-s", "naive", "--out", finished_runs, "--report", "report", *TINY, "--log", "csv")
    assert (ended.code, ended.err) == (0, "All runs are finished, so nothing is left to do for --log csv.\n")
    assert not list(finished_runs.rglob("log.csv"))


def test_finished_runs_need_neither_torch_nor_avalanche(finished_runs: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.argv = {["fscl", "run", "-s", "naive", "--out", str(finished_runs), "--report", "report", *TINY]!r}
from fscl.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("slow:", sorted({{"torch", "avalanche"}} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path)
    assert ended.stdout.endswith("slow: []\n")
    assert ended.stderr == ""


def test_a_users_own_image_folder_runs_from_a_short_recipe(fscl: Fscl, tmp_path: Path) -> None:
    make_images(tmp_path / "mine/pets")
    ended = fscl("run", pets(tmp_path), "-s", "atom_swapping", "--seeds", 1, "--data", "mine")
    assert ended.code == 0, ended.err
    data = json.loads((tmp_path / "runs/pets/atom_swapping/seed_0/run.json").read_text())
    assert sorted(task["name"] for task in data["tasks"]) == ["cat, ant", "dog, bee"]
    bank = AtomBank.load(tmp_path / "runs/pets/atom_swapping/seed_0/bank.safetensors")
    assert bank.names == [task["name"] for task in data["tasks"]]
    page = (tmp_path / "runs/pets/report/index.html").read_text()
    assert "cat, ant" in page
    assert "dog, bee" in page
    drawn = fscl("heatmap", "runs/pets/atom_swapping/seed_0/bank.safetensors", "-o", "pets.svg")
    assert drawn.code == 0
    assert "cat, ant" in (tmp_path / "pets.svg").read_text()


def test_fscl_report_takes_runs_of_several_benchmarks(fscl: Fscl, tmp_path: Path) -> None:
    make_images(tmp_path / "data/pets")
    assert fscl("run", pets(tmp_path), "-s", "naive", "--seeds", 1).code == 0
    assert fscl("run", "-s", "naive", *TINY).code == 0
    ended = fscl("report", "runs/pets", "runs/split_digits/naive", "-o", "both")
    assert ended.code == 0
    for file in ("index.html", "README.md"):
        page = (tmp_path / "both" / file).read_text()
        assert "Pets" in page
        assert "Split Digits, 5 tasks" in page  # its title


def test_the_default_strategies_without_task_labels_differ(fscl: Fscl, tmp_path: Path) -> None:
    ended = fscl("run", "--set", "split.scenario=class", *TINY)
    assert ended.code == 0
    for title in ("Fine-tuning", "EWC", "Replay", "Joint training"):
        assert title in ended.out
    learners = {"atom_selection", "naive", "ewc", "replay", "joint"}
    assert {p.name for p in (tmp_path / "runs/split_digits").iterdir()} == {*learners, "report"}


@pytest.mark.parametrize(("name", "start"), [("h.png", b"\x89PNG\r\n"), ("h.svg", b"<?xml"), ("h.pdf", b"%PDF")])
def test_fscl_heatmap_writes_a_picture_in_each_format(fscl: Fscl, tmp_path: Path, name: str, start: bytes) -> None:
    bank = make_bank(tmp_path / "bank.safetensors")
    ended = fscl("heatmap", bank, "-o", f"deep/er/{name}")
    assert ended.code == 0
    assert ended.out.startswith("3 tasks, 1 layers, cosine (product over layers) -> ")
    file = tmp_path / "deep/er" / name
    assert file.read_bytes().startswith(start)
    if name.endswith("png"):
        with Image.open(file) as image:
            image.load()
            assert min(image.size) > 300
    assert os.listdir(tmp_path / "deep/er") == [name]


def test_fscl_heatmap_merges_banks_with_the_same_coefficients(fscl: Fscl, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank.safetensors")
    assert fscl("heatmap", bank, bank).out.startswith("6 tasks")


# mistakes, and what is broken


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["run", "split_digit"],
            r"unknown benchmark 'split_digit' \(did you mean 'split_digits'\?\); known: .*split_",
        ),
        (["run", "-s", "ewcc"], r"unknown strategy 'ewcc' \(did you mean 'ewc'\?\)"),
        (["run", "--seeds", "0"], r"--seeds is 0; it must be at least 1"),
        (["run", "--seeds", "-3"], r"--seeds is -3; it must be at least 1"),
        (["run", "--seeds", "99999999999999999999"], r"--seeds is '9+'; numbers up to 10000 would do"),
        (["run", "--seeds", f"0,{2**63}"], rf"--seeds is '0,{2**63}'; seeds up to {2**63 - 1} would do"),
        (["run", "--jobs", "0"], r"--jobs is 0; it must be at least 1"),
        (["run", "--threads", "0"], r"--threads is 0; it must be at least 1"),
        (["run", "--engine", "spark"], r"--engine is 'spark'; local or ray would do"),
        (["run", "--address", "here:1"], r"--address is here:1; it needs --engine ray"),
        (["run", "--gpus-per-run", "1"], r"--gpus-per-run is 1.0; it needs --engine ray"),
        (["run", "--engine", "ray", "--gpus-per-run", "-1"], r"--gpus-per-run is -1.0; it must be at least 0"),
        (["run", "-s", "from_scratch", "--set", "split.scenario=class"], r"needs a test image's task label"),
        (["run", "--validation", "1.5"], r"validation is 1.5; it is a share"),
        (["run", "--device", "cuda:77"], r"--device cuda:77: not available here"),
        (["run", "--device", "gpu"], r"--device gpu: not available here"),
        (["run", "--loader", "disk"], r"--loader is 'disk'; auto, device, host or off would do"),
        (["run", "--log", "csv", "--log", "foo"], r"--log is 'foo'; tensorboard, csv or wandb would do"),
        (["run", "--set", "epochs=3"], r"--set epochs=3: expected SECTION.KEY=VALUE"),
        (["run", "--set", "training.epochs=x"], r"--set: training.epochs = 'x'"),
        (
            ["run", "--set", "split.tasks=3"],
            r"10 classes cannot be shared out evenly among 3 tasks; numbers that fit: .1, 2, 5, 10.",
        ),
        (["run", "--set", "split.tasks=[['1', 'eleven']]"], r"unknown class 'eleven'; known classes: 0, 1, 2"),
        (
            ["run", "-s", "ewc", "--set", "args.lamda=3"],
            r"EWC takes no recipe argument 'lamda'; arguments: .*ewc_lambda",
        ),
        (
            ["run", "-s", "atom_swapping", "--set", "args.warm_start=last"],
            r"warm_start is 'last'; known: previous, first",
        ),
        (["run", "--set", "model.name=convent"], r"unknown network 'convent'; known: convnet, torchvision:NAME"),
        (["run", "--set", "model.args.width=3"], r"network 'convnet' cannot be built with .*'width'"),
        (
            ["run", "-s", "ewc", "--set", "args.mode=onlin"],
            r"ewc with network 'convnet' cannot be built with .*'onlin'",
        ),
        (
            ["run", "-s", "atom_swapping", "--set", "args.num_atoms=six"],
            "num_atoms = 'six' is str; int would do",
        ),
        (["run", "--set", "model.args.dropout=2"], r"cannot be built with .*'dropout': 2.*probability"),
        (["run", "--set", "data.name=nothing"], r"data set 'nothing' was not found"),
        (["run", "--out", "file/runs"], r"--out file/runs: cannot be written \(Not a directory\)"),
        (["run", "--out", "/proc/fscl"], r"--out /proc/fscl: cannot be written"),
        (["run", "--report", "file/report"], r"file/report: cannot be written"),
        (["run", "empty.toml"], r"empty.toml: 'data' is missing"),
        (
            ["run", "misspelt.toml"],
            r"misspelt.toml: unknown key 'splt' \(did you mean 'split'\?\); known keys: name, title",
        ),
        (["run", "wrong.toml"], r"wrong.toml: split.tasks = 0"),
        (["run", "-s", "classless.toml"], r"unknown strategy class 'avalanche.training.Ewc'.*expected a dotted path"),
        (
            ["run", "-s", "nostrategy.toml"],
            "OrderedDict': a recipe may name strategies of avalanche",
        ),
        (["run", "-s", "ewc", "-s", "other/ewc.toml"], r"two strategies are named 'ewc'"),
        (["report", "nowhere"], r"nowhere: no such file or folder"),
        (["report", "empty"], r"no run.json found \(empty\); give a folder that `fscl run --out` wrote"),
        (["heatmap", "nothing.safetensors"], r"nothing.safetensors: no such bank"),
        (["heatmap", "text.safetensors"], r"text.safetensors: damaged or truncated"),
        (["heatmap", "truncated.safetensors"], r"truncated.safetensors: damaged or truncated"),
        (
            ["heatmap", "newer.safetensors"],
            r"newer.safetensors: bank format 9, and this fscl reads format \d",
        ),
        (["heatmap", "foreign.safetensors"], r"foreign.safetensors: a safetensors file, but not an atom bank"),
        (
            ["heatmap", "bank.safetensors", "other.safetensors"],
            r"different coefficients.*compare tasks of one bank, or",
        ),
        (["heatmap", "single.safetensors"], r"single.safetensors: 1 task in the bank; a heatmap needs at least 2"),
        (["heatmap", "bank.safetensors", "-o", "h.bmp"], r"h.bmp: unknown kind of figure; use .png, .svg or .pdf"),
        (["heatmap", "bank.safetensors", "-o", "file/h.png"], r"cannot write file/h.png: "),
        (["heatmap", "bank.safetensors", "-o", "/proc/h.png"], r"cannot write /proc/h.png: "),
        (["heatmap", "bank.safetensors", "--metric", "cosin"], r"cosin.*cosine, filter, grassmann"),
        (
            ["heatmap", "bank.safetensors", "--aggregate", "sum"],
            r"--aggregate is 'sum'; product, mean or dep",
        ),
    ],
)
def test_a_users_mistake_ends_with_one_line_and_exit_code_2(
    fscl: Fscl, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "misspelt.toml").write_text("[data]\nname = 'digits'\n[splt]\ntasks = 5")
    (tmp_path / "wrong.toml").write_text("[data]\nname = 'digits'\n[split]\ntasks = 0")
    (tmp_path / "classless.toml").write_text("class = 'avalanche.training.Ewc'")
    (tmp_path / "nostrategy.toml").write_text("class = 'collections.OrderedDict'")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/ewc.toml").write_text("class = 'avalanche.training.Naive'")
    if arguments[0] == "heatmap":
        whole = make_bank(tmp_path / "bank.safetensors").read_bytes()
        make_bank(tmp_path / "other.safetensors")
        make_bank(tmp_path / "single.safetensors", 1)
        (tmp_path / "text.safetensors").write_text("hello")
        (tmp_path / "truncated.safetensors").write_bytes(whole[:-100])
        (tmp_path / "newer.safetensors").write_bytes(re.sub(rb'"version":"\d"', b'"version":"9"', whole))
        head = b'{"__metadata__":{"format":"pt"}}'
        (tmp_path / "foreign.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    before = contents(tmp_path)
    refused(fscl(*arguments), says)
    assert contents(tmp_path) == before  # nothing written, nothing lost


@pytest.mark.parametrize(
    "arguments",
    [["runn"], ["run", "--sedes", "3"], ["run", "--threads", "three"], ["heatmap"], ["report"], ["similarity"]],
)
def test_wrong_usage_ends_with_exit_code_2(fscl: Fscl, arguments: list[str]) -> None:
    ended = fscl(*arguments)
    assert ended.code == 2
    assert "Usage" in ended.err
    assert "Traceback" not in ended.err


def test_the_version_a_run_and_the_cache_are_shown(fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fscl("--version").out == f"fscl {version('fscl')}\n"
    assert fscl("run", "-s", "naive", *TINY, "--seeds", "4,1", "--set", "split.tasks=2").code == 0
    folders = sorted((tmp_path / "runs/split_digits/naive").iterdir())
    assert [folder.name for folder in folders] == ["seed_1", "seed_4"]
    shown = " ".join(fscl("show", folders[0]).out.split())
    accuracy = json.loads((folders[0] / "run.json").read_text())["accuracy"]
    assert "Fine-tuning (avalanche.training.Naive)" in shown
    assert "finished, 2 of 2 tasks" in shown
    assert f"{100 * accuracy[0][0]:.2f} {100 * accuracy[1][0]:.2f}" in shown
    refused(fscl("show", tmp_path), "no run in it")
    monkeypatch.setenv("FSCL_CACHE", str(tmp_path / "cache"))
    cache = tmp_path / "cache"
    assert fscl("cache").out == f"0 data sets, 0 B, in {cache}\n"
    cache.mkdir()
    (cache / "thesis.npy").write_bytes(b"mine")
    (cache / f"{'0' * 16}-{'a' * 16}.npy").write_bytes(b"0" * 2000)
    assert fscl("cache", "--clear").out == f"1 data sets, 2.0 kB, deleted from {cache}\n"
    assert [file.name for file in cache.iterdir()] == ["thesis.npy"]


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("3,", [3]), ("3,0", [3, 0]), ("10001,", [10001])])
def test_seeds_are_a_number_of_seeds_or_a_list(text: str, seeds: list[int]) -> None:
    assert _seeds(text) == seeds


@pytest.mark.parametrize("learner", ["atom_swapping", "naive"])
def test_a_network_without_spatial_convolutions_is_refused_before_training(fscl: Fscl, learner: str) -> None:
    ended = fscl("run", "-s", learner, "--set", "model.name=avalanche:SimpleMLP", "--set", "model.args={}")
    refused(ended, rf"{learner} with network 'avalanche:SimpleMLP': .*no spatial convolutions")


def test_a_network_for_other_images_is_refused_before_training(fscl: Fscl) -> None:
    ended = fscl("run", "-s", "naive", "--set", "model.name=torchvision:resnet18", "--set", "model.args={}")
    refused(ended, r"network 'torchvision:resnet18' does not take images of shape \(1, 8, 8\): .*3 channels")


def test_missing_data_without_a_network_is_named_in_one_line(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.error
    import urllib.request

    tried = []

    def offline(*arguments: Any, **_: Any) -> None:
        tried.append(arguments)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    (tmp_path / "nothing").mkdir()
    ended = fscl("run", "split_mnist", "--data", "nothing", "--jobs", 1)
    refused(
        ended, r"'mnist' was not found.*nothing/MNIST/raw.*nothing/mnist/train.*could not be downloaded.*--data or FSCL"
    )
    assert tried
    assert "%" not in ended.out  # no bars of a download


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda root: (root / "train/elk").mkdir(), r"pets/train/elk: no images in it"),
        (lambda root: (root / "test/cat/1.png").write_text("hello"), r"pets/test/cat/1.png: not a readable image"),
        (
            lambda root: (root / "test/cat/1.png").write_bytes((root / "test/cat/1.png").read_bytes()[:150]),
            r"cat/1.png: not",
        ),
        (
            lambda root: (root / "test/cat").rename(root / "test/cow"),
            r"training and test images have different classes: cat, cow",
        ),
    ],
)
def test_a_broken_image_folder_is_refused_in_one_line(
    fscl: Fscl, tmp_path: Path, break_it: Callable[[Path], object], says: str
) -> None:
    break_it(make_images(tmp_path / "data/pets"))
    refused(fscl("run", pets(tmp_path)), says)


def test_an_unknown_class_in_a_recipe_is_refused_in_one_line(fscl: Fscl, tmp_path: Path) -> None:
    make_images(tmp_path / "data/pets")
    ended = fscl("run", pets(tmp_path, PETS.replace("dog", "dgo")))
    refused(ended, r"unknown class 'dgo'; known classes: ant, bee, cat, dog")


def test_runs_of_another_recipe_are_refused_in_one_line_and_unchanged(fscl: Fscl, tmp_path: Path) -> None:
    assert fscl("run", "-s", "naive", *TINY).code == 0
    before = contents(tmp_path)
    ended = fscl("run", "-s", "naive", *TINY, "--set", "training.lr=0.01")
    refused(ended, r"runs/split_digits/naive/seed_0: .*holds a run of another recipe.*--overwrite.*another --out")
    assert contents(tmp_path) == before
    assert fscl("run", "-s", "naive", *TINY, "--set", "training.lr=0.01", "--overwrite").code == 0


def test_a_damaged_checkpoint_is_named_and_deleting_it_restarts_only_its_run(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "-s", "ewc", "-s", "naive", *TINY]
    assert fscl("run", "-s", "ewc", *TINY).code == 0
    ended_before = (tmp_path / "runs/split_digits/ewc/seed_0/run.json").stat().st_mtime_ns
    assert interrupted(fscl, monkeypatch, command).code == 130
    path = tmp_path / "runs/split_digits/naive/seed_0/checkpoint.pt"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x40
    path.write_bytes(whole)
    ended = fscl(*command)
    assert ended.code == 1, "the other run is there, and reported"
    assert re.fullmatch(r"error: .*checkpoint\.pt: damaged \(.*\); delete this file, and only this run .*\n", ended.err)
    assert path.read_bytes() == whole
    path.unlink()
    assert fscl(*command).code == 0
    assert (tmp_path / "runs/split_digits/ewc/seed_0/run.json").stat().st_mtime_ns == ended_before


def test_fscl_run_restores_a_damaged_record_from_the_checkpoint(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupted(fscl, monkeypatch, ["run", "-s", "naive", *TINY]).code == 130
    path = tmp_path / "runs/split_digits/naive/seed_0/run.json"
    path.write_bytes(path.read_bytes()[:300])
    assert fscl("run", "-s", "naive", *TINY).code == 0
    assert json.loads(path.read_text())["resumed"][0]["after"] == 2


def test_a_checkpoint_of_another_version_is_named_and_kept(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupted(fscl, monkeypatch, ["run", "-s", "naive", *TINY]).code == 130
    with monkeypatch.context() as patch:
        patch.setattr("fscl.runs.resume.FORMAT", 9)
        refused(
            fscl("run", "-s", "naive", *TINY),
            r"checkpoint\.pt: undamaged, but its format is 2, .* in the run\.json beside it$",
        )
    assert fscl("run", "-s", "naive", *TINY).code == 0


def test_some_failed_runs_give_exit_code_1_and_the_other_runs_are_reported(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_next = Trainer.train_next

    def fail(self: Trainer) -> Any:
        if self.seed in (1, 2) and self.done == 2:
            raise ZeroDivisionError("a learner's\nown")
        return train_next(self)

    monkeypatch.setattr(Trainer, "train_next", fail)
    command = ["run", "-s", "naive", *TINY, "--seeds", 3]
    ended = fscl(*command)
    assert ended.code == 1
    assert re.fullmatch(
        r"Fine-tuning, seed 0: .*\n"
        r"error: runs/split_digits/naive/seed_1 \(and 1 more\): ZeroDivisionError: a learner's own .*error.txt.*\n",
        ended.err,
    )
    assert "Fine-tuning" in ended.out
    page = (tmp_path / "runs/split_digits/report/README.md").read_text()
    assert "failed, 2 of 3 tasks (ZeroDivisionError: a learner's own)" in page
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert fscl(*command).code == 0
    assert "failed" not in (tmp_path / "runs/split_digits/report/README.md").read_text()


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no permission to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_fscl_run_on_a_full_disk_keeps_finished_tasks(fscl: Fscl, small_disk: Path) -> None:
    """With independent networks the checkpoint grows with every task, until it does not fit beside the one before."""
    command = ["run", "-s", "from_scratch", *TINY, "--set", "split.tasks=5", "--set", "model.args.widths=[16, 32]"]
    command += ["--out", small_disk]
    refused(fscl(*command), r"cannot write .*checkpoint.pt: ")
    folder = small_disk / "split_digits/from_scratch/seed_0"
    assert not [p for p in folder.iterdir() if "tmp" in p.name]
    kept = json.loads((folder / "run.json").read_text())
    assert 1 <= len(kept["accuracy"]) < 5
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert fscl(*command).code == 0
    assert fscl(*command, "--out", "roomy").code == 0
    assert numbers(folder) == numbers(Path("roomy/split_digits/from_scratch/seed_0"))
    assert json.loads((folder / "run.json").read_text())["resumed"]


def test_fscl_heatmap_on_a_full_disk_keeps_the_old_picture(fscl: Fscl, small_disk: Path, tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank.safetensors")
    assert fscl("heatmap", bank, "-o", small_disk / "h.png").code == 0
    before = (small_disk / "h.png").read_bytes()
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"0" * (free.f_bavail * free.f_bsize - 4096))
    refused(fscl("heatmap", bank, "-o", small_disk / "h.png"), r"cannot write .*h.png: the disk is full")
    assert (small_disk / "h.png").read_bytes() == before
    assert sorted(os.listdir(small_disk)) == ["filler", "h.png"]


def test_a_report_that_cannot_be_written_is_named_in_one_line(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fscl("run", "-s", "naive", *TINY).code == 0
    (tmp_path / "file").write_text("x")
    refused(fscl("report", "runs", "-o", "file/report"), r"cannot write file/report/.*: Not a directory")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(tmp_path / "runs")
    monkeypatch.setattr("fscl.report.page.write_report", full)
    refused(fscl("report", "runs"), "cannot write the report report: No space left on device")
    refused(fscl("run", "-s", "naive", *TINY), r"cannot write the report .*: No space left on device")
    assert contents(tmp_path / "runs") == before


# interrupted


def interrupted(
    fscl: Fscl, monkeypatch: pytest.MonkeyPatch, command: list[Any], experience: int = 2, by: int = signal.SIGINT
) -> Any:
    """Ctrl-C, or what else asks for the end, in the middle of an experience: a real signal to this process."""
    train_next = Trainer.train_next

    def stop(self: Trainer) -> Any:
        if self.done == experience:
            os.kill(os.getpid(), by)
            time.sleep(5)
        return train_next(self)

    # what a shell's background jobs ignore, or what runs below nohup, the tests would ignore, too
    before = signal.signal(by, signal.default_int_handler if by == signal.SIGINT else signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_next", stop)
            ended = fscl(*command)
        left = signal.SIG_DFL if by != signal.SIGINT else signal.default_int_handler
        assert signal.getsignal(by) is left, "a handler is left"
        return ended
    finally:
        signal.signal(by, before)


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_command_says_how_to_go_on_and_then_goes_on(
    fscl: Fscl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: int, code: int
) -> None:
    command = ["run", "-s", "naive", *TINY]
    ended = interrupted(fscl, monkeypatch, command, by=by)
    assert ended.code == code
    assert ended.err == "stopped; run the same command again to go on\n"
    folder = tmp_path / "runs/split_digits/naive/seed_0"
    assert len(json.loads((folder / "run.json").read_text())["accuracy"]) == 2
    assert not (folder / "progress").exists()
    assert fscl(*command).code == 0
    assert fscl(*command, "--out", "whole").code == 0
    assert numbers(folder) == numbers(tmp_path / "whole/split_digits/naive/seed_0")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """``nohup`` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with told_to_stop():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_ends_the_process_even_if_its_exception_is_swallowed() -> None:
    code = """
import os, signal, time
from fscl.cli import stopping
stopping.PATIENCE = 0.2
with stopping.told_to_stop():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except BaseException:
        time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "stopped; run the same command again to go on\n")


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_sigterm_ends_driver_and_workers_and_the_next_command_goes_on(
    fscl: Fscl, tmp_path: Path, whole_group: bool
) -> None:
    command = ["run", "-s", "naive", "-s", "ewc", "--seeds", "1", "--jobs", "2", "--set", "training.epochs=12"]
    runner = [sys.executable, "-c", "from fscl.cli.app import main; main()", *command]
    process = subprocess.Popen(runner, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 200
    while learned(tmp_path / "runs/split_digits/ewc/seed_0") < 1 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.splitlines()[-1:]) == (143, ["stopped; run the same command again to go on"])
    assert fscl(*command).code == 0
    assert fscl(*command, "--out", "whole").code == 0
    for learner in ("naive", "ewc"):
        folder = tmp_path / f"runs/split_digits/{learner}/seed_0"
        assert numbers(folder) == numbers(tmp_path / f"whole/split_digits/{learner}/seed_0")


KILLED = """
import signal
from fscl.continual.training.trainer import Trainer

train_next = Trainer.train_next

def killed(self):
    if type(self.strategy).__name__ == "EWC" and self.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_next(self)

Trainer.train_next = killed
"""


def test_the_same_command_after_kill_9_finishes_the_grid(fscl: Fscl, fork_fscl: Any, tmp_path: Path) -> None:
    """A real process is killed between two experiences of its second learner. The same command is run again."""
    command = ["run", "-s", "atom_swapping", "-s", "ewc", *TINY]
    process = fork_fscl(*command, before=KILLED)
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    atoms, ewc = (tmp_path / "runs/split_digits" / learner / "seed_0" for learner in ("atom_swapping", "ewc"))
    assert learned(ewc) == 2
    finished = (atoms / "run.json").stat().st_mtime_ns
    assert fscl(*command).code == 0
    assert (atoms / "run.json").stat().st_mtime_ns == finished  # a finished run is not run again
    assert json.loads((ewc / "run.json").read_text())["resumed"]
    assert fscl(*command, "--out", "whole").code == 0
    for folder in (atoms, ewc):
        assert numbers(folder) == numbers(tmp_path / "whole" / folder.relative_to(tmp_path / "runs"))
        assert {p.name for p in folder.iterdir()} <= {"run.json", "bank.safetensors", "weights.safetensors", ".lock"}
