"""Images of every mode that Pillow opens are converted correctly or refused by name. Images are upright."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile.images import png, tiff
from fscl.data.image_files import read_images
from fscl.errors import FsclError

RAMP = np.array([[0, 256, 32768, 65535]], np.uint16)


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
