"""A grid gives equal numbers for any number of jobs and processes, and goes on if a run fails or is killed."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from fscl.continual.training.trainer import Trainer
from fscl.runs.grid.sweep import sweep
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.run import BusyError, is_finished, run_one
from fscl.runs.spec import RunSpec

FILES = ("run.json", "bank.safetensors", "weights.safetensors", ".lock")  # that a finished run may leave
NUMBERS = ("tasks", "accuracy", "transfer", "untrained", "start", "memory", "similarity", "provenance")
TINY = ["training.epochs=1", "model.args.widths=[8, 8]"]
# takes some tenths of a second a task, so that a process can be hit between two of them
SLOW = ["training.epochs=8", "training.batch_size=16", "model.args.widths=[8, 8]"]


def make_spec(learner: str, seed: int = 0, settings: list[str] | None = None) -> RunSpec:
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(learner), settings or TINY)
    return RunSpec(*pair, seed)


def numbers(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "run.json").read_text())
    return {key: data[key] for key in NUMBERS}


def learned(folder: Path) -> int:
    """How many experiences of a run are on disk."""
    file = folder / "run.json"
    return len(json.loads(file.read_text())["accuracy"]) if file.exists() else 0


def left_over(out: Path) -> set[str]:
    return {p.name for p in out.rglob("*") if p.is_file()} - {
        "run.json",
        "bank.safetensors",
        "weights.safetensors",
        ".lock",
    }


def wait_for(condition: Any, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The numbers of the slow runs if they are not interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted")
    return [numbers(run_one(make_spec(learner, 0, SLOW), out)) for learner in ("atom_swapping", "ewc")]


def test_outcomes_come_in_the_order_of_specs_and_progress_ends_complete(tmp_path: Path) -> None:
    specs = [make_spec(learner, seed) for seed in (0, 1) for learner in ("naive", "atom_swapping")]
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    outcomes = sweep(specs, tmp_path, jobs=1, console=console)
    assert [o.folder for o in outcomes] == [spec.folder(tmp_path) for spec in specs]
    assert not any(o.error for o in outcomes)
    assert left_over(tmp_path) == set()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue()).rpartition("Strategy")[2].splitlines()
    for title in ("Fine-tuning", "Atom swapping"):
        (line,) = [line for line in last if title in line]
        assert line.split()[-5:-3] == ["2/2", "10/10"]
    assert all(len(line) <= 80 for line in last)


def test_a_title_in_square_brackets_is_not_read_as_markup(tmp_path: Path) -> None:
    spec = make_spec("naive", settings=[*TINY, "split.tasks=2"])
    spec = RunSpec(spec.benchmark, spec.strategy.model_copy(update={"title": "Mine [/b] [2]"}), 0)
    text = io.StringIO()
    (outcome,) = sweep([spec], tmp_path, console=Console(file=text, force_terminal=True, width=80))
    assert not outcome.error
    assert "Mine [/b] [2]" in text.getvalue()


def test_a_failing_run_does_not_stop_the_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_next = Trainer.train_next

    def fail(self: Trainer) -> Any:
        if self.seed == 1 and self.done == 2:
            raise ZeroDivisionError("of the learner")
        return train_next(self)

    specs = [make_spec("naive", seed) for seed in (0, 1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_next", fail)
        outcomes = sweep(specs, tmp_path, jobs=1)
    assert [bool(o.error) for o in outcomes] == [False, True, False]
    assert outcomes[1].crashed
    assert "ZeroDivisionError: of the learner" in outcomes[1].error
    assert (
        "in train_next" in (outcomes[1].folder / "error.txt").read_text()
        or "in fail" in (outcomes[1].folder / "error.txt").read_text()
    )
    assert json.loads((outcomes[1].folder / "run.json").read_text())["status"] == "failed"
    again = sweep(specs, tmp_path, jobs=1)
    assert not any(o.error for o in again)
    assert left_over(tmp_path) == set()  # the note of the failure goes with it
    assert numbers(again[1].folder) == numbers(run_one(specs[1], tmp_path / "uninterrupted"))


def test_a_damaged_record_does_not_stop_the_other_runs(tmp_path: Path) -> None:
    specs = [make_spec("naive", seed, [*TINY, "split.tasks=2"]) for seed in (0, 1)]
    sweep(specs[:1], tmp_path)
    (specs[0].folder(tmp_path) / "run.json").write_text("{")
    outcomes = sweep(specs, tmp_path, jobs=1)
    assert "damaged" in outcomes[0].error
    assert not outcomes[0].crashed
    assert not outcomes[1].error


def test_a_disk_too_full_for_the_progress_file_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = Path.write_text

    def full(self: Path, *args: Any, **options: Any) -> int:
        if self.name == "progress":
            raise OSError(28, "No space left on device")
        return write_text(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    (outcome,) = sweep([make_spec("naive", settings=[*TINY, "split.tasks=2"])], tmp_path)
    assert not outcome.error


def test_an_interrupted_grid_leaves_no_progress_files_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [make_spec("naive", seed) for seed in (0, 1)]
    train_next = Trainer.train_next

    def stop(self: Trainer) -> Any:
        if self.seed == 1 and self.done == 1:
            raise KeyboardInterrupt
        return train_next(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_next", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep(specs, tmp_path, jobs=1)
    assert left_over(tmp_path) == {"checkpoint.pt"}
    before = (specs[0].folder(tmp_path) / "run.json").stat().st_mtime_ns
    assert not any(o.error for o in sweep(specs, tmp_path, jobs=1))
    assert (specs[0].folder(tmp_path) / "run.json").stat().st_mtime_ns == before


def test_two_runs_at_once_give_the_numbers_of_runs_in_turn_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [make_spec(learner, 3) for learner in ("atom_swapping", "ewc", "naive", "from_scratch")]
    monkeypatch.chdir(tmp_path)
    at_once = sweep(specs, Path("two"), jobs=2)
    in_turn = sweep(specs, Path("one"), jobs=1)
    assert [o.error for o in at_once] == [""] * 4
    assert [o.folder for o in at_once] == [spec.folder(Path("two")) for spec in specs]
    for a, b in zip(at_once, in_turn, strict=True):
        assert numbers(a.folder) == numbers(b.folder)
    assert left_over(tmp_path) == set()
    # the server of workers is kept, and a folder is meant from where the caller stands now
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    more = [make_spec("naive", seed, [*TINY, "split.tasks=2"]) for seed in (0, 1)]
    assert not any(o.error for o in sweep(more, Path("two"), jobs=2))
    assert all((tmp_path / "elsewhere" / spec.folder(Path("two")) / "run.json").exists() for spec in more)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_another_process_is_doing_is_tried_again_last(tmp_path: Path, jobs: int) -> None:
    specs = [make_spec("naive", seed, [*TINY, "split.tasks=2"]) for seed in (0, 1)]
    other = specs[0].folder(tmp_path)
    other.mkdir(parents=True)
    lock = FileLock(other / ".lock", thread_local=False)
    lock.acquire()
    (other / "progress").write_text("[1.5, 1]")
    seen: list[set[str]] = []

    def release() -> None:
        wait_for(lambda: is_finished(specs[1], tmp_path))
        time.sleep(0.2)
        seen.append({p.name for p in other.iterdir()})
        lock.release()

    thread = threading.Thread(target=release)
    thread.start()
    outcomes = sweep(specs, tmp_path, jobs=jobs)
    thread.join()
    assert seen == [{".lock", "progress"}]
    assert [o.error for o in outcomes] == ["", ""]
    assert all(is_finished(spec, tmp_path) for spec in specs)
    assert left_over(tmp_path) == set()
    with pytest.raises(BusyError, match="another process is doing the run"), lock:
        run_one(specs[0], tmp_path, wait=False)


def test_a_run_that_another_process_has_overwritten_is_not_overwritten_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []

    def attempt(spec: RunSpec, out: Path, overwrite: bool, kept: Any = None, wait: bool = True) -> tuple[str, bool]:
        calls.append((spec.seed, overwrite))
        if len(calls) == 1:
            (spec.folder(out) / "run.json").write_text("{}")
            raise BusyError("another process is doing the run")
        return "", False

    monkeypatch.setattr("fscl.runs.grid.sweep.attempt", attempt)
    specs = [make_spec("naive", seed) for seed in (0, 1)]
    specs[0].folder(tmp_path).mkdir(parents=True)
    sweep(specs, tmp_path, jobs=1, overwrite=True)
    assert calls == [(0, True), (1, True), (0, False)]


NOTED = """
import os
from avalanche.training import Replay

