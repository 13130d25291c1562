"""Image files of any format, mode and name, bombs, pipes and links: read correctly or refused by name."""

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
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from benchmarks.hostile.images import BOMBS, OTHER_FORMATS, png, tiff, variants
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
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


RAMP = np.array([[0, 256, 32768, 65535]], np.uint16)


SIXTEEN = zlib.compress(b"\0" + RAMP.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("grey.png", png(4, 1, SIXTEEN, bits=16)),
        ("grey.tif", tiff(RAMP, 16)),
        ("twelve.tif", tiff(RAMP >> 4, 12)),
        ("binary.pgm", b"P5 4 1 65535\n" + RAMP.astype(">u2").tobytes()),
        ("text.pgm", b"P2 4 1 65535\n0 256 32768 65535\n"),
        ("ten.pgm", b"P5 4 1 1023\n" + (RAMP >> 6).astype(">u2").tobytes()),
    ],
)
def test_greys_of_more_than_8_bits_are_scaled_by_the_declared_depth(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert greys(tmp_path / name) == [0, 1, 128, 255]
    big_endian = tmp_path / f"big_{name}"
    if name == "grey.tif":
        Image.fromarray(RAMP.astype(">u2")).save(big_endian)
        assert greys(big_endian) == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "float.tif",
            tiff(RAMP.astype("<f4") / 65535, 32, 3),
            "signed or floating-point numbers; save it with 8 or 16",
        ),
        ("float255.tif", tiff(RAMP.astype("<f4") / 257, 32, 3), "signed or floating-point"),
        ("nan.tif", tiff(np.full((1, 4), np.nan, "<f4"), 32, 3), "signed or floating-point"),
        ("inf.tif", tiff(np.full((1, 4), -np.inf, "<f4"), 32, 3), "signed or floating-point"),
        ("float.ppm", b"Pf\n4 1\n-1.0\n" + RAMP.astype("<f4").tobytes(), "floating-point|no PNG"),
        ("undefined.tif", tiff(RAMP, 16, 4), "no PNG, .* that Pillow reads"),
        ("half.tif", tiff(np.ones((1, 4), "<f2"), 16, 3), "no PNG, .* that Pillow reads"),
        ("double.tif", tiff(np.ones((1, 4), "<f8"), 64, 3), "no PNG, .* that Pillow reads"),
        ("colour.tif", tiff(np.ones((1, 4, 3), "<f4"), 32, 3, 2, 3), "no PNG, .* that Pillow reads"),
        ("signed8.tif", tiff(np.array([[-1, 0, 1, 127]], "i1"), 8, 2), "signed or floating-point"),
        ("signed16.tif", tiff(np.array([[-1, 0, 1, 32767]], "<i2"), 16, 2), "signed or floating-point"),
        ("signed32.tif", tiff(RAMP.astype("<i4"), 32, 2), "signed or floating-point"),
        ("unsigned32.tif", tiff(RAMP.astype("<u4"), 32), "32-bit numbers; save it with 8 or 16"),
        ("small32.tif", tiff(RAMP.astype("<u4") // 257, 32), "32-bit numbers"),
        ("inverted16.tif", tiff(RAMP, 16, photometric=0), "16-bit numbers with 0 as white"),
        ("eight_in_sixteen.tif", tiff(RAMP // 257, 16), "16-bit numbers of at most 255, which are all black"),
        ("eight_in_twelve.tif", tiff(np.array([[0, 1, 2, 15]]), 12), "12-bit numbers of at most 15"),
        ("one.pgm", b"P2 4 1 65535\n0 1 0 1\n", "16-bit numbers of at most 1,"),
    ],
)
def test_images_that_do_not_declare_which_value_is_white_are_refused(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FsclError, match=rf"^{tmp_path}/{name}: not a readable image \(.*({says})") as caught:
        pixels(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_all_black_image_of_sixteen_bits_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 4), np.uint16)).save(tmp_path / "black.png")
    assert greys(tmp_path / "black.png") == [0] * 4


COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], [[0, 0, 0], [9, 99, 199]] * 2], np.uint8)
EXACT = [(mode, suffix) for mode in ("RGB", "RGBA", "P") for suffix in ("png", "tif", "gif", "bmp", "webp", "ppm")]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [*EXACT, ("PA", "tif"), ("CMYK", "tif"), ("YCbCr", "tif"), ("LAB", "tif"), ("RGBX", "tif"), ("RGB", "jpg")],
)
def test_images_of_every_mode_keep_their_colours(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(np.kron(COLOURS, np.ones((8, 8, 1), np.uint8)))
    image = (
        image.quantize(8).convert("PA") if mode == "PA" else image.quantize(8) if mode == "P" else image.convert(mode)
    )
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    if mode == "YCbCr":
        options = {"compression": "tiff_lzw"}  # Pillow before 13 cannot read the others that it writes
    try:
        image.save(tmp_path / f"0.{suffix}", **options)
    except OSError:
        pytest.skip(f"Pillow writes no {mode} as {suffix}")
    kept = pixels(tmp_path / f"0.{suffix}")[4::8, 4::8].astype(int)
    assert np.abs(kept - COLOURS).max() <= {"LAB": 25, "YCbCr": 4}.get(mode, 40 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_dropped_and_the_stored_colour_kept(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (2, 1), (200, 0) if mode == "LA" else (200, 200, 200, 0))
    image.save(tmp_path / "0.png")
    assert greys(tmp_path / "0.png") == [200, 200]


def test_a_palette_with_a_transparent_colour_keeps_that_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([200, 100, 50, 1, 2, 3])
    for suffix in ("png", "gif"):
        image.save(tmp_path / f"0.{suffix}", transparency=0)
        assert pixels(tmp_path / f"0.{suffix}").tolist() == [[[200, 100, 50], [1, 2, 3]]]


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "webp"])
def test_only_the_first_of_several_frames_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (200, 20, 90)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"0.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    assert set(greys(tmp_path / f"0.{suffix}")) == {200}


# by EXIF orientation: where the first stored corner belongs (upper or lower, left or right); if rows become columns
TURNED = {
    1: (0, 0, False), 2: (0, -1, False), 3: (-1, -1, False), 4: (-1, 0, False),
    5: (0, 0, True), 6: (0, -1, True), 7: (-1, -1, True), 8: (-1, 0, True),
}  # fmt: skip


@pytest.mark.parametrize("orientation", [*TURNED, 0, 9, 65535])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_upright_as_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    marked = np.zeros((2, 3), np.uint8)
    marked[0, 0] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.kron(marked, np.ones((16, 16), np.uint8))).convert("RGB").save(
        tmp_path / f"0.{suffix}", exif=exif
    )
    row, column, swapped = TURNED.get(orientation, TURNED[1])
    expected = np.zeros((3, 2) if swapped else (2, 3), bool)
    expected[row, column] = True
    assert (pixels(tmp_path / f"0.{suffix}")[8::16, 8::16, 0] > 128).tolist() == expected.tolist()
    assert pixels(tmp_path / f"0.{suffix}", 12).shape == (12, 12, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"?"]
)
def test_an_image_with_damaged_exif_data_is_read_as_it_is_stored(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (16, 8), "white").save(tmp_path / "0.jpg", exif=exif)
    assert pixels(tmp_path / "0.jpg").shape == (8, 16, 3)
