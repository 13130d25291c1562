"""Tuning chooses as a search by hand does, never uses test images, and resumes after it was stopped."""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fscl.cli import app as cli
from fscl.continual.training.trainer import Trainer
from fscl.data.datasets import load_images
from fscl.data.images import ImageSet
from fscl.errors import FsclError
from fscl.runs.recipe import load_benchmark, load_strategy, recipe_hash, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec
from fscl.runs.stream import tune as tuning
from fscl.runs.stream.building import load_stream
from fscl.runs.stream.tune import Protocol, plan, tuned
from fscl.runs.stream.tuned_recipe import changed_text

BENCHMARK = """# Handwritten digits
title = "Digits"
data = { name = "digits" } # of scikit-learn

[split]
tasks = 5

[model]
args = { widths = [8, 8] }

[training]
epochs = 1
lr_next = 0.002

# what EWC wants
[strategies.mine.args]
mode = "separate" # the first of two
[strategies.other.training]
lr = 0.03
"""
MINE = """title = "Mine"
class = "avalanche.training.EWC"

[args]
ewc_lambda = 1.0
mode = "separate"

[tune]
args.ewc_lambda = [0.5, 100.0]
training.lr_next = [0.002, 0.05]
"""
PLAIN = 'title = "Plain"\nclass = "avalanche.training.Naive"\n\n[tune]\ntraining.lr_next = [0.002, 0.05]\n'
TWO_TASKS = ("--trials", 5, "--tasks", 2, "--validation", 0.2, "--jobs", 1)


def write_files(folder: Path) -> Path:
    for name, text in (("digits", BENCHMARK), ("mine", MINE), ("plain", PLAIN), ("other", PLAIN)):
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a benchmark and strategies."""
    return write_files(tmp_path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder, after a search of both strategies."""
    folder = write_files(tmp_path_factory.mktemp("searched"))
    assert search(folder, "mine", "plain") == 0
    return folder


