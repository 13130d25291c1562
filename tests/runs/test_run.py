"""A run folder has the expected files, resumes to the same numbers, and never loses a finished task."""

import errno
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fscl import AtomBank
from fscl.continual.training.trainer import Trainer
from fscl.errors import FsclError
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.results import load_run
from fscl.runs.run import is_finished, run_one
from fscl.runs.spec import RunSpec

LEARNERS = ("atom_swapping", "naive", "ewc", "from_scratch")
NUMBERS = ("tasks", "accuracy", "transfer", "untrained", "start", "memory", "similarity", "provenance")
TINY = ["training.epochs=1", "model.args.widths=[8, 8]", "split.tasks=5"]


def make_spec(learner: str = "atom_swapping", seed: int = 0, settings: tuple[str, ...] = (), **more: Any) -> RunSpec:
    pair = with_overrides(load_benchmark("split_digits"), load_strategy(learner), [*TINY, *settings])
    return RunSpec(*pair, seed, **more)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def numbers(folder: Path) -> dict[str, Any]:
    """The numbers of a run that must not depend on interruptions."""
    return {key: record(folder)[key] for key in NUMBERS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


class Interrupted(BaseException):
    """Not an Exception, so no code handles it, as with a killed process."""


def interrupt(spec: RunSpec, out: Path, experience: int, error: type[BaseException] = Interrupted) -> Path:
    """Interrupts a run in the middle of an experience. Returns its folder."""

    def progress(at: int, *_: int) -> None:
        if at == experience:
            raise error("stop here")

    with pytest.raises(error, match="stop here"):
        run_one(spec, out, progress=progress)
    return spec.folder(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of one uninterrupted run for each learner. Tests must not change them."""
    out = tmp_path_factory.mktemp("finished")
    return {learner: run_one(make_spec(learner), out) for learner in LEARNERS}


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two tasks. Tests must not change it."""
    return run_one(make_spec("naive", settings=("split.tasks=2",)), tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("experience", [1, 4])
def test_an_interrupted_run_ends_with_the_numbers_of_an_uninterrupted_run(
    tmp_path: Path, finished: dict[str, Path], learner: str, experience: int
) -> None:
    spec = make_spec(learner)
    folder = interrupt(spec, tmp_path, experience)
    assert len(record(folder)["accuracy"]) == experience
    torch.rand(7)  # a new process draws from elsewhere
    run_one(spec, tmp_path)
    assert numbers(folder) == numbers(finished[learner])
    assert [r["after"] for r in record(folder)["resumed"]] == [experience]
    assert not (folder / "checkpoint.pt").exists()
    if learner == "atom_swapping":
        ours, theirs = (AtomBank.load(f / "bank.safetensors") for f in (folder, finished[learner]))
        for task in theirs.tasks:
            for name, tensor in theirs.entries(task).items():
                assert torch.equal(ours.entries(task)[name], tensor)


def test_a_run_interrupted_five_times_ends_with_the_numbers_of_an_uninterrupted_run(
    tmp_path: Path, finished: dict[str, Path]
) -> None:
    spec = make_spec("naive")
    for experience in (0, 1, 2, 2, 4):
        folder = interrupt(spec, tmp_path, experience)
    run_one(spec, tmp_path)
    assert numbers(folder) == numbers(finished["naive"])


def test_a_resumed_run_does_not_train_finished_experiences_again(tmp_path: Path) -> None:
    spec = make_spec("naive")
    interrupt(spec, tmp_path, 3)
    seen: set[int] = set()
    run_one(spec, tmp_path, progress=lambda experience, *_: seen.add(experience))
    assert seen == {3, 4}


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_run_folder_has_the_record_and_bank_that_reports_need(finished: dict[str, Path], learner: str) -> None:
    folder = finished[learner]
    result = load_run(folder / "run.json")
    data = record(folder)
    assert result.finished
    assert result.square
    assert len(result.tasks) == 5
    assert sorted(c for task in result.tasks for c in task.classes) == [str(c) for c in range(10)]
    assert result.transfer.shape == (5, 5)
    for values in (result.untrained, result.start, result.seconds.train, result.seconds.evaluate):
        assert values.shape == (5,)
    assert (result.seconds.train > 0).all()
    assert result.similarity is not None
    assert result.similarity.matrix.shape == (2, 5, 5)
    assert result.provenance == ("atoms" if learner == "atom_swapping" else "filters")
    assert result.memory.bytes_per_task > 0
    assert result.recipe_hash == make_spec(learner).hash
    assert result.seed == 0
    assert set(data["versions"]) == {"python", "fscl", "torch", "torchvision", "avalanche-lib", "numpy"}
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", data["versions"]["fscl"])
    assert data["machine"]["threads"] == 1
    assert data["benchmark"]["training"]["epochs"] == 1  # as it was run, with what was set
    for t, row in enumerate(data["accuracy"]):
        assert all(0 <= value <= 1 for value in row[: t + 1])
        assert row[t + 1 :] == [None] * (4 - t)  # what was not yet learned is not there


def test_a_finished_run_folder_has_no_other_files(finished: dict[str, Path]) -> None:
    for learner, folder in finished.items():
        expected = {"run.json", "weights.safetensors"} | ({"bank.safetensors"} if learner == "atom_swapping" else set())
        assert {p.name for p in folder.iterdir()} - {".lock"} == expected


def test_the_bank_of_a_run_holds_its_tasks(finished: dict[str, Path]) -> None:
    bank = AtomBank.load(finished["atom_swapping"] / "bank.safetensors")
    data = record(finished["atom_swapping"])
    assert bank.names == [task["name"] for task in data["tasks"]]
    assert bank.similarity(per_layer=True).numpy() == pytest.approx(np.array(data["similarity"]["matrix"]))
    assert bank.layers == data["similarity"]["layers"]
    assert bank.memory() == data["memory"]["per_task"]


def test_atom_swapping_and_independent_networks_do_not_forget_and_fine_tuning_does(finished: dict[str, Path]) -> None:
    """Without forgetting, accuracies on former tasks are equal bit for bit."""
    for learner in LEARNERS:
        accuracy = record(finished[learner])["accuracy"]
        kept = all(accuracy[t][i] == accuracy[i][i] for t in range(5) for i in range(t))
        assert kept is (learner in ("atom_swapping", "from_scratch"))


def test_equal_seeds_give_equal_numbers_and_other_seeds_do_not(tmp_path: Path, finished: dict[str, Path]) -> None:
    torch.manual_seed(1234)
    again = run_one(make_spec("naive"), tmp_path)
    assert numbers(again) == numbers(finished["naive"])
    other = run_one(make_spec("naive", seed=1), tmp_path)
    assert record(other)["tasks"] != record(again)["tasks"]
    assert record(other)["accuracy"] != record(again)["accuracy"]
    assert record(other)["recipe_hash"] == record(again)["recipe_hash"]


def test_validation_tests_on_training_images_and_changes_the_hash(tmp_path: Path, finished: dict[str, Path]) -> None:
    spec = make_spec("naive", validation=0.25)
    folder = run_one(spec, tmp_path)
    assert record(folder)["validation"] == 0.25
    assert record(folder)["recipe_hash"] != record(finished["naive"])["recipe_hash"]
    assert record(folder)["accuracy"] != record(finished["naive"])["accuracy"]


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = make_spec("naive"), finished["naive"]
    out = folder.parents[2]
    before = (folder / "run.json").stat().st_mtime_ns

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "train_next", refuse)
    assert is_finished(spec, out)
    assert run_one(spec, out) == folder
    assert (folder / "run.json").stat().st_mtime_ns == before


def test_overwrite_restarts_a_finished_run(tmp_path: Path) -> None:
    spec = make_spec("atom_swapping", settings=("split.tasks=2",))
    folder = run_one(spec, tmp_path)
    before, numbers_before = contents(folder), numbers(folder)
    seen: set[int] = set()
    run_one(spec, tmp_path, overwrite=True, progress=lambda experience, *_: seen.add(experience))
    assert seen == {0, 1}
    assert numbers(folder) == numbers_before
    assert set(contents(folder)) == set(before)


def test_overwrite_keeps_the_old_results_until_training_has_begun(tmp_path: Path) -> None:
    spec = make_spec("atom_swapping", settings=("split.tasks=2",))
    folder = run_one(spec, tmp_path)
    before = contents(folder)
    impossible = RunSpec(*with_overrides(spec.benchmark, spec.strategy, ["model.name=convent"]), 0)
    with pytest.raises(FsclError, match="unknown network 'convent'"):
        run_one(impossible, tmp_path, overwrite=True)
    assert contents(folder) == before


def test_a_folder_with_a_run_of_another_recipe_is_refused_and_unchanged(tmp_path: Path) -> None:
    folder = run_one(make_spec("naive", settings=("split.tasks=2",)), tmp_path)
    unfinished = interrupt(make_spec("ewc"), tmp_path, 2)
    before = contents(tmp_path)
    for learner, settings in (("naive", ("split.tasks=2", "training.lr=0.01")), ("ewc", ("args.ewc_lambda=7",))):
        spec = make_spec(learner, settings=settings)
        assert not is_finished(spec, tmp_path)
        with pytest.raises(
            FsclError, match=r"holds a run of another recipe.*use --overwrite to replace it, or another"
        ):
            run_one(spec, tmp_path)
    assert contents(tmp_path) == before
    run_one(make_spec("naive", settings=("split.tasks=2", "training.lr=0.01")), tmp_path, overwrite=True)
    assert record(folder)["benchmark"]["training"]["lr"] == 0.01
    run_one(make_spec("ewc"), tmp_path)  # the interrupted one still goes on
    assert record(unfinished)["status"] == "finished"


DELETE = "delete this file, and only this run begins anew"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("{", f"cannot be read as JSON.*{DELETE}"),
        ("", f"cannot be read as JSON.*{DELETE}"),
        ("[" * 100_000, f"cannot be read as JSON.*{DELETE}"),
        ("[]", "format is 'list'; this version of fscl reads format 1$"),
        (
            '{"format": 2, "status": "finished", "recipe_hash": "0"}',
            "format is 2; this version of fscl reads format 1$",
        ),
        ('{"format": 1, "status": "finished"}', f"key 'benchmark' is missing; {DELETE}"),
        ({"seed": 1}, f"its seed is 1, not 0; move it to the folder of its run; {DELETE}"),
        ({"accuracy": [None, [0.5, 0.5]]}, f"accuracy is not a rectangular list of numbers; {DELETE}"),
        ({"accuracy": [[0.5, None], [0.5, 7]]}, f"accuracy has 7; its numbers are from 0 to 1; {DELETE}"),
        ({"accuracy": []}, f"the run is finished but has no accuracies; {DELETE}"),
        ({"status": 3}, f"status is 3; it must be .*; {DELETE}"),
        ({"machine": [1]}, f"machine is \\[1\\]; .*; {DELETE}"),
    ],
)
def test_a_damaged_record_is_refused_and_other_runs_are_unchanged(
    tmp_path: Path, two_tasks: Path, damage: str | dict[str, Any], says: str
) -> None:
    spec = make_spec("naive", settings=("split.tasks=2",))
    folder = Path(shutil.copytree(two_tasks, spec.folder(tmp_path)))
    good = numbers(folder)
    damage = damage if isinstance(damage, str) else json.dumps(record(folder) | damage)
    (folder / "run.json").write_text(damage)
    assert not is_finished(spec, tmp_path)
    with pytest.raises(FsclError, match=f"run.json: {says}"):
        run_one(spec, tmp_path)
    assert (folder / "run.json").read_text() == damage
    run_one(spec, tmp_path, overwrite=True)
    assert numbers(folder) == good


