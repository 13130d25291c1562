"""Small versions of data sets in the layouts in which they are distributed; and joined data sets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fscl.data.datasets import load_images
from fscl.data.images import ImageSet, join_images
from fscl.data.places import find_data
from fscl.errors import FsclError


def save(path: Path, red: int, green: int = 0, side: int = 4) -> None:
    """Saves an image of one colour, without loss whatever its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), (red, green, 7), np.uint8)).save(path, "png")


def colours(images: ImageSet) -> dict[str, list[tuple[int, int]]]:
    """The red and green values of the images of each class."""
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in images.classes}
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        found[images.classes[label]].append((int(image[0, 0, 0]), int(image[1, 0, 0])))
    return {name: sorted(values) for name, values in found.items()}


WORDS = "n09\tlake\nn02\tcrane, heavy lifter\nn01\tcrane, long bird\nn03\tgoldfish, Carassius auratus\n"


def tiny_imagenet(root: Path) -> Path:
    """Three classes of three training and two test images. The red value is the class."""
    folder = root / "tiny-imagenet-200"
    wnids = {"n01": 10, "n02": 20, "n03": 30}
    for wnid, red in wnids.items():
        for i in range(3):
            save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", red, i)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    rows = []
    for i, wnid in enumerate(["n03", "n01", "n02", "n02", "n03", "n01"]):
        save(folder / "val" / "images" / f"val_{i}.JPEG", wnids[wnid], 100 + i)
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "words.txt").write_text(WORDS)
    save(folder / "test" / "images" / "test_0.JPEG", 99)  # without a label, so of no use
    return folder


