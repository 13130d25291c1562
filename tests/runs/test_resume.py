"""A run resumes only from the exact checkpoint that it wrote. Any other checkpoint is refused with advice."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.hostile.mutations import mutate_bytes
from fscl.errors import FsclError
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.resume import read_checkpoint
from fscl.runs.run import is_finished, run_one
from fscl.runs.spec import RunSpec

TINY = ["training.epochs=1", "model.args.widths=[4]", "split.tasks=5"]
ANEW = "delete this file, and only this run begins anew from its first task"


def make_spec(learner: str = "ewc", seed: int = 0, settings: tuple[str, ...] = ()) -> RunSpec:
    return RunSpec(*with_overrides(load_benchmark("split_digits"), load_strategy(learner), [*TINY, *settings]), seed)


class Stopped(BaseException):
    """Not an Exception, so no code handles it, as with a killed process."""


def stopped(spec: RunSpec, out: Path, experience: int = 1) -> Path:
    """Stops a run while it learns a task. Returns its checkpoint."""

    def progress(at: int, *_: int) -> None:
        if at == experience:
            raise Stopped

    with pytest.raises(Stopped):
        run_one(spec, out, progress=progress)
    return spec.folder(out) / "checkpoint.pt"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one stopped run. Tests must not change it."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped(make_spec(), folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The numbers of a run that was not stopped."""
    return numbers(run_one(make_spec(), tmp_path_factory.mktemp("whole")))


def numbers(folder: Path) -> list[Any]:
    record = json.loads((folder / "run.json").read_text())
    return [record[key] for key in ("accuracy", "transfer", "start", "similarity", "memory", "status")]


@pytest.mark.parametrize(
    "learner", ["ewc", "atom_swapping", "atom_ensemble", "replay", "si", "gem", "packnet", "from_scratch", "icarl"]
)
def test_a_checkpoint_is_a_torch_file_of_plain_data(tmp_path: Path, learner: str) -> None:
    """It names only classes that every torch since 2.4 reads with ``weights_only``."""
    settings = ("split.scenario=class",) if learner == "icarl" else ()
    saved = torch.load(stopped(make_spec(learner, settings=settings), tmp_path), weights_only=True)
    kinds: set[str] = set()
    left: list[Any] = [saved]
    while left:
        value = left.pop()
        kinds.add(type(value).__name__)
        left += [*value, *value.values()] if isinstance(value, dict) else []
        left += value if isinstance(value, list | tuple) else []
    assert kinds <= {
        "dict",
        "OrderedDict",
        "list",
        "tuple",
        "Tensor",
        "Parameter",
        "str",
        "int",
        "float",
        "bool",
        "NoneType",
    }
    assert saved["trainer"]["done"] == 1


def test_every_flipped_bit_of_a_checkpoint_is_found(out: Path, tmp_path: Path) -> None:
    spec = make_spec()
    whole = (spec.folder(out) / "checkpoint.pt").read_bytes()
    path, rng = tmp_path / "checkpoint.pt", random.Random(0)
    for place in [*range(0, len(whole), 97), len(whole) - 1, *range(len(whole) - 80, len(whole))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(FsclError, match=rf"checkpoint.pt: damaged \(.*\); {ANEW}$"):
            read_checkpoint(path, spec)


def test_a_cut_extended_or_replaced_checkpoint_is_found(out: Path, tmp_path: Path) -> None:
    spec = make_spec()
    whole = (spec.folder(out) / "checkpoint.pt").read_bytes()
    path, rng = tmp_path / "checkpoint.pt", random.Random(0)
    fixed = [b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole + whole, whole[64:], whole[-76:]]
    for damaged in [*fixed, *(mutate_bytes(whole, rng) for _ in range(300))]:
        path.write_bytes(damaged)
        with pytest.raises(FsclError, match=r"checkpoint.pt: damaged"):
            read_checkpoint(path, spec)
    path.write_bytes(whole)
    record, state = read_checkpoint(path, spec)
    assert (len(record.accuracy), state["done"]) == (1, 1)


@pytest.mark.parametrize("other", ["seed", "recipe", "learner"])
def test_a_checkpoint_of_another_run_is_refused(out: Path, tmp_path: Path, other: str) -> None:
    strange = {
        "seed": make_spec(seed=1),
        "recipe": make_spec(settings=("training.lr=0.01",)),
        "learner": make_spec("naive"),
    }[other]
    shutil.copytree(out, tmp_path / "mine")
    mine = make_spec().folder(tmp_path / "mine") / "checkpoint.pt"
    theirs = stopped(strange, tmp_path / "theirs")
    shutil.copy(theirs, mine)
    with pytest.raises(
        FsclError, match=rf"checkpoint.pt: belongs to another run \(recipe {strange.hash}, seed {strange.seed};"
    ):
        run_one(make_spec(), tmp_path / "mine")
    assert mine.read_bytes() == theirs.read_bytes()
    mine.unlink()  # as the message says
    run_one(make_spec(), tmp_path / "mine")
    assert is_finished(make_spec(), tmp_path / "mine")


def test_a_checkpoint_of_another_version_is_not_called_damaged(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out, tmp_path / "runs")
    path = make_spec().folder(tmp_path / "runs") / "checkpoint.pt"
    before = path.read_bytes()

    def older(*_: Any, **__: Any) -> None:
        raise AttributeError("module 'torch.serialization' has no attribute 'safe_globals'")

    for where in ("torch.load", "fscl.continual.training.trainer.Trainer.load_state_dict"):
        with monkeypatch.context() as patch:
            patch.setattr(where, older)
            with pytest.raises(FsclError, match=r"checkpoint.pt: undamaged, but .*go on with the versions") as caught:
                run_one(make_spec(), tmp_path / "runs")
        assert not re.search("delete|overwrite", str(caught.value))
        assert path.read_bytes() == before
    monkeypatch.setattr("fscl.runs.resume.FORMAT", 3)
    with pytest.raises(
        FsclError, match=r"undamaged, but its format is 2, and this fscl reads format 3; go on with the fscl version"
    ):
        run_one(make_spec(), tmp_path / "runs")


@pytest.mark.parametrize("damage", ["{", "", '{"format": 1}', "[" * 5000, '{"format": 1, "seed": "x"}'])
def test_a_damaged_record_beside_a_good_checkpoint_is_restored(
    out: Path, whole: list[Any], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(out, tmp_path / "runs")
    folder = make_spec().folder(tmp_path / "runs")
    (folder / "run.json").write_text(damage)
    seen: list[int] = []
    run_one(make_spec(), tmp_path / "runs", progress=lambda experience, *_: seen.append(experience))
    assert seen == [1, 2, 3, 4], "the first task is not learned again"
    assert numbers(folder) == whole


def test_a_run_does_not_resume_on_changed_tasks(out: Path, tmp_path: Path) -> None:
    """Tasks change, for example, if images of a new class are added to the data folder."""
    shutil.copytree(out, tmp_path / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fscl.runs.stream.run.load_stream", lambda _: _stream(seed=5))
        with pytest.raises(FsclError, match=r"checkpoint.pt: its tasks differ from the tasks that the images now give"):
            run_one(make_spec(), tmp_path / "runs")


def _stream(seed: int) -> Any:
    from fscl.continual import load_images, split_classes

    return split_classes(*load_images("digits"), 5, seed=seed)
