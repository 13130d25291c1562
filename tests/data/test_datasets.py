"""Data sets from their usual places: torchvision's layout, image folders, Debian's package, scikit-learn."""

import gzip
import hashlib
import os
import pickle
import socket
import struct
import tempfile
import tracemalloc
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torchvision
from PIL import Image

from fscl.data import places
from fscl.data.datasets import load_images
from fscl.data.places import data_root, find_data
from fscl.errors import FsclError


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def image_folder(root: Path, classes: dict[str, int], images: int = 2, side: int = 6) -> Path:
    """Images of one colour. Each class has its own red value."""
    for split in ("train", "test"):
        for name, red in classes.items():
            for i in range(images):
                save(root / split / name / f"{i}.png", np.full((side, side, 3), (red, i, 7), np.uint8))
    return root


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist_files(folder: Path, train: int = 6, test: int = 4, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, n in (("train", train), ("t10k", test)):
        images = np.arange(n * 28 * 28).reshape(n, 28, 28) % 251
        for part, array in (("images-idx3", images), ("labels-idx1", np.arange(n) % 10)):
            content = idx(array)
            name = f"{prefix}-{part}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


def test_data_root_is_the_argument_or_FSCL_DATA_or_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSCL_DATA", "/from/variable")
    assert data_root("/given") == Path("/given")
    assert data_root() == Path("/from/variable")
    monkeypatch.delenv("FSCL_DATA")
    assert data_root() == Path("data")


def test_digits_are_split_without_overlap_and_evenly() -> None:
    train, test = load_images("digits")
    assert train.images.dtype == torch.uint8
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 8, 8)
    assert len(train.images) + len(test.images) == 1797
    assert int(train.images.max()) == 255
    for c in range(10):
        held = int((test.labels == c).sum()) / int((test.labels == c).sum() + (train.labels == c).sum())
        assert held == pytest.approx(0.2, abs=0.01)
    from sklearn.datasets import load_digits

    known = {}
    for image, label in zip(load_digits().images, load_digits().target, strict=True):
        known.setdefault(np.rint(image * 255 / 16).astype(np.uint8).tobytes(), []).append(label)
    ours = [*zip(train.images, train.labels, strict=True), *zip(test.images, test.labels, strict=True)]
    for image, label in ours:
        known[image.numpy().tobytes()].remove(int(label))  # each digit once, with its own label
    assert not any(known.values())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "layout"), [("mnist", "MNIST/raw"), ("fmnist", "FashionMNIST/raw")])
def test_mnist_is_found_in_torchvisions_layout(tmp_path: Path, name: str, layout: str, packed: bool) -> None:
    mnist_files(tmp_path / layout, packed=packed)
    assert layout in (find_data(name, tmp_path) or "")
    train, test = load_images(name, tmp_path, download=False)
    assert train.images.shape == (6, 1, 28, 28)
    assert test.images.shape == (4, 1, 28, 28)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.images[1, 0, 0, :3].tolist() == [784 % 251, 785 % 251, 786 % 251]
    assert len(train.classes) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == [layout.split("/")[0]]


def test_mnist_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    mnist_files(tmp_path / "MNIST/raw")
    theirs = torchvision.datasets.MNIST(tmp_path, train=True)
    ours, _ = load_images("mnist", tmp_path, download=False)
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.labels, theirs.targets)
    assert ours.classes == theirs.classes


def test_reading_packed_mnist_writes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    mnist_files(tmp_path / "debian", packed=True)
    monkeypatch.setattr(places, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    train, _ = load_images("fmnist", tmp_path / "nothing", download=False)
    assert len(train.images) == 6
    assert not any(scratch.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((6, 28, 28)))[:-100]),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b""),
        lambda raw: (raw / "train-images-idx3-ubyte").write_text("<html>not found</html>"),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").unlink(),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3))),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(4, 10))),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4)) + b"x"),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, -1, 28, 28) + bytes(784)),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 0, 28, 28)),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 60000, 28, 28)),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *[2**31 - 1] * 3)),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0xD03, 6, 28, 28) + bytes(4704)),
        lambda raw: ((raw / "train-images-idx3-ubyte").unlink(), os.mkfifo(raw / "train-images-idx3-ubyte")),
        lambda raw: ((raw / "train-images-idx3-ubyte").unlink(), (raw / "train-images-idx3-ubyte").mkdir()),
    ],
)
def test_a_damaged_copy_of_mnist_is_named(tmp_path: Path, damage) -> None:
    mnist_files(tmp_path / "MNIST/raw")
    damage(tmp_path / "MNIST/raw")
    with pytest.raises(FsclError, match=r"MNIST/raw.*get (it|them) again"):
        load_images("mnist", tmp_path, download=False)


