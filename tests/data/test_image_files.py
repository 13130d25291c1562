"""Files of any format and name, damaged files, bombs, pipes and links: read correctly or refused by name."""

import contextlib
import os
import socket
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from benchmarks.hostile.images import BOMBS, OTHER_FORMATS, png, variants
from benchmarks.hostile.mutations import mutate_bytes
from fscl.data import image_files
from fscl.data.image_files import FORMATS, SUFFIXES, read_images
from fscl.errors import FsclError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSCL_CACHE", str(tmp_path / "cache"))


def pixels(path: Path, image_size: int | None = None) -> np.ndarray:
    """The pixels, (H, W, 3)."""
    return read_images(path.parent, [path], image_size)[0].permute(1, 2, 0).numpy()


def greys(path: Path) -> list[int]:
    """The values of the first row of a grey image."""
    image = pixels(path)
    assert (image == image[..., :1]).all()
    return image[0, :, 0].tolist()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", OTHER_FORMATS, ids=range(len(OTHER_FORMATS)))
def test_no_other_image_format_is_tried_whatever_the_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes
) -> None:
    for plugin in ("EpsImagePlugin.EpsImageFile._open", "EpsImagePlugin.Ghostscript"):
        monkeypatch.setattr(f"PIL.{plugin}", None)
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(FsclError, match=r"not a readable image \(no PNG, JPEG, BMP, WEBP, PPM, TIFF, GIF that Pillow"):
        pixels(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_with_the_suffix_of_another_format_is_read(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "x.jpeg", kind)
    assert set(greys(tmp_path / "x.jpeg")) == {255}


def test_pillow_knows_every_suffix_for_its_format() -> None:
    known = Image.registered_extensions()
    assert all(known[suffix] == kind for kind, suffixes in FORMATS.items() for suffix in suffixes)


@pytest.mark.parametrize("content", BOMBS, ids=range(len(BOMBS)))
def test_an_image_that_claims_too_many_pixels_is_refused_before_allocation(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(FsclError, match=r"x.png: not a readable image \(.*(pixels|no PNG)"):
        pixels(tmp_path / "x.png", 8)


def test_the_limit_of_pixels_can_be_changed_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 20), 7).save(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(FsclError, match=r"20x20 pixels; up to 399 would do"):
        pixels(tmp_path / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert greys(tmp_path / "0.png") == [7] * 20


def test_a_large_image_decoded_alone_gives_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(files):
        Image.new("L", (20, 20), i).save(path)
    monkeypatch.setattr(image_files, "LARGE", 100)
    assert read_images(tmp_path, files)[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize(("size", "count"), [(None, 1), (None, 40), (64, 40), (10**6, 1)])
def test_more_images_than_memory_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, count: int
) -> None:
    files = [tmp_path / f"{i}.png" for i in range(count)]
    for path in files:
        Image.new("L", (300, 300)).save(path)
    if size != 10**6:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=400_000))
    side = size or 300
    with pytest.raises(FsclError, match=rf"{count} images of {side}x{side} take .* GiB and .* free; set .*image_size"):
        read_images(tmp_path, files, size)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as short,
        socket.socket(socket.AF_UNIX) as bound,
    ):  # its path has 107 bytes at most
        bound.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (fifo, "a folder, pipe, socket or device instead of a file"),
        (unix_socket, "a folder, pipe, socket or device instead of a file"),
        (Path.mkdir, "a folder, pipe, socket or device instead of a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a folder, pipe, socket or device instead of a file"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read (No such file or directory)"),
        (lambda path: path.symlink_to(path.name), "cannot be read (Too many levels of symbolic links)"),
        (lambda path: path.write_bytes(b""), "not a readable image (no PNG"),
        (lambda path: path.write_bytes(b"GIF89a\0\0\0\0\0\0\0"), "not a readable image"),
        (lambda path: path.write_bytes(b"P6 0 0 255\n"), "not a readable image"),
        (lambda path: path.write_bytes(png(0, 4, b"")), "not a readable image"),
        (lambda path: path.write_bytes(png(4, 4, zlib.compress(b"\0")[:-3])), "not a readable image"),
    ],
)
def test_paths_that_are_not_image_files_are_named_without_blocking(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    make(tmp_path / "x.png")
    began = time.perf_counter()
    with pytest.raises(FsclError) as caught:
        pixels(tmp_path / "x.png")
    assert str(caught.value).startswith(f"{tmp_path}/x.png: {says}")
    assert time.perf_counter() - began < 5


def test_a_link_to_an_image_is_read(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "0.png")
    (tmp_path / "link.png").symlink_to("0.png")
    assert greys(tmp_path / "link.png") == [7] * 4


def test_an_image_that_vanishes_while_reading_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in files:
        Image.new("L", (4, 4)).save(path)
    ordinary = image_files._read

    def read(path: Path, image_size: int | None) -> np.ndarray:
        files[1].unlink(missing_ok=True)
        return ordinary(path, image_size)

    monkeypatch.setattr(image_files, "_read", read)
    with pytest.raises(FsclError, match=r"1.png: not a readable image \(.*No such file or directory"):
        read_images(tmp_path, files)


SAMPLES = variants()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False))
def test_a_damaged_image_is_refused_or_read_as_pillow_reads_it(tmp_path: Path, random: Random) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(mutate_bytes(random.choice(SAMPLES), random))
    try:
        ours = image_files._read(path, None)
    except FsclError:
        return
    with Image.open(path) as image:
        assert image.format in FORMATS
        kind = image.format
        theirs = image.convert("RGB")
        assert ours.shape[0] * ours.shape[1] == theirs.width * theirs.height
        if kind != "TIFF":
            with contextlib.suppress(Exception):  # of damaged EXIF data
                theirs = ImageOps.exif_transpose(theirs)
    if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        assert np.array_equal(ours, np.asarray(theirs))