class Noted(Replay):
    def train(self, *arguments, **options):
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        return super().train(*arguments, **options)
"""


def test_two_processes_share_a_grid_and_train_each_run_once(
    fork_fscl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noted.py").write_text(NOTED)
    (tmp_path / "noted.toml").write_text("class = 'noted.Noted'")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.syspath_prepend(tmp_path)
    command = ["run", "-s", "noted.toml", "--trust", "--seeds", "3", "--jobs", "1"]
    for setting in (*TINY, "split.tasks=2"):
        command += ["--set", setting]
    folders = [tmp_path / f"runs/split_digits/noted/seed_{seed}" for seed in range(3)]
    folders[0].mkdir(parents=True)
    with FileLock(folders[0] / ".lock"):  # so that both come to a run that they cannot have, and wait for it
        both = [fork_fscl(*command) for _ in range(2)]
        wait_for(lambda: min(map(learned, folders[1:])) == 2 or any(process.exitcode is not None for process in both))
    for process in both:
        process.join(200)
    printed, complaints = ([(tmp_path / f"{name}-{p.pid}").read_text() for p in both] for name in ("out", "err"))
    assert [process.exitcode for process in both] == [0, 0], complaints
    assert len((tmp_path / "notes").read_text().split()) == 3 * 2  # each task of each run once
    finished = re.compile(r"noted, seed \d: [\d.]+ % in \d:\d\d")
    for line in "".join(complaints).splitlines():  # progress, and not even Avalanche's warnings of its own replay
        assert finished.fullmatch(line), complaints
    tables = [out[out.index("Strategy") :] for out in printed]
    assert tables[0] == tables[1]
    report = tmp_path / "runs/split_digits/report"
    assert "Report: runs/split_digits/report/index.html" in tables[0]
    assert re.search(r"^\| noted \|(?: [^|]* \|)?? 3 \|", (report / "README.md").read_text(), re.MULTILINE)
    assert not [p.name for p in report.rglob("*") if "tmp" in p.name]
    assert left_over(tmp_path / "runs/split_digits/noted") == set()


def worker_of(folder: Path) -> int:
    """The id of the process that trains a run. Waits until the run is between its first and its last experience."""
    wait_for(lambda: learned(folder) >= 1)
    return json.loads((folder / "progress").read_text())[1]


def test_a_killed_worker_is_reported_and_finished_tasks_are_kept(
    tmp_path: Path, uninterrupted: list[dict[str, Any]]
) -> None:
    specs = [make_spec(learner, 0, SLOW) for learner in ("atom_swapping", "ewc")]
    specs.append(make_spec("frozen", 0))
    folders = [spec.folder(tmp_path) for spec in specs]
    killer = threading.Thread(target=lambda: os.kill(worker_of(folders[0]), signal.SIGKILL))
    killer.start()
    outcomes = sweep(specs, tmp_path, jobs=2)
    killer.join()
    assert "signal 9" in outcomes[0].error
    assert "memory" in outcomes[0].error
    assert outcomes[0].crashed
    assert not any(o.error for o in outcomes[1:]), "their processes went on"
    assert all(is_finished(spec, tmp_path) for spec in specs[1:])
    assert 1 <= learned(folders[0]) < 5
    again = sweep(specs, tmp_path, jobs=1)
    assert not any(o.error for o in again)
    assert left_over(tmp_path) == set()
    assert [numbers(folder) for folder in folders[:2]] == uninterrupted
    assert json.loads((folders[0] / "run.json").read_text())["resumed"]


@pytest.mark.slow
def test_workers_of_a_killed_driver_end_and_leave_whole_files(
    tmp_path: Path, uninterrupted: list[dict[str, Any]]
) -> None:
    specs = [make_spec(learner, 0, SLOW) for learner in ("atom_swapping", "ewc")]
    folder = specs[0].folder(tmp_path)
    code = f"""
from pathlib import Path
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.spec import RunSpec
from fscl.runs.grid.sweep import sweep
benchmark, learners = load_benchmark("split_digits"), ("atom_swapping", "ewc")
pairs = [with_overrides(benchmark, load_strategy(learner), {SLOW!r}) for learner in learners]
sweep([RunSpec(*pair, 0) for pair in pairs], Path({str(tmp_path)!r}), jobs=2)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        worker = worker_of(folder)
    finally:
        driver.kill()
        driver.wait()
    assert worker != driver.pid
    outcomes = sweep(specs, tmp_path, jobs=1)  # at once: a worker that still holds a run is waited for
    assert not any(o.error for o in outcomes)
    assert [numbers(outcome.folder) for outcome in outcomes] == uninterrupted
    assert left_over(tmp_path) == set()
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), 20)