def test_a_damaged_archive_of_mnist_is_named(tmp_path: Path) -> None:
    mnist_files(tmp_path / "MNIST/raw", packed=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FsclError, match=r"train-images-idx3-ubyte.gz: damaged"):
        load_images("mnist", tmp_path, download=False)


def test_an_mnist_archive_larger_than_its_header_says_is_not_unpacked(tmp_path: Path) -> None:
    mnist_files(tmp_path / "MNIST/raw", packed=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    head = gzip.compress(struct.pack(">4i", 0x803, 6, 28, 28), 1)
    path.write_bytes(head + gzip.compress(bytes(2**20)) * 4000)  # 4 GB
    tracemalloc.start()
    with pytest.raises(FsclError, match=r"train-images-idx3-ubyte.gz: damaged or missing \(not 6x28x28 values"):
        load_images("mnist", tmp_path, download=False)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


def test_an_mnist_archive_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist_files(tmp_path / "MNIST/raw", packed=True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000))
    with pytest.raises(FsclError, match=r"train-images-idx3-ubyte.gz: its values take .* of memory are free"):
        load_images("mnist", tmp_path, download=False)


def cifar10_files(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for k, name in enumerate(names):
        data = {"data": np.full((2, 3072), k, np.uint8), "labels": [k, 9]}
        data["data"][:, 1024] = 200  # first green value
        (folder / name).write_bytes(pickle.dumps(data))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    return folder


def test_cifar_is_found_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar10_files(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    train, test = load_images("cifar10", tmp_path, download=False)
    assert train.images.shape == (10, 3, 32, 32)
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert train.images[2, :, 0, 0].tolist() == [1, 200, 1]  # channels first
    assert test.labels.tolist() == [5, 9]
    assert train.classes[3] == "class3"
    monkeypatch.undo()
    with pytest.raises(FsclError, match=rf"{folder}: damaged or incomplete copy of 'cifar10'; delete it"):
        load_images("cifar10", tmp_path, download=False)


class Payload:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["batches.meta", "data_batch_1", "data_batch_5", "test_batch"])
def test_tampered_files_of_cifar_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    folder = cifar10_files(tmp_path)
    (folder / file).write_bytes(pickle.dumps(Payload(tmp_path / "code was run")))
    lists = [*torchvision.datasets.CIFAR10.train_list, *torchvision.datasets.CIFAR10.test_list]
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name, _ in lists}
    sums["batches.meta"] = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    sums[file] = "0" * 32  # the other files are as they were published
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [[name, sums[name]] for name, _ in cifar.test_list])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})
    with pytest.raises(FsclError, match=rf"{folder}: damaged or incomplete copy of 'cifar10'; delete it"):
        load_images("cifar10", tmp_path, download=False)
    assert not (tmp_path / "code was run").exists()


def test_an_image_folder_is_read_by_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"Zebra": 10, "ant": 20, "bee": 30})
    assert "pets/train" in (find_data("pets", tmp_path) or "")
    train, test = load_images("pets", tmp_path)
    assert train.classes == test.classes == sorted(["Zebra", "ant", "bee"])
    assert train.images.shape == (6, 3, 6, 6)
    assert train.images.dtype == torch.uint8
    for image, label in zip(train.images, train.labels.tolist(), strict=True):
        assert int(image[0, 0, 0]) == {"Zebra": 10, "ant": 20, "bee": 30}[train.classes[label]]
        assert int(image[2, 0, 0]) == 7


def test_an_image_folder_can_have_the_name_of_a_torchvision_data_set(tmp_path: Path) -> None:
    image_folder(tmp_path / "cifar10", {"a": 1, "b": 2})
    assert load_images("cifar10", tmp_path, download=False)[0].classes == ["a", "b"]


