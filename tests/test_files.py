"""Atomic writing: whatever goes wrong, the old file stays whole and nothing is left beside it."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fscl.errors import FsclError
from fscl.files import write_atomically


def text(content: str):
    return lambda path: path.write_text(content)


def test_writes_replaces_and_makes_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "note.txt"
    write_atomically(target, text("one"))
    write_atomically(str(target), text("two"))
    assert target.read_text() == "two"
    assert os.listdir(target.parent) == ["note.txt"]


def test_what_is_written_keeps_its_name_in_a_hidden_folder_beside(tmp_path: Path) -> None:
    seen: list[Path] = []
    write_atomically(tmp_path / "figure.svg", lambda path: (seen.append(path), path.write_text("x")))
    assert seen[0].name == "figure.svg"  # libraries choose the format by the suffix
    assert seen[0].parent.parent == tmp_path  # so that renaming stays within one file system
    assert seen[0].parent.name.startswith(".")  # no glob for figures finds half a one


def test_others_may_read_it_as_far_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "note.txt", text("x"))
    finally:
        os.umask(before)
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("no"), KeyboardInterrupt()]
)
def test_a_failing_writer_leaves_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "note.txt"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise failure

    expected = FsclError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match="note.txt: the disk is full" if expected is FsclError else None):
        write_atomically(target, fail)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_disk_that_fills_up_at_the_flush_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "note.txt"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FsclError, match="the disk is full"):
        write_atomically(target, text("new"))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FsclError, match=r"cannot write .*file/note.txt: (Not a directory|File exists)"):
        write_atomically(tmp_path / "file" / "note.txt", text("x"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FsclError, match=r"cannot write .*folder: "):
        write_atomically(tmp_path / "folder", text("x"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no permission to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    target = small_disk / "data.bin"
    write_atomically(target, lambda path: path.write_bytes(b"o" * 30_000))
    with pytest.raises(FsclError, match=r"cannot write .*data.bin: the disk is full"):
        write_atomically(target, lambda path: path.write_bytes(b"n" * 60_000))
    assert target.read_bytes() == b"o" * 30_000
    assert os.listdir(small_disk) == ["data.bin"]


def test_a_bank_survives_a_really_full_disk(small_disk: Path) -> None:
    import torch
    from torch import nn

    from fscl import AtomBank, decompose, freeze_coefficients

    model = decompose(nn.Sequential(nn.Conv2d(4, 16, 3), nn.Flatten(), nn.Linear(64, 8))).model
    freeze_coefficients(model)
    bank = AtomBank(model)
    bank.store(model, 0, "first")
    bank.save(small_disk / "bank.safetensors")
    before = (small_disk / "bank.safetensors").read_bytes()
    for task in range(1, 30):
        bank.store(model, task)
    with pytest.raises(FsclError, match=r"cannot write .*bank.safetensors: .*No space left"):
        bank.save(small_disk / "bank.safetensors")
    assert (small_disk / "bank.safetensors").read_bytes() == before
    assert os.listdir(small_disk) == ["bank.safetensors"]
    assert torch.equal(AtomBank.load(small_disk / "bank.safetensors").stack("0"), bank.stack("0")[:1])
