"""Image folders are decoded once, and again only where they changed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fscl.continual import image_files
from fscl.continual.datasets import load_images
from fscl.continual.decoded import cache_folder


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
    """The files that were decoded."""
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
def test_a_change_is_noticed(pictures: Path, cache: Path, decoded: list[Path], change: str) -> None:
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


def test_damaged_copies_are_made_anew_and_a_cache_is_no_must(
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


def test_users_without_a_home_do_without(pictures: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FSCL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    load_images("set", pictures)
    assert len(decoded) == 12


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSCL_CACHE", "/chosen")
    assert cache_folder() == Path("/chosen")
    monkeypatch.delenv("FSCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users/cache")
    assert cache_folder() == Path("/users/cache/fscl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "fscl"
