"""A grid on a Ray cluster of two local nodes gives the numbers of one machine, and loses no run with a worker."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fscl.errors import FsclError
from fscl.runs.grid.cluster import MARK, RayEngine
from fscl.runs.grid.sweep import sweep
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.spec import RunSpec

os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # as the engine has it, before anybody imports Ray
ray = pytest.importorskip("ray", reason="Ray is not installed: it comes with fscl[ray]")
FILES = ("run.json", "bank.safetensors", "weights.safetensors", ".lock")  # that a finished run may leave
NUMBERS = ("tasks", "accuracy", "transfer", "untrained", "start", "memory", "similarity", "provenance")
# some tenths of a second a task, so that a process can be hit between two of them
SLOW = ["training.epochs=8", "training.batch_size=16", "model.args.widths=[8, 8]"]
TINY = ["training.epochs=1", "model.args.widths=[8, 8]", "split.tasks=2"]
LEARNERS = ("atom_swapping", "ewc", "replay", "naive")


def make_spec(learner: str, seed: int = 0, settings: list[str] = SLOW) -> RunSpec:
    return RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy(learner), settings), seed)


GRID = [make_spec(learner) for learner in LEARNERS]


def numbers(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "run.json").read_text())
    return {key: data[key] for key in NUMBERS}


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


def worker_after_a_task(folder: Path) -> int | None:
    """The id of the process that trains a run, if the run is between its first and its last experience."""
    try:
        learned = len(json.loads((folder / "run.json").read_text())["accuracy"])
        return json.loads((folder / "progress").read_text())[1] if 1 <= learned < 4 else None
    except (OSError, ValueError, KeyError):
        return None


def left_over(out: Path) -> set[str]:
    return {p.name for p in out.rglob("*") if p.is_file()} - {
        "run.json",
        "bank.safetensors",
        "weights.safetensors",
        ".lock",
    }


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    # of 127.0.0.1 Ray would make the address of this machine's network
    node = {"num_cpus": 1, "object_store_memory": 10**8}
    head = {**node, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**node, node_ip_address="127.0.0.3", num_gpus=1)  # which Ray counts, and nobody uses
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def connected(address: str) -> None:
    """Connects to Ray as a program that uses Ray does. Ray then keeps workers, with Avalanche, from grid to grid."""
    if not ray.is_initialized():
        ray.init(address, log_to_driver=False, logging_level="ERROR")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The numbers of the grid on one machine."""
    return [numbers(o.folder) for o in sweep(GRID, tmp_path_factory.mktemp("local"), jobs=2)]


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("shared", [True, False])
def test_a_grid_with_killed_ray_workers_gives_the_numbers_of_one_machine(
    expected: list[dict[str, Any]], tmp_path: Path, shared: bool
) -> None:
    victim = GRID[2].folder(tmp_path)

    def disturb() -> None:
        if not shared:  # without the mark, workers take it that they do not see the folder
            wait_for(lambda: [mark.unlink() or True for mark in tmp_path.glob(f"{MARK}*")])
        os.kill(wait_for(lambda: worker_after_a_task(victim)), signal.SIGKILL)
        if not shared:  # the machine is lost with all that is on it
            for folder in Path("/tmp").glob(f"fscl-*/{victim.relative_to(tmp_path)}"):
                shutil.rmtree(folder)
                lost.append(folder)

    lost: list[Path] = []
    thread = threading.Thread(target=disturb)
    thread.start()
    outcomes = sweep(GRID, tmp_path, engine=RayEngine())
    thread.join()
    assert [o.error for o in outcomes] == [""] * len(GRID)
    assert [o.folder for o in outcomes] == [spec.folder(tmp_path) for spec in GRID]
    assert [numbers(o.folder) for o in outcomes] == expected
    assert json.loads((victim / "run.json").read_text())["resumed"]
    # workers that see the folder lock what they are at work on there; others have left files elsewhere
    assert bool(list(tmp_path.rglob(".lock"))) == shared == (not lost)
    assert left_over(tmp_path) == set()
    assert not list(Path("/tmp").glob("fscl-*/*/*/*/run.json"))  # what machines wrote for themselves is gone


@pytest.mark.slow
def test_fscl_run_with_engine_ray_runs_on_the_cluster_with_a_share_of_a_gpu(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from fscl.cli.app import app

    ray.shutdown()
    asked: list[dict[str, Any]] = []
    remote = ray.remote_function.RemoteFunction.options
    monkeypatch.setattr(
        "ray.remote_function.RemoteFunction.options",
        lambda self, **options: asked.append(options) or remote(self, **options),
    )
    where = ["--engine", "ray", "--address", address, "--gpus-per-run", "0.5", "--device", "cpu", "--out", tmp_path]
    settings = [word for setting in TINY for word in ("--set", setting)]
    command = ["run", "split_digits", "-s", "naive", "--seeds", "2", *where, *settings]
    ended = CliRunner().invoke(app, list(map(str, command)))
    assert ended.exit_code == 0, ended.output
    assert [options["num_gpus"] for options in asked] == [0.5, 0.5]
    assert len(list(tmp_path.glob("split_digits/naive/seed_*/run.json"))) == 2
    assert (tmp_path / "split_digits/report/index.html").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_run_that_raises_on_ray_is_recorded_and_the_grid_goes_on(tmp_path: Path) -> None:
    good = make_spec("naive", 8, TINY)
    broken = RunSpec(good.benchmark, good.strategy, 7, device="no such device")
    outcomes = sweep([broken, good], tmp_path, engine=RayEngine())
    assert "no such device" in outcomes[0].error
    assert outcomes[0].crashed
    assert "no such device" in (outcomes[0].folder / "error.txt").read_text()
    assert json.loads((outcomes[0].folder / "run.json").read_text())["status"] == "failed"
    assert not outcomes[1].error
    assert ray.is_initialized()  # the caller's connection is the caller's


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_ray_runs_finished_runs_again_only_with_overwrite(tmp_path: Path) -> None:
    spec = make_spec("naive", 0, TINY)
    times = []
    for overwrite in (False, False, True):
        (outcome,) = sweep([spec], tmp_path, overwrite=overwrite, engine=RayEngine())
        assert not outcome.error
        times.append((outcome.folder / "run.json").stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]
    assert left_over(tmp_path) == set()


@pytest.mark.slow
def test_a_run_too_large_for_every_machine_of_the_cluster_is_refused_in_one_line(address: str, tmp_path: Path) -> None:
    ray.shutdown()  # so that the engine connects by itself
    with pytest.raises(FsclError, match=r"a run needs 1 cores and 2 GPUs, and no machine of the cluster has that: 1 c"):
        sweep([make_spec("naive", 0, TINY)], tmp_path, engine=RayEngine(address, gpus_per_run=2))


def test_an_address_without_a_ray_cluster_is_refused_in_one_line(tmp_path: Path) -> None:
    ray.shutdown()
    with pytest.raises(FsclError, match=r"no Ray cluster at 127\.0\.0\.1:1 "):
        sweep([make_spec("naive", 0, TINY)], tmp_path, engine=RayEngine("127.0.0.1:1"))