def mini_imagenet(root: Path) -> Path:
    """Three classes, one in each list, of 12, 12 and 13 images. The green value is the number in the class."""
    folder = root / "miniimagenet"
    for part, (label, count) in {"train": ("n05", 12), "val": ("n01", 12), "test": ("n03", 13)}.items():
        names = [f"{label}_{i:03d}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            save(folder / "images" / name, int(label[1:]), i)
        (folder / f"{part}.csv").write_text("filename,label\n" + "".join(f"{n},{label}\n" for n in reversed(names)))
    return folder


@pytest.fixture(scope="session")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame of each of the 50 objects in each of the 11 sessions. Red is the object, green the session."""
    root = tmp_path_factory.mktemp("filmed")
    for session in range(1, 12):
        for number in range(1, 51):
            name = f"C_{session:02d}_{number:02d}_000.png"
            save(root / "core50_128x128" / f"s{session}" / f"o{number}" / name, number, session)
    return root


def core50(root: Path, filmed: Path) -> Path:
    shutil.copytree(filmed, root, dirs_exist_ok=True)
    return root / "core50_128x128"


def test_tiny_imagenet_uses_its_validation_images_as_test_images(tmp_path: Path) -> None:
    assert find_data("tinyimagenet", tmp_path) is None
    tiny_imagenet(tmp_path)
    assert "tiny-imagenet-200" in (find_data("tinyimagenet", tmp_path) or "")
    train, test = load_images("tinyimagenet", tmp_path)
    assert train.classes == test.classes == ["crane (n01)", "crane (n02)", "goldfish"]
    assert colours(train) == {
        "crane (n01)": [(10, 0), (10, 1), (10, 2)],
        "crane (n02)": [(20, 0), (20, 1), (20, 2)],
        "goldfish": [(30, 0), (30, 1), (30, 2)],
    }
    assert colours(test) == {
        "crane (n01)": [(10, 101), (10, 105)],
        "crane (n02)": [(20, 102), (20, 103)],
        "goldfish": [(30, 100), (30, 104)],
    }
    assert load_images("tinyimagenet", tmp_path, image_size=2)[1].images.shape == (6, 3, 2, 2)


def test_mini_imagenet_has_all_classes_and_tests_on_every_sixth_image(tmp_path: Path) -> None:
    mini_imagenet(tmp_path)
    assert "miniimagenet/{images" in (find_data("miniimagenet", tmp_path) or "")
    train, test = load_images("miniimagenet", tmp_path)
    assert train.classes == test.classes == ["n01", "n03", "n05"]
    for name, count in {"n01": 12, "n03": 13, "n05": 12}.items():
        kept, tested = (sorted(green for _, green in colours(part)[name]) for part in (train, test))
        assert tested == [5, 11]
        assert sorted(kept + tested) == list(range(count))
        assert {red for red, _ in colours(train)[name] + colours(test)[name]} == {int(name[1:])}
    again = load_images("miniimagenet", tmp_path)
    assert torch.equal(again[0].images, train.images)
    assert torch.equal(again[1].images, test.images)


def test_core50_tests_on_sessions_3_7_and_10(filmed: Path) -> None:
    train, test = load_images("core50", filmed)
    assert len(train.classes) == 50
    assert train.classes[:6] == [*(f"plug_adapter{i}" for i in range(1, 6)), "mobile_phone1"]
    assert train.classes[-1] == "remote_control5"
    for number, name in enumerate(train.classes, 1):
        assert colours(train)[name] == [(number, s) for s in (1, 2, 4, 5, 6, 8, 9, 11)]
        assert colours(test)[name] == [(number, s) for s in (3, 7, 10)]
    assert load_images("core50", filmed, image_size=2)[0].images.shape == (400, 3, 2, 2)


@pytest.mark.parametrize("name", ["tinyimagenet", "miniimagenet", "core50"])
def test_an_image_folder_can_have_the_name_of_a_known_layout(tmp_path: Path, name: str) -> None:
    for part in ("train", "test"):
        for red, label in enumerate(("ant", "bee")):
            save(tmp_path / name / part / label / "0.png", red)
    assert find_data(name, tmp_path)
    assert load_images(name, tmp_path)[0].classes == ["ant", "bee"]


def test_training_and_test_images_of_one_folder_are_both_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filmed: Path
) -> None:
    monkeypatch.setenv("FSCL_CACHE", str(tmp_path / "cache"))
    mini_imagenet(tmp_path)
    for name, root in (("miniimagenet", tmp_path), ("core50", filmed)):
        first = load_images(name, root)
        with monkeypatch.context() as patch:
            patch.setattr("fscl.data.image_files._read", None)  # nothing is decoded again
            second = load_images(name, root)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.images, b.images)


def unlink(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: shutil.rmtree(f / "val"),
            r"incomplete: no val/images and 1 more; to get it: .*tiny-imagenet-200.zip",
        ),
        (lambda f: unlink(f / "words.txt"), r"incomplete: no words.txt; to get it: .*tiny-imagenet-200.zip"),
        (lambda f: (f / "words.txt").write_text("n01\tbird\nn03\tfish\n"), r"words.txt: no name for n02"),
        (lambda f: shutil.rmtree(f / "train/n02/images"), r"incomplete: no train/n02/images; to get it"),
        (
            lambda f: shutil.rmtree(f / "train/n02"),
            r"val_annotations.txt: 'val_2.JPEG n02' is not an image and a class of .*train",
        ),
        (lambda f: unlink(f / "val/images/val_3.JPEG"), r"1 of 6 images that .*val_annotations.txt lists.* val_3.JPEG"),
        (
            lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG\tn03\nval_1.JPEG\tn01\n"),
            r"val_annotations.txt: no image of n02, which has training images",
        ),
        (
            lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG n03"),
            r"'val_0.JPEG n03' is not an image and a class",
        ),
        (lambda f: [unlink(p) for p in (f / "train/n01/images").iterdir()], r"train/n01/images: no images in it"),
    ],
)
def test_an_incomplete_tiny_imagenet_is_refused_with_the_missing_part(
    tmp_path: Path, damage: Callable, says: str
) -> None:
    damage(tiny_imagenet(tmp_path))
    with pytest.raises(FsclError, match=says) as caught:
        load_images("tinyimagenet", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: unlink(f / "val.csv"), r"miniimagenet: incomplete: no val.csv; to get it: .*Ravi and Larochelle"),
        (lambda f: unlink(f / "images/n03_004.jpg"), r"1 of 13 images that .*test.csv lists are missing.* n03_004.jpg"),
        (
            lambda f: (f / "test.csv").write_text("file;class\na;b\n"),
            r"test.csv: expected two columns with the heading",
        ),
        (lambda f: (f / "test.csv").write_text("filename,label\na,b,c\n"), r"test.csv: expected two columns"),
        (lambda f: (f / "test.csv").write_text(""), r"test.csv: expected two columns"),
        (
            lambda f: [p.write_text("filename,label\n") for p in f.glob("*.csv")],
            r"miniimagenet/images/train: no images",
        ),
    ],
)
def test_an_incomplete_mini_imagenet_is_refused_with_the_missing_part(
    tmp_path: Path, damage: Callable, says: str
) -> None:
    damage(mini_imagenet(tmp_path))
    with pytest.raises(FsclError, match=says):
        load_images("miniimagenet", tmp_path)


def test_an_incomplete_core50_is_refused_with_the_missing_part(tmp_path: Path, filmed: Path) -> None:
    folder = core50(tmp_path, filmed)
    shutil.rmtree(folder / "s9" / "o50")
    with pytest.raises(FsclError, match=r"core50_128x128: incomplete: no s9/o50; to get it: .*core50_128x128.zip"):
        load_images("core50", tmp_path)
    shutil.rmtree(folder / "s4")
    with pytest.raises(FsclError, match=r"incomplete: no s4/o1 and 50 more; to get it"):
        load_images("core50", tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "tinyimagenet",
            r"not found \(looked for: .*tiny-imagenet-200/.*; .*tinyimagenet/train.*\); unpack http.*--data",
        ),
        ("miniimagenet", r"not found \(looked for: .*miniimagenet/\{images.*\); make it from ImageNet.*--data"),
        (
            "core50",
            r"not found \(looked for: .*core50_128x128/s.*\); unpack core50_128x128.zip of .* or name the data folder",
        ),
    ],
)
def test_a_missing_known_data_set_is_reported_with_how_to_get_it(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(FsclError, match=says) as caught:
        load_images(name, tmp_path)
    assert "\n" not in str(caught.value)


def flat(classes: list[str], first: int, side: int = 3) -> tuple[ImageSet, ImageSet]:
    """Two training images and a test image for each class. Pixels have the number of the class over all data sets."""
    labels = torch.arange(len(classes)).repeat(3)
    images = (first + labels).to(torch.uint8)[:, None, None, None].expand(-1, 1, side, side).clone()
    n = len(classes)
    return ImageSet(images[n:], labels[n:], classes), ImageSet(images[:n], labels[:n], classes)


def test_joined_data_sets_have_the_classes_of_all_with_unique_names() -> None:
    train, test = join_images({"zoo": flat(["cat", "dog"], 0), "farm": flat(["dog", "hen", "pig"], 2)})
    assert train.classes == test.classes == ["cat", "zoo/dog", "farm/dog", "hen", "pig"]
    assert train.parts == test.parts == (2, 3)
    for part, count in ((train, 10), (test, 5)):
        assert len(part.images) == count
        assert part.images[:, 0, 0, 0].tolist() == part.labels.tolist()


def test_data_sets_of_different_shapes_are_not_joined() -> None:
    with pytest.raises(FsclError, match=r"cannot be joined \(zoo 1x3x3, farm 1x4x4; channels x height x width\)"):
        join_images({"zoo": flat(["cat"], 0), "farm": flat(["hen"], 0, side=4)})


def test_a_plus_joins_data_sets_from_different_places(tmp_path: Path) -> None:
    for name, red in (("zoo", 1), ("farm", 2)):
        for part in ("train", "test"):
            save(tmp_path / name / part / "dog" / "0.png", red)
        assert find_data("zoo+farm", tmp_path) is None or name == "farm"
    where = find_data("zoo+farm", tmp_path)
    assert where is not None
    assert "zoo/train" in where
    assert "farm/train" in where
    train, _ = load_images("zoo+farm", tmp_path)
    assert train.classes == ["zoo/dog", "farm/dog"]
    assert train.images[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.raises(FsclError, match=r"data set 'attic' was not found"):
        load_images("zoo+attic", tmp_path)
    with pytest.raises(FsclError, match=r"data set 'zoo' is joined to itself in 'zoo\+farm\+zoo'"):
        load_images("zoo+farm+zoo", tmp_path)
    with pytest.raises(FsclError, match=r"digits 1x8x8"):
        load_images("zoo+digits", tmp_path)


def test_a_plus_at_the_end_of_a_name_does_not_join(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / "c++" / part / "code" / "0.png", 5)
    assert load_images("c++", tmp_path)[0].classes == ["code"]
