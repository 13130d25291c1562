"""Reads data sets of image files in the layouts in which they are distributed."""

import csv
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from fscl.data.image_files import SUFFIXES, read_images
from fscl.data.images import ImageSet
from fscl.data.places import LAYOUTS
from fscl.errors import FsclError, printable

__all__ = ["CORE50_OBJECTS", "READERS", "core50", "image_folder", "mini_imagenet", "tiny_imagenet"]

CORE50_SESSIONS = range(1, 12)
CORE50_TEST_SESSIONS = (3, 7, 10)
CORE50_OBJECTS = [
    f"{category}{number}"
    for category in (
        "plug_adapter", "mobile_phone", "scissor", "light_bulb", "can",
        "glass", "ball", "marker", "cup", "remote_control",
    )
    for number in range(1, 6)
]  # fmt: skip
MINI_IMAGENET_LISTS = ("train.csv", "val.csv", "test.csv")

Split = tuple[ImageSet, ImageSet]


def image_folder(folder: Path, image_size: int | None = None) -> ImageSet:
    """The images of one split, ``<folder>/<class>/*``; classes in alphabetical order.

    Raises:
        FsclError: there are no class folders, or a class has no images; and as :func:`read_images`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("bee", "ant"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (8, 6)).save(folder / name / "0.png")
        >>> pets = image_folder(folder)
        >>> pets.classes, pets.labels.tolist(), tuple(pets.images.shape)
        (['ant', 'bee'], [0, 1], (2, 3, 6, 8))
    """
    classes = _folders_in(folder)
    if not classes:
        raise FsclError(f"{folder}: no class folders in it; expected {folder}/<class>/*")
    return _of_files(folder, {name: _images_in(folder / name) for name in classes}, image_size)


def tiny_imagenet(folder: Path, image_size: int | None = None) -> Split:
    """Tiny ImageNet, as its official archive unpacks. Its ``val`` images are the test images: its own have no labels.

    Classes are in the order of their WordNet numbers. A class has the first of its names in ``words.txt``.

    Args:
        folder: with ``train/<wnid>/images/*``, ``val/images/*``, ``val/val_annotations.txt`` and ``words.txt``.
        image_size: see :func:`read_images`.

    Raises:
        FsclError: a part is missing, or training and test images have different classes.

    Example:
        >>> train, test = tiny_imagenet(Path("data/tiny-imagenet-200"))  # doctest: +SKIP
    """
    annotations = folder / "val" / "val_annotations.txt"
    _require(folder, ["train", "val/images", "val/val_annotations.txt", "words.txt"], LAYOUTS["tinyimagenet"].how)
    wnids = _folders_in(folder / "train")
    _require(folder, [f"train/{wnid}/images" for wnid in wnids], LAYOUTS["tinyimagenet"].how)
    train = {wnid: _images_in(folder / "train" / wnid / "images") for wnid in wnids}
    labelled = [line.split("\t")[:2] for line in _text(annotations).splitlines() if line.strip()]
    if strange := [row for row in labelled if len(row) < 2 or row[1] not in train]:
        raise FsclError(f"{annotations}: {' '.join(strange[0])!r} is not an image and a class of {folder / 'train'}")
    test = _by_class(labelled)
    if lacking := sorted(train.keys() - test.keys()):
        raise FsclError(f"{annotations}: no image of {lacking[0]}, which has training images")
    _require_files(folder / "val" / "images", [name for name, _ in labelled], annotations)
    files = {wnid: [folder / "val" / "images" / name for name in test[wnid]] for wnid in wnids}
    names = _wordnet_names(folder / "words.txt", wnids)
    return _of_files(folder / "train", train, image_size, names), _of_files(folder / "val", files, image_size, names)


def mini_imagenet(folder: Path, image_size: int | None = None) -> Split:
    """miniImageNet, with the classes of all three lists of Ravi and Larochelle, who split them for few-shot learning.

    In each class every sixth image, in the order of file names, is a test image: 100 of its 600.

    Args:
        folder: with ``images/*``, and ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename,label``.
        image_size: see :func:`read_images`.

    Raises:
        FsclError: a list or an image is missing, or a list has other columns.

    Example:
        >>> train, test = mini_imagenet(Path("data/miniimagenet"))  # doctest: +SKIP
    """
    _require(folder, ["images", *MINI_IMAGENET_LISTS], LAYOUTS["miniimagenet"].how)
    rows: list[Sequence[str]] = []
    for name in MINI_IMAGENET_LISTS:
        head, *body = [row for row in csv.reader(_text(folder / name).splitlines()) if row] or [[]]
        if head != ["filename", "label"] or any(len(row) != 2 for row in body):
            raise FsclError(f"{folder / name}: expected two columns with the heading filename,label")
        _require_files(folder / "images", [file for file, _ in body], folder / name)
        rows += body
    parts: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for label, files in sorted(_by_class(rows).items()):
        places = [folder / "images" / file for file in files]
        parts["test"][label] = places[5::6]
        parts["train"][label] = [place for i, place in enumerate(places) if i % 6 != 5]
    # one folder, but two tensors: each has its own name in the cache
    train, test = (_of_files(folder / "images" / part, files, image_size) for part, files in parts.items())
    return train, test