def test_hidden_folders_and_other_files_are_not_classes(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    (tmp_path / "pets/train/.ipynb_checkpoints").mkdir()
    (tmp_path / "pets/train/README.txt").write_text("about")
    (tmp_path / "pets/train/ant/Thumbs.db").write_text("x")
    train, _ = load_images("pets", tmp_path)
    assert train.classes == ["ant", "bee"]
    assert len(train.images) == 4


def test_files_of_operating_systems_are_neither_classes_nor_images(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    (tmp_path / "pets/train/__MACOSX/ant").mkdir(parents=True)
    (tmp_path / "pets/train/__MACOSX/ant/._0.png").write_bytes(b"\0\5\x16\7")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", "0.png.part"):
        (tmp_path / "pets/train/ant" / name).write_bytes(b"\0\5\x16\7")
    train, _ = load_images("pets", tmp_path)
    assert (train.classes, len(train.images)) == (["ant", "bee"], 4)


NAMES = {
    b"caf\xe9": "caf\\xe9",
    b"\xff\xfe": "\\xff\\xfe",
    "花".encode(): "花",
    b"a\nb": "a\\nb",
    b"\x1b[31mred": "\\x1b[31mred",
    b"tab\there": "tab\\there",
    b"x" * 255: "x" * 255,
    b" ": " ",
    b"=1+1": "=1+1",
}


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_files_with_any_name_are_read(tmp_path: Path, name: bytes) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    for split in ("train", "test"):
        folder = os.fsencode(tmp_path / "pets" / split)
        os.rename(folder + b"/bee", folder + b"/" + name)
        os.rename(folder + b"/ant/0.png", folder + b"/ant/" + name[:200] + b".png")
    train, test = load_images("pets", tmp_path)
    assert sorted(train.classes) == sorted(test.classes) == sorted(["ant", NAMES[name]])
    assert train.images[train.labels == train.classes.index(NAMES[name]), 0].unique().tolist() == [2]
    " ".join(train.classes).encode("utf-8")
    again, _ = load_images("pets", tmp_path)
    assert torch.equal(again.images, train.images)


def test_classes_whose_names_differ_only_in_bytes_stay_distinct(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {os.fsdecode(b"caf\xe9"): 1, os.fsdecode(b"caf\xe8"): 2, "caf": 3})
    train, _ = load_images("pets", tmp_path)
    assert train.classes == ["caf", "caf\\xe8", "caf\\xe9"]
    assert train.images[::2, 0, 0, 0].tolist() == [3, 2, 1]


def test_classes_that_would_be_shown_with_the_same_name_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {os.fsdecode(b"caf\xe9"): 1, "caf\\xe9": 2})
    with pytest.raises(FsclError, match=r"two classes are shown as 'caf.*; rename one"):
        load_images("pets", tmp_path)


def test_an_unreadable_image_with_any_name_gives_a_one_line_error(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    (tmp_path / "pets/train/ant" / os.fsdecode(b"a\n\xe9.png")).write_text("hello")
    with pytest.raises(FsclError, match=r"ant/a \\xe9.png: not a readable image") as caught:
        load_images("pets", tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("where", ["", "pets", "pets/train", "pets/train/ant"])
def test_an_unreadable_class_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    ordinary = {name: getattr(os, name) for name in ("listdir", "scandir", "stat")}

    def refuse(name: str, path: object, *rest: object, **options: object) -> object:
        below = str(path).startswith(f"{tmp_path / where}/") or (name != "stat" and path == str(tmp_path / where))
        if below or (name != "stat" and Path(str(path)) == tmp_path / where):
            raise PermissionError(13, "Permission denied", str(path))
        return ordinary[name](path, *rest, **options)

    for name in ordinary:
        monkeypatch.setattr(os, name, partial(refuse, name))
    with pytest.raises(FsclError, match=r"cannot be read \(Permission denied\)"):
        load_images("pets", tmp_path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    array = np.zeros((6, 6, 3), np.uint8)
    array[:, 3:] = 255
    image_folder(tmp_path / "pets", {"ant": 0, "bee": 0})
    suffix = "tif" if mode == "CMYK" else "png"
    for split in ("train", "test"):
        save(tmp_path / "pets" / split / "ant" / f"0_other.{suffix}", array, mode)
    train, _ = load_images("pets", tmp_path)
    image = train.images[1]
    assert image.shape == (3, 6, 6)
    assert image[:, :, :3].max() <= 1
    assert image[:, :, 3:].min() >= 254


def test_sixteen_bit_images_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 0, "bee": 0}, images=1)
    array = np.array([[0, 256, 32768, 65535]] * 4, np.uint16)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            save(tmp_path / "pets" / split / name / "0.png", array)
    train, _ = load_images("pets", tmp_path)
    assert train.images[0, :, 0].tolist() == [[0, 1, 128, 255]] * 3


def test_image_size_resizes_image_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 40, "bee": 80}, side=9)
    save(tmp_path / "pets/train/ant/large.png", np.full((40, 21, 3), 99, np.uint8))
    with pytest.raises(FsclError, match=r"images of 2 sizes \(21x40, 9x9, ...\); set data.image_size"):
        load_images("pets", tmp_path)
    train, test = load_images("pets", tmp_path, image_size=4)
    assert train.images.shape == (5, 3, 4, 4)
    assert test.images.shape == (4, 3, 4, 4)
    assert sorted(set(train.images[:, 0].flatten().tolist())) == [40, 80, 99]  # a flat image stays flat


