"""A grid whose driver is killed again and again loses no run, counts no run twice, and leaves no file or worker.

Takes some minutes. ``SOAK_SEED`` repeats the moments of an earlier time, as far as moments can be repeated.
"""

import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from fscl.report.runs import load_runs

TITLES = {"naive": "Fine-tuning", "atom_swapping": "Atom swapping", "replay": "Replay"}
SEEDS, TASKS = 3, 5
COMMAND = ["run", "split_digits", "--seeds", str(SEEDS), "--jobs", "2"]
COMMAND += [word for learner in TITLES for word in ("-s", learner)]
COMMAND += ["--set", "training.epochs=16", "--set", "training.batch_size=16"]
NUMBERS = ("tasks", "accuracy", "transfer", "untrained", "start", "memory", "similarity", "provenance")
# while it or its workers start; some time after a worker has reported an epoch; between a task's last epoch and its
# checkpoint; while the report is drawn, at the end
PHASES = ["startup"] * 4 + ["training"] * 7 + ["evaluation"] * 6
LAST = ["report"] * 3
READ = (  # what the reader reads
    *(f"*/*/*/{name}" for name in ("run.json", "checkpoint.pt", "bank.safetensors")),
    *(f"*/report/{name}" for name in ("runs.json", "index.html", "README.md")),
)
GONE = 10.0  # seconds in which the last worker of a killed driver must have ended


class Driver:
    """``fscl run`` in a process of its own. Its workers inherit an environment variable by which they are found."""

    def __init__(self, folder: Path, number: int) -> None:
        self.began = time.monotonic()
        self.mark = f"FSCL_SOAK={os.getpid()}-{number}"
        self.output = folder / f"output_{number}.txt"
        environment = dict(os.environ, FSCL_SOAK=self.mark.partition("=")[2], COLUMNS="80")
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from fscl.cli.app import main; main()", *COMMAND],
                cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.ended = time.monotonic()
        assert self.process.wait() == -signal.SIGKILL, f"it ended by itself: {self.output.read_text()}"

    def left(self) -> list[str]:
        """The command lines of its processes that are still running."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            except OSError:  # it has just ended
                pass
        return found


class Reader(threading.Thread):
    """Reads, all the time, every file that is renamed into place, and notes files that are not whole."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out = out
        self.torn: list[str] = []
        self.read: Counter[str] = Counter()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.02):
            for file in (file for pattern in READ for file in self.out.glob(pattern)):
                try:
                    whole(file, file.read_bytes())
                    self.read[file.name] += 1
                except FileNotFoundError:  # the checkpoint of a run that has just finished
                    pass
                except Exception as error:
                    self.torn.append(f"{file}: {error!r}")


def whole(file: Path, content: bytes) -> None:
    if file.suffix == ".json":
        json.loads(content)
    elif file.suffix == ".html":
        assert content.rstrip().endswith(b"</html>")
    elif file.suffix == ".md":
        assert content.startswith(b"# ")
        assert content.endswith(b"\n")
    elif file.suffix == ".pt":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
    else:
        load(content)


def folders(out: Path) -> list[Path]:
    return [out / "split_digits" / learner / f"seed_{seed}" for learner in TITLES for seed in range(SEEDS)]


def records(out: Path) -> dict[Path, dict[str, Any]]:
    return {f: json.loads((f / "run.json").read_bytes()) for f in folders(out) if (f / "run.json").exists()}


def finished(out: Path) -> list[Path]:
    return [folder for folder, record in records(out).items() if record["status"] == "finished"]


def learned(out: Path) -> int:
    """Number of learned tasks over all runs."""
    return sum(len(record["accuracy"]) for record in records(out).values())


def check_consistent(folder: Path, record: dict[str, Any]) -> None:
    done = len(record["accuracy"])
    assert record["status"] == ("finished" if done == TASKS else "running")
    assert [sum(a is not None for a in row) for row in record["accuracy"]] == list(range(1, done + 1))
    assert all(len(row) == TASKS for row in [*record["accuracy"], *record["transfer"], record["untrained"]])
    assert {len(record["transfer"]), len(record["start"]), *map(len, record["seconds"].values())} == {done}
    assert (record["similarity"] is not None) == (done == TASKS)
    if 0 < done < TASKS:  # there is always something to go on from, and it is not behind
        kept = json.loads(torch.load(folder / "checkpoint.pt", weights_only=True)["record"])
        assert kept["accuracy"][:done] == record["accuracy"]


def progress(out: Path) -> dict[Path, tuple[int, float]]:
    """The last report of each worker, and its time."""
    found = {}
    for folder in folders(out):
        try:
            file = folder / "progress"
            found[folder] = (file.stat().st_mtime_ns, json.loads(file.read_text())[0])
        except (OSError, ValueError):
            pass
    return found