def core50(folder: Path, image_size: int | None = None) -> Split:
    """CORe50: 50 objects, five in each of ten categories, filmed in eleven sessions. Sessions 3, 7 and 10 are the test.

    Args:
        folder: with ``s<session>/o<object>/*.png``.
        image_size: see :func:`read_images`; at 128x128 pixels the images take 8 GB.

    Raises:
        FsclError: a session or an object is missing.

    References:
        Lomonaco, Maltoni. CORe50: a New Dataset and Benchmark for Continuous Object Recognition. CoRL 2017.

    Example:
        >>> train, test = core50(Path("data/core50_128x128"), image_size=32)  # doctest: +SKIP
    """
    numbers = range(1, len(CORE50_OBJECTS) + 1)
    _require(folder, [f"s{s}/o{o}" for s in CORE50_SESSIONS for o in numbers], LAYOUTS["core50"].how)
    training_sessions = tuple(s for s in CORE50_SESSIONS if s not in CORE50_TEST_SESSIONS)
    parts = []
    for part, sessions in (("train", training_sessions), ("test", CORE50_TEST_SESSIONS)):
        files = [[f for s in sessions for f in _images_in(folder / f"s{s}" / f"o{o}")] for o in numbers]
        parts.append(_of_files(folder / part, dict(zip(CORE50_OBJECTS, files, strict=True)), image_size))
    return parts[0], parts[1]


READERS: dict[str, Callable[[Path, int | None], Split]] = {
    "tinyimagenet": tiny_imagenet,
    "miniimagenet": mini_imagenet,
    "core50": core50,
}  # of the layouts in `fscl.data.places`


def _of_files(
    place: Path, files: dict[str, list[Path]], image_size: int | None, names: list[str] | None = None
) -> ImageSet:
    """Reads an image set from the files of each class."""
    labels = [label for label, paths in enumerate(files.values()) for _ in paths]
    if not labels:
        raise FsclError(f"{place}: no images")
    classes = [printable(name) for name in names or files]
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise FsclError(f"{place}: two classes are shown as {twice[0]!r}; rename one of them")
    images = read_images(place, [path for paths in files.values() for path in paths], image_size)
    return ImageSet(images, torch.tensor(labels), classes)


def _folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden folders and the one that macOS puts into zip files."""
    return [path.name for path in _listed(folder) if path.is_dir() and path.name != "__MACOSX"]


def _images_in(folder: Path) -> list[Path]:
    images = [path for path in _listed(folder) if path.suffix.lower() in SUFFIXES]
    if not images:
        raise FsclError(f"{folder}: no images in it; known endings: {' '.join(SUFFIXES)}")
    return images


def _listed(folder: Path) -> list[Path]:
    """The content of a folder in alphabetical order, without hidden names."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise FsclError(f"{folder}: cannot be read ({error.strerror})") from error


def _by_class(rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Sorted file names by label, from rows (file name, label)."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for name, label in sorted(map(tuple, rows)):
        by_label[label].append(name)
    return by_label


def _wordnet_names(path: Path, wnids: Sequence[str]) -> list[str]:
    """The first name of each class, with its WordNet number if two classes have the same name."""
    rows = [line.partition("\t") for line in _text(path).splitlines()]
    words = {wnid: names.split(",")[0].strip() for wnid, _, names in rows}
    if unknown := [wnid for wnid in wnids if not words.get(wnid)]:
        raise FsclError(f"{path}: no name for {unknown[0]}")
    names = [words[wnid] for wnid in wnids]
    return [f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True)]


def _require(folder: Path, parts: Sequence[str], how: str) -> None:
    missing = [part for part in parts if not (folder / part).exists()]
    if missing:
        further = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FsclError(f"{folder}: incomplete: no {missing[0]}{further}; to get it: {how}")


def _require_files(folder: Path, names: Collection[str], listed_in: Path) -> None:
    present = {path.name for path in _listed(folder)}
    missing = [name for name in names if name not in present]
    if missing:
        raise FsclError(
            f"{folder}: incomplete: {len(missing)} of {len(names)} images that {listed_in} lists are missing, "
            f"the first {missing[0]}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FsclError(f"{path}: cannot be read ({error})") from error