def test_a_failed_run_is_recorded_and_resumes_after_its_last_task(tmp_path: Path, finished: dict[str, Path]) -> None:
    spec = make_spec("ewc")
    folder = interrupt(spec, tmp_path, 3, ValueError)
    failed = load_run(folder / "run.json")
    assert failed.status == "failed"
    assert failed.accuracy.shape == (3, 5)  # what was finished is kept
    assert "ValueError: stop here" in record(folder)["error"]
    assert not is_finished(spec, tmp_path)
    run_one(spec, tmp_path)
    assert numbers(folder) == numbers(finished["ewc"])
    assert "error" not in record(folder)


def test_a_failure_in_the_first_experience_is_recorded(tmp_path: Path) -> None:
    spec = make_spec("naive", settings=("split.tasks=2",))
    folder = interrupt(spec, tmp_path, 0, ValueError)
    assert load_run(folder / "run.json").status == "failed"
    run_one(spec, tmp_path)
    assert is_finished(spec, tmp_path)


def test_a_run_that_cannot_begin_is_recorded_and_may_be_replaced_by_another_recipe(tmp_path: Path) -> None:
    spec = make_spec("naive", settings=("split.tasks=2",))
    impossible = RunSpec(*with_overrides(spec.benchmark, spec.strategy, ["model.name=convent"]), 0)
    with pytest.raises(FsclError, match="unknown network 'convent'"):
        run_one(impossible, tmp_path)
    folder = spec.folder(tmp_path)
    failed = load_run(folder / "run.json")
    assert (failed.status, len(failed.accuracy), failed.recipe_hash) == ("failed", 0, impossible.hash)
    assert "unknown network 'convent'" in record(folder)["error"]
    run_one(spec, tmp_path)
    assert is_finished(spec, tmp_path)
    assert "error" not in record(folder)