def wait_for(condition: Callable[[], Any], driver: Driver, seconds: float = 1200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert driver.alive(), f"it ended by itself: {driver.output.read_text()}"
        assert time.monotonic() < end, f"it never happened: {driver.output.read_text()}"
        time.sleep(0.01)


def wait_for_phase(phase: str, driver: Driver, out: Path, moments: random.Random, starts: list[float]) -> None:
    """Waits for a moment in the phase. Adds to ``starts`` the seconds until training began."""
    before = progress(out)

    def reported(whole_task: bool) -> bool:
        now = progress(out)
        return any(now[f] != before.get(f) and (not whole_task or now[f][1] % 1 == 0) for f in now)

    if phase == "startup":
        time.sleep(moments.uniform(0, starts[-1] if starts else 12))
    elif phase == "report":
        wait_for(lambda: len(finished(out)) == len(folders(out)), driver)
        if moments.random() < 0.7:
            page = out / "split_digits/report/figures"
            then = page.stat().st_mtime_ns if page.exists() else 0
            wait_for(lambda: page.exists() and page.stat().st_mtime_ns != then, driver)
        time.sleep(moments.uniform(0, 1))
    else:
        wait_for(lambda: reported(False), driver)
        starts.append(time.monotonic() - driver.began)
        goal = learned(out) + moments.randrange(3)  # so that moments are spread over the grid, however slow the machine
        wait_for(lambda: learned(out) >= goal, driver)
        before = progress(out)
        wait_for(lambda: reported(phase == "evaluation"), driver)
        time.sleep(moments.uniform(0, 0.1 if phase == "evaluation" else 3))


def wait_until_gone(driver: Driver) -> float:
    began = time.monotonic()
    while left := driver.left():
        assert time.monotonic() - began < GONE, f"still there after {GONE} s: {left}"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    thread = Reader(tmp_path / "killed/runs")
    thread.start()
    yield thread
    thread.stop.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds workers by /proc")
def test_a_grid_whose_driver_is_killed_twenty_times_ends_with_all_runs(tmp_path: Path, reader: Reader) -> None:
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 10**6))
    print(f"SOAK_SEED={seed}")
    moments = random.Random(seed)
    plan = [*moments.sample(PHASES, len(PHASES)), *LAST]
    place, out = tmp_path / "killed", tmp_path / "killed/runs"
    place.mkdir()
    numbers = itertools.count()
    ended: dict[Path, bytes] = {}
    seen: list[int] = []
    starts: list[float] = []
    driver = Driver(place, next(numbers))
    try:
        for phase in plan:
            wait_for_phase(phase, driver, out, moments, starts)
            driver.kill()
            killed = driver
            at_once = moments.random() < 0.5  # and some workers of the killed one are still there
            if at_once:
                driver = Driver(place, next(numbers))
            gone = wait_until_gone(killed)
            if not at_once:
                for folder, record in records(out).items():
                    check_consistent(folder, record)
                driver = Driver(place, next(numbers))
            for folder in finished(out):
                content = (folder / "run.json").read_bytes()
                assert ended.setdefault(folder, content) == content, f"{folder}: finished, and done again"
            seen.append(learned(out))
            after = f"{killed.ended - killed.began:.1f} s"
            print(f"{phase}, after {after}: {seen[-1]} tasks learned, workers gone after {gone:.1f} s", flush=True)
        assert driver.process.wait(1200) == 0, driver.output.read_text()
    finally:
        driver.process.kill()
        driver.process.wait()
    assert min(seen) < TASKS <= len(set(seen)), "moments too much alike"
    wait_until_gone(driver)

    assert reader.torn == []
    print(f"read whole: {dict(reader.read)}")
    assert min(reader.read[name] for name in ("run.json", "checkpoint.pt", "bank.safetensors")) > 100
    assert sorted(finished(out)) == sorted(folders(out))
    assert all((folder / "run.json").read_bytes() == content for folder, content in ended.items())
    left = {p.name for folder in folders(out) for p in folder.iterdir()}
    assert left <= {"run.json", "bank.safetensors", "weights.safetensors", ".lock"}
    runs = [(run.strategy.name, run.seed) for run in load_runs([out])]
    assert sorted(runs) == sorted((learner, seed) for learner in TITLES for seed in range(SEEDS))
    page = (out / "split_digits/report/README.md").read_text()
    for title in TITLES.values():
        assert re.search(rf"^\| {title} \|(?: [^|]* \|)?? {SEEDS} \|", page, re.MULTILINE), title
    assert any(record["resumed"] for record in records(out).values())

    whole_grid = tmp_path / "whole"
    whole_grid.mkdir()
    uninterrupted = Driver(whole_grid, next(numbers))
    assert uninterrupted.process.wait(1200) == 0, uninterrupted.output.read_text()
    expected = records(whole_grid / "runs")
    for folder, record in records(out).items():
        other = expected[whole_grid / folder.relative_to(place)]
        assert [record[name] for name in NUMBERS] == [other[name] for name in NUMBERS], folder