def call(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fscl", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def search(files: Path, *arguments: object, out: str = "out") -> int:
    """Runs ``fscl tune``. Arguments that name strategies of the folder are the strategies to tune."""
    given = [word for a in arguments for word in (("-s", files / f"{a}.toml") if a in ("mine", "plain") else (a,))]
    return call("tune", files / "digits.toml", *TWO_TASKS, "--out", files / out, *given)


def record(files: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((files / out / "digits" / "tune.json").read_text())["strategies"]


def by_hand(files: Path, strategy: str, *settings: str) -> float:
    pair = with_overrides(load_benchmark(files / "digits.toml"), load_strategy(files / f"{strategy}.toml"), settings)
    folder = run_one(RunSpec(*pair, 100, validation=0.2, first=2), files / "by hand")
    return float(np.mean(json.loads((folder / "run.json").read_text())["accuracy"][-1]))


def test_tune_chooses_the_settings_that_a_search_by_hand_chooses(searched: Path) -> None:
    found = record(searched)
    grids = {"mine": [*itertools.product((0.5, 100.0), (0.002, 0.05))], "plain": [(0.002,), (0.05,)]}
    for name, grid in grids.items():
        keys = [*found[name]["best"]]
        scores = {} if name == "plain" else {(1.0, 0.002): by_hand(searched, "mine")}  # its own, not in the grid
        for values in grid:
            scores[values] = by_hand(searched, name, *(f"{k}={v}" for k, v in zip(keys, values, strict=True)))
        tried = {tuple(trial["settings"].values()): trial["accuracy"] for trial in found[name]["trials"]}
        assert tried == scores
        best = max(scores, key=scores.__getitem__)  # the first among equals
        assert tuple(found[name]["best"].values()) == best
        assert found[name]["accuracy"] == scores[best] > found[name]["own_accuracy"]
        assert all(trial["seconds"] > 0 and trial["versions"]["torch"] for trial in found[name]["trials"])
        assert [trial["own"] for trial in found[name]["trials"]] == [True] + [False] * (len(scores) - 1)


def test_the_tuned_file_has_the_chosen_settings_and_keeps_all_other_text(searched: Path) -> None:
    written = searched / "out" / "digits" / "digits.toml"
    for name in ("mine", "plain"):
        benchmark, strategy = with_overrides(load_benchmark(written), load_strategy(searched / f"{name}.toml"))
        for key, value in record(searched)[name]["best"].items():
            section, _, leaf = key.partition(".")
            assert (strategy.args[leaf] if section == "args" else getattr(benchmark.training, leaf)) == value
    lines = written.read_text().splitlines()
    words = [line for line in BENCHMARK.splitlines() if line]
    assert [line for line in lines if line in words] == words
    said = [line for line in lines if line.startswith("# fscl tune")]
    assert ["tune mine: best of 5 settings: " in said[0], "tune plain: best of 2 settings: " in said[1]] == [True] * 2
    assert all(line.endswith("on 20 % held out of the first 2 tasks, seed 100") for line in said)
    assert lines[lines.index(said[0]) + 1] == "[strategies.mine.args]"


def test_the_json_of_tune_is_its_record_and_the_paths_of_its_files(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert search(searched, "mine", "plain", "--json", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    results = json.loads(printed.out)
    assert results["strategies"] == record(searched)
    assert Path(results["files"]["trials"]).name == "tune.json"
    assert Path(results["files"]["recipe"]).samefile(searched / "out" / "digits" / "digits.toml")


def test_a_stopped_search_resumes_and_may_overwrite_its_benchmark(
    files: Path, searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_next, trained = Trainer.train_next, []

    def train(self: Trainer) -> Any:
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(self)
        return train_next(self)

    monkeypatch.setattr(Trainer, "train_next", train)
    over, stop_at = ("--recipe", files / "digits.toml"), 3
    assert search(files, "plain", *over) == cli.INTERRUPTED
    assert (files / "digits.toml").read_text() == BENCHMARK
    stop_at = -1
    capsys.readouterr()
    assert search(files, "plain", *over) == 0
    assert len(trained) == 2 * 2  # each task of each trial once
    trials = [{**trial, "seconds": 0} for trial in record(files)["plain"]["trials"]]
    assert trials == [{**trial, "seconds": 0} for trial in record(searched)["plain"]["trials"]]
    shown = capsys.readouterr().out
    for words in ("2, all", "training.lr_next = 0.05", f"{100 * trials[1]['accuracy']:.1f} %"):
        assert words in shown
    shutil.copytree(searched / "out", files / "whole")
    (files / "benchmark").mkdir()
    (files / "benchmark" / "digits.toml").write_text(BENCHMARK)
    alone = files / "benchmark" / "digits.toml", "-s", files / "plain.toml"
    assert call("tune", *alone, *TWO_TASKS, "--out", files / "whole") == 0
    assert (files / "digits.toml").read_text() == (files / "whole" / "digits" / "digits.toml").read_text()
    # once more: what was found is its own now, and what was said before is replaced
    assert search(files, "plain", *over) == 0
    assert len(trained) == 2 * 2
    assert "# fscl tune plain: its own are best of 2 settings: " in (files / "digits.toml").read_text()
    assert (files / "digits.toml").read_text().count("# fscl tune") == 1


def test_tune_never_uses_test_images(files: Path, searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other test images change nothing, and the images that judge a trial come from the training images."""
    train, test = load_images("digits")
    noise = ImageSet(torch.randint_like(test.images, 256), test.labels.flip(0), test.classes)
    monkeypatch.setattr("fscl.data.datasets.load_images", lambda *_: (train, noise))
    assert search(files, "plain") == 0
    one, other = (record(folder)["plain"]["trials"] for folder in (files, searched))
    assert [trial["accuracy"] for trial in one] == [trial["accuracy"] for trial in other]
    (trials,) = plan(load_benchmark("split_digits"), [load_strategy("naive")], Protocol(tasks=2, validation=0.2))
    stream = load_stream(trials[0].spec)
    known = {image.numpy().tobytes() for image in train.images}
    values = train.images.double() / 255
    tested = torch.stack([x for e in stream.test_stream for x, *_ in e.dataset])
    pixels = (tested.double() * values.std() + values.mean()).mul(255).round().to(torch.uint8)
    assert len(pixels) > 50
    assert {image.numpy().tobytes() for image in pixels} <= known


@pytest.mark.parametrize("strategy", ["naive", "atom_swapping"])
def test_a_trial_learns_its_tasks_as_a_run_of_the_whole_stream_does(strategy: str, tmp_path: Path) -> None:
    tasks = "split.tasks=[['3', '1'], ['2', '0'], ['7', '5']]"
    settings = ["training.epochs=1", "model.args.widths=[8, 8]", tasks]
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(strategy), settings)
    whole, part = RunSpec(*pair, 7, validation=0.1), RunSpec(*pair, 7, validation=0.1, first=2)
    rows = [json.loads((run_one(spec, tmp_path) / "run.json").read_text())["accuracy"] for spec in (whole, part)]
    assert rows[1] == [row[:2] for row in rows[0][:2]]
    assert whole.hash != part.hash
    assert whole.folder(tmp_path) == tmp_path / "split_digits" / strategy / "seed_7"


def test_the_tasks_of_a_trial_are_the_first_tasks_of_the_stream() -> None:
    pair = with_overrides(load_benchmark("split_digits"), load_strategy("naive"))
    whole, part = (load_stream(RunSpec(*pair, 7, first=first)) for first in (None, 3))
    assert part.tasks == whole.tasks[:3]
    assert part.names == whole.names[:3]
    for one, other in ((part.train_stream, whole.train_stream), (part.test_stream, whole.test_stream)):
        assert [len(e.dataset) for e in one] == [len(e.dataset) for e in other][:3]
        assert [e.task_labels for e in one] == [[0], [1], [2]]


def test_joint_training_in_a_trial_sees_only_the_first_tasks(tmp_path: Path) -> None:
    (trials,) = plan(
        load_benchmark("split_digits"),
        [load_strategy("joint")],
        Protocol(tasks=2, settings=("training.epochs=1",)),
    )
    data = json.loads((run_one(trials[0].spec, tmp_path) / "run.json").read_text())
    assert len(data["tasks"]) == len(data["accuracy"]) == 2
    stream = load_stream(trials[0].spec)
    assert len(stream.train_stream[0].origin_stream) == 2


def test_every_strategy_has_the_requested_number_of_different_trials() -> None:
    benchmark = load_benchmark("split_digits")
    learners = [load_strategy(name) for name in ("ewc", "atom_swapping", "gem", "naive")]
    first, again, longer = (plan(benchmark, learners, Protocol(trials=n)) for n in (6, 6, 99))
    assert [len(trials) for trials in first] == [6, 6, 6, 5]
    grids = [[*learner.tune.args.values(), *learner.tune.training.values()] for learner in learners]
    assert [len(trials) for trials in longer] == [math.prod(map(len, grid)) for grid in grids]
    for trials, same, more in zip(first, again, longer, strict=True):
        assert trials == same
        assert [t.own for t in trials] == [True] + [False] * (len(trials) - 1)
        assert len({t.spec.hash for t in more}) == len({t.place for t in more}) == len(more)
        assert [t.settings for t in more[: len(trials)]] == [t.settings for t in trials]
    other = plan(benchmark, learners[1:2], Protocol(trials=5, seed=101))
    assert [t.place for t in other[0]] != [t.place for t in first[1]]


def test_on_a_tie_the_own_settings_are_chosen_else_the_first_of_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = load_strategy("naive")
    (trials,) = plan(load_benchmark("split_digits"), [strategy], Protocol())
    scores = {0.005: 0.5, 0.01: 0.5, 0.02: 0.9, 0.05: 0.9, 0.1: 0.9}
    results = {
        t.spec.folder(tmp_path) / "run.json": SimpleNamespace(
            finished=True, accuracy=np.array([[1.0, np.nan], [1.0, 2 * scores[t.settings["training.lr_next"]] - 1]])
        )
        for t in trials
    }
    monkeypatch.setattr(tuning, "load_stream_run", results.__getitem__)
    assert tuned(strategy, trials, tmp_path).best.settings == {"training.lr_next": 0.05}
    results[trials[0].spec.folder(tmp_path) / "run.json"].accuracy[-1] = 0.4
    assert trials[0].own
    assert tuned(strategy, trials, tmp_path).best.settings == {"training.lr_next": 0.02}
    for result in results.values():
        result.finished = False
    with pytest.raises(FsclError, match="all 5 trials of naive failed"):
        tuned(strategy, trials, tmp_path)


def test_a_failed_trial_is_not_chosen_and_a_killed_trial_must_be_repeated(
    files: Path, searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_next = Trainer.train_next

    def fail(self: Trainer) -> Any:
        if self.done == 1 and any(getattr(p, "ewc_lambda", None) == 100.0 for p in self.strategy.plugins):
            raise ZeroDivisionError("of the learner")
        return train_next(self)

    shutil.copytree(searched / "out", files / "out")
    for trial in record(files)["mine"]["trials"]:
        if trial["settings"]["args.ewc_lambda"] == 100.0:
            (again,) = (files / "out").rglob(f"trial_{trial['recipe_hash']}")
            shutil.rmtree(again)
    monkeypatch.setattr(Trainer, "train_next", fail)
    assert search(files, "mine", "plain") == 1
    trials = record(files)["mine"]["trials"]
    assert [t["accuracy"] is None for t in trials] == [t["settings"]["args.ewc_lambda"] == 100.0 for t in trials]
    assert "ZeroDivisionError: of the learner" in capsys.readouterr().err
    assert load_benchmark(files / "out" / "digits" / "digits.toml").strategies["mine"].args["ewc_lambda"] == 0.5
    monkeypatch.setattr("fscl.cli.tune.recorded", lambda _: False)
    (files / "out" / "digits" / "digits.toml").unlink()
    assert search(files, "mine", "plain") == 1
    assert "no settings are chosen; run the same command again" in capsys.readouterr().err
    assert not (files / "out" / "digits" / "digits.toml").exists()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("training.lr_nxt = [0.1]", r"unknown key 'lr_nxt' \(did you mean 'lr_next'\?\); known keys: epochs"),
        ("training.lr_next = [-1.0]", r"tune\.training: lr_next = -1\.0"),
        ("training.lr_next = []", r"tune.training.lr_next = \[\]: .*at least 1"),
        ("training.lr_next = 0.1", r"tune.training.lr_next = 0.1: .*valid list"),
        ("args.lamda = [0.1]", r"unknown key 'lamda'; known keys, those of \[args\]: ewc_lambda, mode"),
        ("model.widths = [[8]]", r"unknown key 'tune.model'; known keys: args, training"),
    ],
)
def test_a_wrong_grid_is_refused(grid: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.partition("[tune]")[0] + "[tune]\n" + grid)
    with pytest.raises(FsclError, match=message):
        load_strategy(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation", 0], "--validation is 0.0; it must be above 0"),
        (["--trials", 0], "--trials is 0; it must be at least 1"),
        (["--tasks", 7], "the first 7 tasks cannot be taken of 5; 1 to 5 would do"),
        (["--set", "training.lr_next=1"], "--set training.lr_next: the grid of mine tunes it"),
        (["-s", "icarl_of_mine"], "unknown strategy 'icarl_of_mine'"),
    ],
)
def test_a_mistake_in_fscl_tune_ends_with_one_line_and_exit_code_2(
    options: list[object], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(files, "mine", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_strategy_without_a_grid_is_refused(files: Path) -> None:
    (files / "mine.toml").write_text(MINE.partition("[tune]")[0])
    with pytest.raises(FsclError, match=r"mine has no grid to search; its file needs a table \[tune\]"):
        plan(load_benchmark(files / "digits.toml"), [load_strategy(files / "mine.toml")], Protocol())


def test_a_grid_does_not_change_the_recipe_hash(files: Path) -> None:
    with_grid = load_strategy(files / "mine.toml")
    (files / "mine.toml").write_text(MINE.partition("[tune]")[0])
    assert recipe_hash(with_grid) == recipe_hash(load_strategy(files / "mine.toml"))


@pytest.mark.parametrize(
    "strategies",
    [
        "",
        "strategies = { mine = { args = { mode = 'online' } } }\n",
        "[strategies.'mine'.args]\nmode = 'online'\n",
        "[strategies.mine.training]\nlr = 0.3\n[strategies.mine.args]\nmode = 'online'",
        "[strategies]\nmine = { args = { mode = 'online' } }\n",
    ],
)
def test_settings_are_written_into_any_form_of_the_strategies_table(strategies: str, files: Path) -> None:
    source, plain = files / "digits.toml", BENCHMARK.partition("# what EWC")[0]
    source.write_text(plain + strategies if strategies.startswith("[") else strategies + plain)
    chosen = {"args.ewc_lambda": 7.0, "training.lr_next": 0.3}
    before = with_overrides(
        load_benchmark(source), load_strategy(files / "mine.toml"), [f"{k}={v}" for k, v in chosen.items()]
    )
    text = changed_text(source, {"mine": chosen, "plain": {}}, {"mine": "well", "plain": "well"})
    source.write_text(text)
    assert recipe_hash(*with_overrides(load_benchmark(source), load_strategy(files / "mine.toml"))) == recipe_hash(
        *before
    )
    assert text.splitlines().count("# fscl tune mine: well") == 1
    assert changed_text(source, {}, {"mine": "well", "plain": "well"}) == text


def test_a_strategies_table_that_cannot_be_extended_is_refused_before_training(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = BENCHMARK.partition("# what EWC")[0]
    (files / "digits.toml").write_text(f"strategies.mine.args.mode = 'online'\n{plain}")
    assert search(files, "mine") == 2
    assert "write each as a table [strategies.NAME.args]" in capsys.readouterr().err
    assert not list((files / "out").rglob("run.json"))