@pytest.mark.parametrize("file", ["checkpoint.pt", "bank.safetensors", "run.json"])
def test_a_full_disk_loses_no_finished_task(
    tmp_path: Path, finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    spec = make_spec("atom_swapping")
    folder = interrupt(spec, tmp_path, 2)
    before = contents(folder)
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == file and len(record(folder)["accuracy"]) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(FsclError, match=rf"cannot write .*{file}: the disk is full"):
            run_one(spec, tmp_path)
    after = contents(folder)
    assert after[file] == before[file]
    assert set(after) == set(before)  # no temporary file
    run_one(spec, tmp_path)
    assert numbers(folder) == numbers(finished["atom_swapping"])


def test_a_full_disk_while_torch_saves_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("naive")
    folder = interrupt(spec, tmp_path, 2)
    before = (folder / "checkpoint.pt").read_bytes()

    def full(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nand a page of more")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FsclError, match=r"cannot write .*checkpoint.pt: .*unexpected pos 64 vs 0$"):
        run_one(spec, tmp_path)
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob("*.tmp*"))
    assert not list(folder.glob(".*.tmp*"))


def test_half_written_files_of_a_killed_process_are_removed_by_the_next_run(tmp_path: Path) -> None:
    spec = make_spec("atom_swapping", settings=("split.tasks=2",))
    folder = interrupt(spec, tmp_path, 1)
    for name in (".run.abc.tmp.json", ".checkpoint.abc.tmp.pt", ".bank.abc.tmp.safetensors"):
        (folder / name).write_bytes(b"half")
    run_one(spec, tmp_path)
    assert {p.name for p in folder.iterdir()} - {".lock"} == {"run.json", "bank.safetensors", "weights.safetensors"}


def test_two_processes_at_once_train_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("naive")
    trained: list[int] = []
    train_next = Trainer.train_next
    monkeypatch.setattr(Trainer, "train_next", lambda self: (trained.append(self.done), train_next(self))[1])
    threads = [threading.Thread(target=run_one, args=(spec, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trained == [0, 1, 2, 3, 4]
    assert is_finished(spec, tmp_path)


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FsclError, match=r"cannot write .*file/split_digits/naive/seed_0: Not a directory"):
        run_one(make_spec("naive"), tmp_path / "file")


def test_an_oserror_of_the_learner_is_not_reported_as_an_unwritable_folder(tmp_path: Path) -> None:
    interrupt(make_spec("naive"), tmp_path, 0, OSError)
