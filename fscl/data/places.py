"""Where data sets lie in the data folder. Nothing is read here, and neither torch nor NumPy is imported."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LAYOUTS", "TORCHVISION", "Layout", "Place", "data_root", "find_data", "joined", "places_of"]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# torchvision's class, and the file by which its layout is recognised
TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py/batches.meta"),
    "cifar100": ("CIFAR100", "cifar-100-python/meta"),
    "mnist": ("MNIST", "MNIST/raw/train-images-idx3-ubyte"),
    "fmnist": ("FashionMNIST", "FashionMNIST/raw/train-images-idx3-ubyte"),
}


@dataclass(frozen=True)
class Layout:
    """How a data set of image files is distributed.

    Attributes:
        folder: its folder, below the data folder.
        mark: a folder below ``folder`` by which the layout is recognised.
        parts: the files to look for, for messages.
        how: how to get the data set, for messages.
    """

    folder: str
    mark: str
    parts: str
    how: str


LAYOUTS = {
    "tinyimagenet": Layout(
        "tiny-imagenet-200",
        ".",
        "{train/<wnid>/images/*,val/images/*,val/val_annotations.txt,words.txt}",
        "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip into the data folder",
    ),
    "miniimagenet": Layout(
        "miniimagenet",
        "images",
        "{images/*,train.csv,val.csv,test.csv}",
        "make it from ImageNet (ILSVRC 2012, for which image-net.org wants a registration) by the lists train.csv, "
        "val.csv and test.csv of Ravi and Larochelle",
    ),
    "core50": Layout(
        "core50_128x128",
        ".",
        "s<session>/o<object>/*.png",
        "unpack core50_128x128.zip of https://vlomonaco.github.io/core50 into the data folder",
    ),
}


@dataclass(frozen=True)
class Place:
    """A place where a data set may lie.

    Attributes:
        kind: how it is read: scikit-learn's digits, torchvision's own files, files in MNIST's format, a layout of
            :data:`LAYOUTS`, or an image folder.
        folder: the folder that is read.
        where: the place, for messages.
        marks: the data set is there if, of each of these, one file or folder exists.
    """

    kind: Literal["digits", "torchvision", "idx", "layout", "folder"]
    folder: Path
    where: str
    marks: tuple[tuple[Path, ...], ...] = ()

    @property
    def present(self) -> bool:
        return all(any(path.exists() for path in either) for either in self.marks)


def data_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: ``folder``, or ``$FSCL_DATA`` if that is None, or ``./data`` if neither is set."""
    return Path(folder or os.environ.get("FSCL_DATA") or "data")


def find_data(name: str, root: str | os.PathLike[str] | None = None) -> str | None:
    """Where a data set was found, as a phrase for people; None if it, or one of several joined by ``+``, is missing."""
    base = data_root(root)
    found = [next((place.where for place in places_of(part, base) if place.present), None) for part in joined(name)]
    return None if None in found else " and ".join(map(str, found))


def joined(name: str) -> list[str]:
    """The names of data sets that are joined by ``+``."""
    names = name.split("+")
    return names if all(names) else [name]


def places_of(name: str, base: Path) -> list[Place]:
    """The places where a data set may lie, in the order in which they are looked at."""
    if name == "digits":
        return [Place("digits", base, "scikit-learn")]
    places = []
    if name in TORCHVISION:
        mark = base / TORCHVISION[name][1]
        either = ((mark, mark.with_name(f"{mark.name}.gz")),)
        if name.endswith("mnist"):
            places.append(Place("idx", mark.parent, str(mark), either))
        else:
            places.append(Place("torchvision", base, str(mark), either))
    if name in LAYOUTS:
        layout = LAYOUTS[name]
        home = base / layout.folder
        places.append(Place("layout", home, f"{home}/{layout.parts}", ((home / layout.mark,),)))
    folder = base / name
    splits = tuple((folder / split,) for split in ("train", "test"))
    places.append(Place("folder", folder, f"{folder}/train/<class>/* and {folder}/test/<class>/*", splits))
    if name == "fmnist":
        raw = DEBIAN_FASHION_MNIST
        marks = ((raw / "train-images-idx3-ubyte.gz",),)
        places.append(Place("idx", raw, f"{raw} (Debian: dataset-fashion-mnist)", marks))
    return places
