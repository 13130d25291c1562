"""Images, image folders, cached arrays and IDX files: odd modes, formats, files and names, bombs, damage."""

import gzip
import io
import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image, ImageOps

from benchmarks.hostile.mutations import mutate_bytes
from benchmarks.hostile.trial import Trial
from fscl.data.datasets import load_images
from fscl.data.image_files import FORMATS, read_images
from fscl.errors import printable

__all__ = ["BOMBS", "OTHER_FORMATS", "png", "tiff", "trials", "variants"]

RAMP = np.array([[0, 256, 32768, 65535]], np.uint16)  # as 8 bits: 0, 1, 128, 255
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def trials(folder: Path, rng: random.Random, count: int) -> Iterator[Trial]:
    os.environ["FSCL_CACHE"] = str(folder / "cache")
    Image.init(), torchvision.datasets.MNIST  # slow to load, so before the trials' processes are forked

    def new_folder() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    for content in MODES:
        yield Trial("pixels deeper than 8 bits", lambda c=content: _greys(new_folder(), c) == [0, 1, 128, 255])
    for content in BOMBS:
        yield Trial("more pixels claimed than can be", lambda c=content: _greys(new_folder(), c) is None)
    for content in OTHER_FORMATS:
        yield Trial("another format under an image's name", lambda c=content: _other_format(new_folder(), c))
    for orientation in range(1, 9):
        for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
            yield Trial("EXIF rotation", lambda k=kind, o=orientation: _upright(new_folder(), k, o), may_refuse=False)
    for make in ODD_FILES:
        yield Trial("a pipe, folder, link or device among images", lambda m=make: _odd(new_folder(), m))
    for name in NAMES:
        yield Trial("names that are no UTF-8 or no text", lambda n=name: _named(new_folder(), n), may_refuse=False)
    whole = variants()
    for _ in range(count):
        content = mutate_bytes(rng.choice(whole), rng)
        yield Trial("image, damaged", lambda c=content: _as_pillow(new_folder(), c))
    for _ in range(count // 2):
        seed = rng.random()
        yield Trial("cached array, damaged", lambda s=seed: _cached(new_folder(), random.Random(s)), may_refuse=False)
    for _ in range(count // 2):
        packed, seed = rng.random() < 0.5, rng.random()
        yield Trial("MNIST file, damaged", lambda p=packed, s=seed: _mnist(new_folder(), p, random.Random(s)))


def png(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG with these compressed rows. Its header may be false."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1, planes: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of one strip, written without Pillow."""
    height, width = values.shape[:2]
    content = values.tobytes()
    if bits == 12:
        text = "".join(f"{value:012b}" for value in values.flatten())
        content = int(text, 2).to_bytes(len(text) // 8, "big")
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: None, 277: planes, 278: height}
    tags |= {279: len(content), 339: sample_format}
    after = 8 + 2 + 12 * len(tags) + 4
    extra = b"".join(struct.pack("<3H", value, value, value) for value in (bits, sample_format)) if planes == 3 else b""
    entries = b""
    for tag, value in tags.items():
        if tag in (258, 339) and planes == 3:
            entries += struct.pack("<HHII", tag, 3, 3, after + (6 if tag == 339 else 0))
        else:
            entries += struct.pack("<HHII", tag, 4, 1, after + len(extra) if value is None else value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + extra + content


def variants() -> list[bytes]:
    """A small image in every format, and in some variants of formats."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    saved: list[tuple[Image.Image, str, dict]] = [(image, kind, {}) for kind in FORMATS]
    saved += [(image, kind, {"exif": exif}) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
    saved += [(image, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    saved += [(image.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGBA")]
    saved += [(image.convert("CMYK"), "JPEG", {}), (image, "JPEG", {"progressive": True})]
    return [_saved(*each) for each in saved]


def _saved(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


MODES = [
    png(4, 1, zlib.compress(b"\0" + RAMP.astype(">u2").tobytes()), bits=16),
    b"P5 4 1 65535\n" + RAMP.astype(">u2").tobytes(),
    b"P5 4 1 1023\n" + (RAMP >> 6).astype(">u2").tobytes(),
    b"Pf\n4 1\n-1.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
    tiff(RAMP, 16),
    tiff(RAMP >> 4, 12),
    tiff(RAMP, 16, photometric=0),
    tiff(RAMP // 257, 16),
    tiff(RAMP.astype("<u4"), 32),
    tiff(RAMP.astype("<u4") << 16, 32),
    *(tiff(RAMP.astype(f"<i{size}"), 8 * size, 2) for size in (1, 2, 4)),
    *(tiff((RAMP / high).astype("<f4"), 32, 3) for high in (1, 257, 65535)),
    *(tiff(np.full((1, 4), value, "<f4"), 32, 3) for value in (np.nan, np.inf, -1)),
    *(tiff(RAMP.astype(f"<f{size}"), 8 * size, 3) for size in (4, 8)),
    *(tiff(np.ones((1, 4, 3), f"<f{size}"), 8 * size, 3, 2, 3) for size in (2, 4)),
]
BOMBS = [
    png(60_000, 60_000, zlib.compress(bytes(10**6))),
    png(10_000, 9_000, zlib.compress(bytes(10**6))),
    png(2**31 - 1, 1, b""),
    b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 1, 1, 0, 0),
    b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
    b"P6 99999 99999 255\n" + bytes(99),
    b"P2 99999 99999 255\n0 0 0",
    tiff(np.zeros((1, 1), np.uint8), 8).replace(
        struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 2**31)
    ),
]
OTHER_FORMATS = [
    POSTSCRIPT,
    b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
    b"%PDF-1.4\n",
    b"SIMPLE  =                    T" + b" " * 50,
    b"\x00\x00\x01\x00\x01\x00" + bytes(40),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"",
]
ODD_FILES: list[Callable[[Path], object]] = [
    os.mkfifo,
    Path.mkdir,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("/dev/tty"),
    lambda path: path.symlink_to("nowhere"),
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("."),
]
NAMES = [
    b"caf\xe9",
    b"\xff\xfe",
    b"a\nb",
    b"\x1b[31m",
    b"x" * 251,
    b" ",
    "\u202e\u82b1".encode(),
    b"=1+1",
    b"<b>",
    b"$x$",
]


def _greys(folder: Path, content: bytes) -> list[int] | None:
    (folder / "x.png").write_bytes(content)
    return read_images(folder, [folder / "x.png"])[0, 0, 0].tolist()


def _other_format(folder: Path, content: bytes) -> bool:
    """Reads an image of another format. A false Ghostscript in the path leaves a mark if it is run."""
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {folder}/ran\nexit 1\n")
    (folder / "gs").chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    try:
        _greys(folder, content)
    finally:
        if (folder / "ran").exists():
            raise RuntimeError("Ghostscript was run")
    return False


def _upright(folder: Path, kind: str, orientation: int) -> bool:
    """Whether an image is rotated as by Pillow's own ``exif_transpose``."""
    exif = Image.Exif()
    exif[274] = orientation
    marked = np.zeros((32, 48, 3), np.uint8)
    marked[:16, :16] = 255
    (folder / "x.png").write_bytes(_saved(Image.fromarray(marked), kind, {"exif": exif}))
    upright = Image.fromarray(marked)
    upright.getexif()[274] = orientation
    upright_pixels = read_images(folder, [folder / "x.png"])[0, 0].numpy() > 128
    return np.array_equal(upright_pixels, np.asarray(ImageOps.exif_transpose(upright))[..., 0] > 128)


def _odd(folder: Path, make: Callable[[Path], object]) -> bool:
    with suppress(FileExistsError):
        make(folder / "x.png")
    read_images(folder, [folder / "x.png"])
    return False


def _named(folder: Path, name: bytes) -> bool:
    """Whether a class and an image with this name are read."""
    for split in ("train", "test"):
        for label, grey in ((b"ant", 1), (name, 2)):
            place = os.fsencode(folder / "pets" / split) + b"/" + label
            os.makedirs(place)
            Image.new("L", (4, 4), grey).save(os.fsdecode(place + b"/" + name + b".png"), "PNG")
    train, test = load_images("pets", folder)
    text = printable(os.fsdecode(name))
    text.encode("utf-8")
    return sorted(train.classes) == sorted(test.classes) == sorted(["ant", text]) and all(
        int(image.max()) == 1 + (train.classes[label] == text)
        for image, label in zip(train.images, train.labels, strict=True)
    )


def _as_pillow(folder: Path, content: bytes) -> bool:
    """Whether an image is read as Pillow reads it. Pixels deeper than 8 bits have trials of their own."""
    (folder / "x.png").write_bytes(content)
    pixels = read_images(folder, [folder / "x.png"])[0].permute(1, 2, 0).numpy()
    with Image.open(io.BytesIO(content)) as image:
        if image.mode in ("I", "F", "LAB") or image.mode.startswith("I;16"):
            return True
        tiff_turns_itself, rgb = image.format == "TIFF", image.convert("RGB")
        with suppress(Exception):  # EXIF data may be damaged
            rgb = rgb if tiff_turns_itself else ImageOps.exif_transpose(rgb)
    return np.array_equal(pixels, np.asarray(rgb))


def _cached(folder: Path, rng: random.Random) -> bool:
    os.environ["FSCL_CACHE"] = str(folder / "cache")
    files = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(files):
        Image.new("L", (8, 8), i).save(path)
    read_images(folder, files)
    (copy,) = (folder / "cache").iterdir()
    copy.write_bytes(mutate_bytes(copy.read_bytes(), rng))
    images = read_images(folder, files)
    return images.shape == (3, 3, 8, 8) and all(bool((image == i).all()) for i, image in enumerate(images))


def _mnist(folder: Path, packed: bool, rng: random.Random) -> bool:
    """Whether a damaged MNIST file is read right. An unpacked file has no checksum, so its values may differ."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    values = {
        prefix: np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28) for prefix, n in (("train", 3), ("t10k", 2))
    }
    for prefix, images in values.items():
        for part, array in (("images-idx3", images), ("labels-idx1", np.arange(len(images), dtype=np.uint8))):
            content = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            (raw / f"{prefix}-{part}-ubyte{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    target = rng.choice(sorted(raw.iterdir()))
    target.write_bytes(mutate_bytes(target.read_bytes(), rng))
    for images, prefix in zip(load_images("mnist", folder, download=False), ("train", "t10k"), strict=True):
        if packed and not np.array_equal(images.images[:, 0].numpy(), values[prefix]):
            return False
        if images.images.shape != (len(images.labels), 1, 28, 28) or int(images.labels.max()) > 9:
            return False
    return True
