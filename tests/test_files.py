"""Atomic writing: after any failure the old file is whole, and no temporary file is left."""

import errno
import glob
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fscl.errors import FsclError
from fscl.files import write_atomically, write_text_atomically, written_together


def text(content: str):
    return lambda path: path.write_text(content)


def test_write_atomically_writes_replaces_and_makes_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "note.txt"
    write_atomically(target, text("one"))
    write_atomically(str(target), text("two"))
    assert target.read_text() == "two"
    assert os.listdir(target.parent) == ["note.txt"]


def test_searches_for_a_file_do_not_find_a_half_written_one(tmp_path: Path) -> None:
    found: list[list[Path]] = []
    seen: list[Path] = []

    def write(path: Path) -> None:
        path.write_text("half")
        seen.append(path)
        found.append(list(tmp_path.rglob("run.json")))
        found.append([Path(name) for name in glob.glob(f"{tmp_path}/**/*.json", recursive=True)])

    write_atomically(tmp_path / "run.json", write)
    assert found == [[], []]
    assert seen[0].suffix == ".json"  # libraries choose the format by it
    assert seen[0].parent.parent == tmp_path  # so that renaming stays within one file system


def test_a_written_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
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


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
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


def test_a_bank_file_survives_a_really_full_disk(small_disk: Path) -> None:
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


OVER = 200_000  # bytes that do not fit


def _text(path: Path) -> None:
    path.write_text("x" * OVER)


def _torch(path: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(OVER)}, path)


def _numpy(path: Path) -> None:
    import numpy as np

    np.save(path, np.zeros(OVER))


def _safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(OVER)}, path)


def _matplotlib(path: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().imshow(np.random.default_rng(0).random((300, 300)))
    figure.savefig(path, format="png", dpi=150)


def _pillow(path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(path, "png")


def _json(path: Path) -> None:
    with open(path, "w") as file:
        json.dump(list(range(OVER)), file)


WRITERS = [_text, _torch, _numpy, _safetensors, _matplotlib, _pillow, _json]


@contextmanager
def small_files() -> Iterator[None]:
    """Limits files to 8 kB. The system then refuses to write as on a full disk, and the limit needs no permission.

    Not a fixture: pytest prints its progress before a fixture ends, perhaps into a file that is larger already.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_size_limit_is_reported_whichever_library_writes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    says = r"^cannot write .*data.bin: it is larger than a file may be here \(File too"
    with small_files(), pytest.raises(FsclError, match=says):
        write_atomically(tmp_path / "data.bin", write)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_reported_whichever_library_writes(small_disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(FsclError, match=r"^cannot write .*data.bin: the disk is full \(No space left on device\)$"):
        write_atomically(small_disk / "data.bin", write)
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "larger than a file may be"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("where", ["mkdir", "fsync", "replace"])
def test_the_systems_reason_is_reported_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, where: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, refuse)
    with pytest.raises(FsclError, match=rf"^cannot write .*note.txt: .*{says}"):
        write_atomically(tmp_path / "note.txt", text("x"))


def test_an_error_of_the_writer_itself_is_passed_on(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        write_atomically(tmp_path / "note.txt", fail)


def test_a_folder_removed_while_writing_is_named(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "note.txt"
    with pytest.raises(FsclError, match=r"cannot write .*folder/note.txt: No such file or directory"):
        write_atomically(target, lambda path: (path.write_text("x"), shutil.rmtree(target.parent)))


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".txt", os.fsdecode(b"caf\xe9.txt"), "a\nb.txt", " .txt", ".hidden", "no suffix", "花" * 80]
)
def test_files_with_any_name_are_written(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, text("x"))
    assert os.listdir(tmp_path) == [name]


def test_invalid_utf8_in_text_is_written_escaped(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "note.txt", os.fsdecode(b"caf\xe9 \xc3\xa9"))
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "caf\\udce9 é"


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space"), ValueError("no"), FsclError("no"), SystemExit()]
)
def test_files_written_together_appear_together_or_not_at_all(tmp_path: Path, failure: BaseException) -> None:
    def fail(_: Path) -> None:
        raise failure

    (tmp_path / "b.txt").write_text("old")

    def write() -> None:
        with written_together():
            write_atomically(tmp_path / "a.txt", text("new"))
            write_text_atomically(tmp_path / "figures" / "b.txt", "new")
            write_text_atomically(tmp_path / "b.txt", "new")
            write_atomically(tmp_path / "c.txt", fail)

    with pytest.raises((FsclError, type(failure))):
        write()
    assert sorted(os.listdir(tmp_path)) == ["b.txt", "figures"]
    assert (tmp_path / "b.txt").read_text() == "old"
    assert os.listdir(tmp_path / "figures") == []


def test_files_written_together_do_not_appear_if_a_folder_is_in_the_way_of_one(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()

    @written_together()
    def write() -> None:
        write_text_atomically(tmp_path / "a.txt", "new")
        write_text_atomically(tmp_path / "b.txt", "new")

    with pytest.raises(FsclError, match=r"b.txt: Is a directory"):
        write()
    assert os.listdir(tmp_path) == ["b.txt"]


def test_nested_files_written_together_appear_with_the_outer_ones(tmp_path: Path) -> None:
    with written_together() as outer:
        with written_together() as inner:
            write_text_atomically(tmp_path / "a.txt", "1")
            assert inner(tmp_path / "a.txt").read_text() == "1"
        write_text_atomically(tmp_path / "a.txt", "2")
        assert outer(tmp_path / "a.txt").read_text() == "2"
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "2"
    write_text_atomically(tmp_path / "b.txt", "3")  # by itself again
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def killed_while_writing(target: Path) -> None:
    child = os.fork()
    if child == 0:
        write_atomically(target, lambda path: (path.write_text("half"), os.kill(os.getpid(), signal.SIGKILL)))
    os.waitpid(child, 0)


def test_files_left_by_killed_processes_are_removed_by_the_next_writer(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "table.csv")
    assert len(os.listdir(tmp_path)) == 1
    killed_while_writing(tmp_path / "bank.safetensors")
    assert len(os.listdir(tmp_path)) == 1  # its own
    for name in (".split-digits-memory.s7xjzz6o.tmp.png", ".index.abcd1234.tmp.html", ".name.12345678.tmp"):
        (tmp_path / name).write_text("half")
    write_text_atomically(tmp_path / "note.txt", "whole")
    assert os.listdir(tmp_path) == ["note.txt"]


def test_temporary_files_of_a_living_process_are_kept(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("slowly")
        theirs = f"from fscl.files import *; write_text_atomically({str(tmp_path / 'theirs.txt')!r}, 'fast')"
        subprocess.run([sys.executable, "-c", theirs], check=True)
        write_text_atomically(tmp_path / "also ours.txt", "fast")

    write_atomically(tmp_path / "ours.txt", write)
    assert (tmp_path / "ours.txt").read_text() == "slowly"
    assert sorted(os.listdir(tmp_path)) == ["also ours.txt", "ours.txt", "theirs.txt"]


def test_files_of_other_programs_are_not_removed_as_stale(tmp_path: Path) -> None:
    (tmp_path / ".full.12345678.tmp").mkdir()
    for name in (".full.12345678.tmp/mine.txt", "a.tmp", ".a.swp", ".tmp", "notes.abc.tmp.txt", ".tmpfile"):
        (tmp_path / name).write_text("kept")
    write_text_atomically(tmp_path / "note.txt", "x")
    assert len(os.listdir(tmp_path)) == 7
    assert (tmp_path / ".full.12345678.tmp" / "mine.txt").read_text() == "kept"
