"""Image folders are decoded once, and again only if they changed."""

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.hostile.mutations import mutate_bytes
from fscl.data import image_files
from fscl.data import image_files as decoded_copies
from fscl.data.datasets import load_images
from fscl.data.image_files import cache_folder
from fscl.files import write_atomically


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / "data" / "set" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((4, 5, 3), (label, i, split == "test"), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / "set" / split / name / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded so far."""
    files: list[Path] = []
    ordinary = image_files._read

    def read(path: Path, image_size: int | None) -> np.ndarray:
        files.append(path)
        return ordinary(path, image_size)

    monkeypatch.setattr(image_files, "_read", read)
    return files


def test_images_are_decoded_once(pictures: Path, cache: Path, decoded: list[Path]) -> None:
    first = load_images("set", pictures)
    assert len(decoded) == 12
    again = load_images("set", pictures)
    assert len(decoded) == 12
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert a.classes == b.classes
    assert first[0].images.shape == (6, 3, 4, 5)
    assert first[0].images[4].flatten(1).T.unique(dim=0).tolist() == [[1, 1, 0]]  # bee, number 1, training


@pytest.mark.parametrize("change", ["a file", "its time", "one more", "one less", "the size"])
def test_a_changed_image_folder_is_decoded_again(pictures: Path, cache: Path, decoded: list[Path], change: str) -> None:
    load_images("set", pictures)
    file, size = pictures / "set" / "train" / "ant" / "1.png", None
    if change == "a file":
        Image.fromarray(np.full((4, 5, 3), 99, np.uint8)).save(file)
    elif change == "its time":
        os.utime(file, ns=(1, 1))
    elif change == "one more":
        Image.fromarray(np.full((4, 5, 3), 99, np.uint8)).save(file.with_name("9.png"))
    elif change == "one less":
        file.unlink()
    else:
        size = 8
    train, _ = load_images("set", pictures, size)
    assert len(decoded) > 12
    assert bool((train.images[:4] == 99).any()) == (change in ("a file", "one more"))
    assert train.images.shape[2:] == ((8, 8) if size else (4, 5))
    assert len(list(cache.iterdir())) == 2  # the older copies are gone


def test_damaged_cached_copies_are_replaced_and_an_unwritable_cache_is_not_used(
    pictures: Path, cache: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_images("set", pictures)[0].images
    for copy in cache.iterdir():
        copy.write_bytes(copy.read_bytes()[:-7])
    assert torch.equal(load_images("set", pictures)[0].images, expected)
    assert len(decoded) == 24
    (pictures / "file").write_text("not a folder")
    monkeypatch.setenv("FSCL_CACHE", str(pictures / "file" / "below"))
    assert torch.equal(load_images("set", pictures)[0].images, expected)
    assert len(decoded) == 36


def test_users_without_a_home_folder_get_images_without_a_cache(
    pictures: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FSCL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is where nothing tells the home
    monkeypatch.chdir(pictures)
    load_images("set", pictures)
    assert len(decoded) == 12
    assert not (pictures / "~").exists()


def test_cache_folder_is_FSCL_CACHE_or_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSCL_CACHE", "/chosen")
    assert cache_folder() == Path("/chosen")
    monkeypatch.delenv("FSCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users/cache")
    assert cache_folder() == Path("/users/cache/fscl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fscl"


def flip(where: int) -> Callable[[Path], None]:
    def damage(copy: Path) -> None:
        content = bytearray(copy.read_bytes())
        content[where] ^= 4
        copy.write_bytes(content)

    return damage


def pretend(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """Damage: a header that claims more values than the file has."""

    def damage(copy: Path) -> None:
        with open(copy, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
            file.write(bytes(360))

    return damage


def sparse(copy: Path) -> None:
    """Damage: a sparse file of the size that the header claims."""
    pretend((6, 3, 100_000, 20_000))(copy)
    os.truncate(copy, copy.stat().st_size - 360 + 36 * 10**9 + 4)


def another(copy: Path) -> None:
    """Damage: a valid copy of other images."""
    other = next(path for path in copy.parent.iterdir() if path != copy)
    copy.write_bytes(other.read_bytes())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a pixel": flip(-5),
    "the first pixel": flip(128),
    "the checksum": flip(-1),
    "the shape": flip(60),
    "the magic": flip(0),
    "the version": flip(6),
    "cut off": lambda copy: os.truncate(copy, copy.stat().st_size - 1),
    "empty": lambda copy: copy.write_bytes(b""),
    "longer": lambda copy: copy.write_bytes(copy.read_bytes() + b"\0"),
    "without a checksum": lambda copy: np.save(copy, np.load(copy)),
    "other pixels": lambda copy: np.save(copy, 255 - np.load(copy)),
    "other type": lambda copy: np.save(copy, np.load(copy).astype(np.int16)),
    "other order": lambda copy: np.save(copy, np.asfortranarray(np.load(copy))),
    "other images": another,
    "claims 36 GB": pretend((6, 3, 100_000, 20_000)),
    "claims as many": pretend((6, 3, -4, -5)),
    "claims nothing": pretend((6, 0, 0, 0)),
    "claims 36 GB sparsely": sparse,
    "text": lambda copy: copy.write_text("hello"),
    "a folder": lambda copy: (copy.unlink(), copy.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cached_copy_changed_after_writing_is_not_used(
    pictures: Path, cache: Path, decoded: list[Path], damage: str
) -> None:
    expected = load_images("set", pictures)
    for copy in sorted(cache.iterdir()):
        DAMAGES[damage](copy)
    found = load_images("set", pictures)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.images, b.images)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False))
def test_random_damage_of_a_cached_copy_is_noticed_or_harmless(tmp_path: Path, random: Random) -> None:
    copy, pixels = tmp_path / "0.npy", np.arange(6 * 3 * 4 * 5, dtype=np.uint8).reshape(6, 3, 4, 5)
    decoded_copies._save(copy, "key", pixels)
    copy.write_bytes(mutate_bytes(copy.read_bytes(), random))
    try:
        found = decoded_copies._load(copy, "key", len(pixels))
    except Exception:  # it is made anew
        return
    assert np.array_equal(found, pixels)


def test_a_changed_file_with_its_old_time_is_decoded_again(pictures: Path, cache: Path) -> None:
    load_images("set", pictures)
    file = pictures / "set" / "train" / "ant" / "1.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    Image.fromarray(np.full((4, 5, 3), 99, np.uint8)).save(file)
    file.write_bytes(file.read_bytes().ljust(len(content), b"\0")[: len(content)])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert int(load_images("set", pictures)[0].images[1].max()) == 99


def test_cache_files_left_by_killed_processes_are_removed_when_reading(pictures: Path, cache: Path) -> None:
    load_images("set", pictures)
    kept = sorted(cache.iterdir())
    (cache / f".{kept[0].stem}.abcd.tmp.npy").write_bytes(b"x" * 10)
    if (child := os.fork()) == 0:
        write_atomically(
            cache / "0-0.npy", lambda path: (path.write_text("half"), os.kill(os.getpid(), signal.SIGKILL))
        )
    os.waitpid(child, 0)
    assert len(list(cache.iterdir())) == 3
    load_images("set", pictures)
    assert sorted(cache.iterdir()) == kept


def test_a_cache_file_that_another_process_is_writing_is_kept(pictures: Path, cache: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fscl.files import write_atomically
def write(path):
    path.write_text("whole")
    print("begun", flush=True)
    sys.stdin.readline()
write_atomically(Path({str(cache)!r}) / "theirs.txt", write)
"""
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    other.stdout.readline()
    load_images("set", pictures)
    other.communicate("\n")
    assert other.returncode == 0
    assert (cache / "theirs.txt").read_text() == "whole"


def test_cached_copies_of_another_version_are_not_used(
    pictures: Path, cache: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_images("set", pictures)
    monkeypatch.setattr("fscl.data.image_files.FORMAT", -1)
    load_images("set", pictures)
    assert len(decoded) == 24


def test_a_cached_copy_is_a_numpy_file_followed_by_a_checksum(pictures: Path, cache: Path) -> None:
    expected = {tuple(part.images.flatten().tolist()) for part in load_images("set", pictures)}
    assert {tuple(np.load(copy).flatten().tolist()) for copy in cache.iterdir()} == expected
    for copy in cache.iterdir():
        assert copy.stat().st_size == 128 + 360 + len(zlib.crc32(b"").to_bytes(4, "little"))