def test_training_and_test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 40, "bee": 80}, side=9)
    for path in (tmp_path / "pets" / "test").rglob("*.png"):
        save(path, np.zeros((5, 7, 3), np.uint8))
    with pytest.raises(FsclError, match=r"training images are 9x9, test images 7x5; set data.image_size"):
        load_images("pets", tmp_path)


def test_only_image_folders_are_resized() -> None:
    with pytest.raises(FsclError, match=r"digits: data.image_size is 16, but only image folders are resized"):
        load_images("digits", image_size=16)
    assert load_images("digits", image_size=8)[0].images.shape[-1] == 8


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    (tmp_path / "pets/train/cat").mkdir()
    (tmp_path / "pets/train/cat/notes.txt").write_text("none yet")
    with pytest.raises(FsclError, match=r"pets/train/cat: no images in it; known endings: \.png"):
        load_images("pets", tmp_path)


def test_a_folder_without_classes_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", {"ant": 1})
    for path in (tmp_path / "pets/train").rglob("*.png"):
        path.rename(tmp_path / "pets/train" / path.name)
    (tmp_path / "pets/train/ant").rmdir()
    with pytest.raises(FsclError, match=r"pets/train: no class folders in it; expected .*/<class>/\*"):
        load_images("pets", tmp_path)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_an_unreadable_image_is_named(tmp_path: Path, kind: str) -> None:
    image_folder(tmp_path / "pets", {"ant": 1, "bee": 2})
    broken = tmp_path / "pets/train/bee/broken.png"
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    save(broken, noise)
    content = {"truncated": broken.read_bytes()[:900], "text": b"hello", "empty": b""}[kind]
    broken.write_bytes(content)
    with pytest.raises(FsclError, match=r"pets/train/bee/broken.png: not a readable image"):
        load_images("pets", tmp_path, image_size=8)


def test_a_missing_data_set_is_reported_with_the_places_searched(tmp_path: Path) -> None:
    assert find_data("pets", tmp_path) is None
    with pytest.raises(FsclError, match=r"'pets' was not found.*pets/train/<class>/\*.*--data or FSCL_DATA"):
        load_images("pets", tmp_path)
    with pytest.raises(FsclError, match=r"'cifar100' was not found.*cifar-100-python/meta; .*cifar100/train"):
        load_images("cifar100", tmp_path, download=False)


def test_a_failed_download_is_reported_with_the_places_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float | None] = []

    def offline(*_: object, **__: object) -> None:
        tried.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(FsclError, match=r"'cifar10' was not found.*could not be downloaded.*service not known"):
        load_images("cifar10", tmp_path)
    assert tried
    assert all(seconds is not None and seconds <= 60 for seconds in tried)  # it cannot hang
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("stopped", [urllib.error.URLError("offline"), KeyboardInterrupt()], ids=["failed", "stopped"])
def test_a_download_that_does_not_end_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: BaseException
) -> None:
    def download(root: Path, train: bool, download: bool) -> None:
        mnist_files(root / "MNIST/raw")
        raise stopped

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    mnist_files(tmp_path / "old/MNIST/raw")
    (tmp_path / "old/MNIST/raw/train-images-idx3-ubyte").unlink()
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "old", tmp_path / "new/data"):
        with pytest.raises((FsclError, KeyboardInterrupt)):
            load_images("mnist", folder)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_download_is_found_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class MNIST(torchvision.datasets.MNIST):
        def download(self) -> None:
            mnist_files(Path(self.raw_folder))

    with monkeypatch.context() as patched:
        patched.setattr(torchvision.datasets, "MNIST", MNIST)
        downloaded, _ = load_images("mnist", tmp_path / "data")
    assert len(list((tmp_path / "data").rglob("*"))) == 2 + 4  # folders, and files
    found, _ = load_images("mnist", tmp_path / "data", download=False)
    assert torch.equal(found.images, downloaded.images)
    assert find_data("mnist", tmp_path / "data") is not None


@pytest.mark.skipif(
    not (places.DEBIAN_FASHION_MNIST / "train-images-idx3-ubyte.gz").exists(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_is_found_in_debians_package(tmp_path: Path) -> None:
    assert "Debian" in (find_data("fmnist", tmp_path) or "")
    train, test = load_images("fmnist", tmp_path, download=False)
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert train.classes[int(train.labels[0])] == "Ankle boot"
    assert torch.bincount(train.labels).tolist() == [6000] * 10
