"""A run is logged while it trains, once for each step, and its numbers do not depend on it."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from fscl.choices import LOGS
from fscl.errors import FsclError
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

SETTINGS = ["training.epochs=2", "model.args.widths=[4]", "split.tasks=[['0', '1'], ['2', '3'], ['4', '5']]"]
RUN = "split_digits/naive/seed_0"
TRAINING = ("Loss_Epoch/train_phase/train_stream", "Top1_Acc_Epoch/train_phase/train_stream")
ACCURACY = "Top1_Acc_Exp/eval_phase/test_stream"
SIMILARITY = "SubspaceSimilarity_cosine"

Curves = dict[str, list[tuple[int, float]]]  # name -> (step, value) of each point
Rows = Callable[[Path], list[dict[str, Any]]]


def make_spec(*log: str, learner: str = "naive") -> RunSpec:
    return RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy(learner), SETTINGS), 0, log=log)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Stopped(BaseException):
    """Not an Exception, so no code handles it, as with a killed process."""


def stop_in_the_second(experience: int, epoch: int, epochs: int) -> None:
    if experience == 1:
        raise Stopped


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        yield


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with all logs."""
    return run_one(make_spec(*LOGS), tmp_path_factory.mktemp("logged")).parents[2]


def curves(log: str, out: Path, wandb_rows: Rows) -> Curves:
    found: Curves = {}
    if log == "tensorboard":
        board = EventMultiplexer().AddRunsFromDirectory(str(out)).Reload()
        assert list(board.Runs()) == [RUN]
        for name in board.Runs()[RUN]["scalars"]:
            found[name] = [(point.step, point.value) for point in board.Scalars(RUN, name)]
    elif log == "csv":
        with open(out / RUN / "log.csv", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
    else:
        for row in wandb_rows(out / RUN):
            for name, value in row.items():
                if not name.startswith("_") and not isinstance(value, dict):
                    found.setdefault(name, []).append((row["_step"], value))
    return found


@pytest.mark.parametrize("log", LOGS)
def test_a_log_holds_what_the_run_measured(log: str, logged: Path, wandb_rows: Rows) -> None:
    record = json.loads((logged / RUN / "run.json").read_text())
    found = curves(log, logged, wandb_rows)
    expected: Curves = {}
    steps = sorted({step for points in found.values() for step, _ in points})
    assert len(steps) == 9  # two epochs and the end of each of three tasks
    ends = steps[2::3]
    assert [step - learned for learned, step in enumerate(ends, 1)] == [s - t for t, s in enumerate(steps[1::3])]
    similarity = np.square(record["similarity"]["matrix"]).prod(0)
    explained = np.mean(record["similarity"]["explained"], 0)
    for t, (end, row) in enumerate(zip(ends, record["accuracy"], strict=True)):
        for i in range(t + 1):
            expected.setdefault(f"{ACCURACY}/Task{i:03d}/Exp{i:03d}", []).append((end, row[i]))
        expected.setdefault("AverageAccuracy/eval_phase/test_stream", []).append((end, sum(row[: t + 1]) / (t + 1)))
        for i in range(t):
            expected.setdefault(f"{SIMILARITY}/Exp{i:03d}", []).append((end, similarity[t, i]))
        if t > 0:
            pairs = similarity[: t + 1, : t + 1][np.tril_indices(t + 1, -1)]
            expected.setdefault(f"{SIMILARITY}/mean", []).append((end, pairs.mean()))
            expected.setdefault(f"{SIMILARITY}/explained", []).append((end, explained[t]))
    trained = {f"{name}/Task{t:03d}" for name in TRAINING for t in range(3)}
    assert found.keys() == expected.keys() | trained
    for name, points in expected.items():
        np.testing.assert_allclose(found[name], points, rtol=1e-5, err_msg=name)
    for name in trained:
        t = int(name[-3:])
        assert [step for step, _ in found[name]] == steps[3 * t : 3 * t + 2], name
    losses = [value for _, value in found[f"{TRAINING[0]}/Task000"]]
    assert losses[1] < losses[0]


def test_the_heatmaps_are_images_in_tensorboard_and_wandb(logged: Path, wandb_rows: Rows) -> None:
    board = EventMultiplexer().AddRunsFromDirectory(str(logged)).Reload()
    images = board.Images(RUN, f"{SIMILARITY}/heatmap")
    rows = [row for row in wandb_rows(logged / RUN) if f"{SIMILARITY}/heatmap" in row]
    assert [image.step for image in images] == [row["_step"] for row in rows]
    assert len(images) == 2
    assert all(image.encoded_image_string.startswith(b"\x89PNG") and image.width > 100 for image in images)
    for row in rows:
        (file,) = (logged / RUN / "wandb").glob(f"offline-run-*/files/{row[f'{SIMILARITY}/heatmap']['path']}")
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("learner", ["naive", "atom_swapping"])
def test_logs_change_neither_the_numbers_of_a_run_nor_its_hash(
    learner: str, logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = ["tensorboard", "csv"] if learner == "atom_swapping" else LOGS
    spec = make_spec(*logs, learner=learner)
    with_logs = logged / RUN if learner == "naive" else run_one(spec, tmp_path / "logged")
    monkeypatch.setitem(sys.modules, "wandb", None)  # which makes its import fail
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    plain = run_one(make_spec(learner=learner), tmp_path / "plain")
    records = [json.loads((folder / "run.json").read_text()) for folder in (with_logs, plain)]
    for key in ("recipe_hash", "accuracy", "transfer", "untrained", "start", "similarity", "memory"):
        assert records[0][key] == records[1][key], key
    weights = [load_file(folder / "weights.safetensors") for folder in (with_logs, plain)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert files(plain) == {"run.json", "weights.safetensors", ".lock"} | (files(with_logs) & {"bank.safetensors"})


def test_a_resumed_run_goes_on_in_the_same_logs_without_a_repeated_step(
    logged: Path, tmp_path: Path, wandb_rows: Rows
) -> None:
    """An epoch is in the logs soon after it ended, also if the process were killed then, and is trained again."""
    epoch = f"{TRAINING[0]}/Task001"

    def stop_when_logged(experience: int, *_: int) -> None:
        if experience == 1:
            until = time.monotonic() + 10
            while not all(epoch in curves(log, tmp_path, wandb_rows) for log in LOGS) and time.monotonic() < until:
                time.sleep(0.02)
            written.update({log: curves(log, tmp_path, wandb_rows) for log in LOGS})
            raise Stopped

    written: dict[str, Curves] = {}
    with pytest.raises(Stopped):
        run_one(make_spec(*LOGS), tmp_path, progress=stop_when_logged)
    assert {log: len(found.get(epoch, [])) for log, found in written.items()} == dict.fromkeys(LOGS, 1)
    with open(tmp_path / RUN / "log.csv", "a") as table:
        table.write("123,Loss_Ep")  # as a killed process may leave it
    run_one(make_spec(*LOGS), tmp_path)
    assert json.loads((tmp_path / RUN / "run.json").read_text())["resumed"]
    for log in LOGS:
        assert curves(log, tmp_path, wandb_rows) == curves(log, logged, wandb_rows), log
    ids = {file.stem for file in (tmp_path / RUN).rglob("*.wandb")}
    assert len(ids) == 1


def test_a_run_that_begins_anew_has_no_former_logs(tmp_path: Path, wandb_rows: Rows) -> None:
    spec = make_spec("csv", "tensorboard")
    with pytest.raises(Stopped):
        run_one(spec, tmp_path, progress=stop_in_the_second)
    (tmp_path / RUN / "wandb").mkdir()
    folder = run_one(make_spec("csv"), tmp_path, overwrite=True)
    assert files(folder) == {"run.json", "weights.safetensors", ".lock", "log.csv"}
    assert [len(points) for points in curves("csv", tmp_path, wandb_rows).values() if len(points) > 3] == []


def test_if_wandb_refuses_the_run_nothing_is_trained_and_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(FsclError, match=r"W&B refuses the run \(No API key configured.\); .*WANDB_MODE=offline"):
        run_one(make_spec("wandb"), tmp_path, progress=stop_in_the_second)
    assert json.loads((tmp_path / RUN / "run.json").read_text())["status"] == "failed"


def test_unknown_logs_are_refused_with_the_known_ones() -> None:
    with pytest.raises(FsclError, match="log is 'mlflow'; known: tensorboard, csv, wandb"):
        make_spec("mlflow")


def test_a_log_on_a_ray_cluster_is_refused(tmp_path: Path) -> None:
    from fscl.runs.grid.cluster import RayEngine

    with pytest.raises(FsclError, match="--log is csv; runs on a Ray cluster cannot be logged"):
        next(RayEngine()([make_spec("csv")], tmp_path, None, False))


def test_a_log_on_a_ray_cluster_is_refused_before_anything_slow_is_imported() -> None:
    code = """
import sys
sys.argv = ["fscl", "run", "--engine", "ray", "--log", "csv", "--log", "wandb"]
from fscl.cli.app import main
try:
    main()
except SystemExit as stop:
    print("code", stop.code)
print("slow:", sorted({"torch", "avalanche", "ray", "wandb", "sklearn"} & sys.modules.keys()))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout == "code 2\nslow: []\n"
    assert ended.stderr.startswith("error: --log is csv, wandb; runs on a Ray cluster cannot be logged")
    assert ended.stderr.count("\n") == 1
