"""Streams of the same images: rotations by known angles, and permutations of pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from fscl.continual.domains import permuted, permuted_stream, pixel_orders, rotated, rotated_stream
from fscl.continual.loader import samples_behind
from fscl.data.datasets import load_images
from fscl.data.images import ImageSet
from fscl.data.places import find_data
from fscl.errors import FsclError


def noise(count: int = 6, channels: int = 3, height: int = 9, width: int = 9) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)


def some(count: int = 40, classes: int = 4, **shape: int) -> tuple[ImageSet, ImageSet]:
    names = [f"class {c}" for c in range(classes)]
    return tuple(ImageSet(noise(n, **shape), torch.arange(n) % classes, names) for n in (count, count // 2))


def images_of(experience) -> torch.Tensor:
    return samples_behind(experience.dataset)[0][0].images


def labels_of(experience) -> list[int]:
    return [int(label) for label in experience.dataset.targets]


@pytest.mark.parametrize("turns", [0, 360, -720])
def test_a_whole_turn_returns_the_images_unchanged(turns: int) -> None:
    images = noise()
    assert torch.equal(rotated(images, turns), images)


@pytest.mark.parametrize(("degrees", "quarters"), [(90, 1), (180, 2), (270, 3), (-90, 3), (450, 1)])
@pytest.mark.parametrize("side", [8, 9])
def test_a_quarter_turn_equals_rot90(degrees: int, quarters: int, side: int) -> None:
    images = noise(height=side, width=side)
    assert torch.equal(rotated(images, degrees), torch.rot90(images, quarters, (2, 3)))


@pytest.mark.parametrize("degrees", [30.0, 36.0, 137.5])
def test_a_rotation_equals_those_of_scipy_and_pillow(degrees: float) -> None:
    """Compared away from the border, where the libraries differ, on a picture without sharp edges."""
    grid = np.linspace(-3, 3, 33)
    smooth = (np.sin(grid)[:, None] * np.cos(2 * grid) * 100 + 128).astype(np.uint8)
    ours = rotated(torch.from_numpy(smooth)[None, None], degrees)[0, 0].numpy().astype(float)
    inside = np.hypot(*np.mgrid[-16:17, -16:17]) < 14
    theirs = ndimage.rotate(smooth.astype(float), degrees, reshape=False, order=1)
    assert np.abs(ours - theirs)[inside].max() <= 1
    pillow = np.asarray(Image.fromarray(smooth).rotate(degrees, Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(ours - pillow)[inside].max() <= 3
    assert np.abs(ours - smooth)[inside].max() > 20


def test_images_are_rotated_one_by_one_and_corners_are_black() -> None:
    images = noise(5000, channels=1, height=4, width=4)  # more than are rotated at a time
    turned = rotated(images, 45)
    assert turned.dtype == torch.uint8
    for i in (0, 4095, 4096, 4999):
        assert torch.equal(turned[i : i + 1], rotated(images[i : i + 1], 45))
    white = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    corners = rotated(white, 45)[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert int(corners.max()) == 0
    assert bool((white == 255).all())  # it is left as it was


def test_a_permutation_moves_whole_pixels_and_is_undone_by_its_inverse() -> None:
    images = noise(height=3, width=5)
    order = torch.randperm(15)
    moved = permuted(images, order)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    assert torch.equal(permuted(moved, order.argsort()), images)
    colours = [{tuple(p) for p in x[0].flatten(1).T.tolist()} for x in (images, moved)]
    assert colours[0] == colours[1]  # red, green and blue of a pixel stay together
    for i, j in enumerate(order.tolist()):
        assert torch.equal(moved[:, :, i // 5, i % 5], images[:, :, j // 5, j % 5])


def test_pixel_orders_are_permutations_that_follow_the_seed() -> None:
    orders = pixel_orders(4, 30, seed=3)
    assert torch.equal(orders[0], torch.arange(30))
    for order in orders:
        assert order.sort().values.tolist() == list(range(30))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    again, more, other = pixel_orders(4, 30, seed=3), pixel_orders(9, 30, seed=3), pixel_orders(4, 30, seed=4)
    for i in range(4):
        assert torch.equal(again[i], orders[i])
        assert torch.equal(more[i], orders[i])
        assert torch.equal(other[i], orders[i]) == (i == 0)


@pytest.mark.parametrize("scenario", ["domain", "task"])
def test_every_task_has_the_same_images_up_to_its_rotation(scenario: str) -> None:
    train, test = some()
    stream = rotated_stream(train, test, [0, 90, -180], scenario=scenario)
    assert stream.names == ["rotated 0°", "rotated 90°", "rotated -180°"]
    assert stream.tasks == [train.classes] * 3
    assert stream.scenario == scenario
    for data, experiences in ((train, stream.train_stream), (test, stream.test_stream)):
        for t, experience in enumerate(experiences):
            assert torch.equal(torch.rot90(images_of(experience), -t, (2, 3)), data.images)
            assert labels_of(experience) == data.labels.tolist()
            assert list(experience.task_labels) == [t if scenario == "task" else 0]
            assert experience.classes_in_this_experience == [0, 1, 2, 3]
            assert experience.task_name == stream.names[t]


def test_a_number_of_rotations_gives_evenly_spaced_angles() -> None:
    by_number, by_angle = (rotated_stream(*some(), rotations) for rotations in (5, [0, 72, 144, 216, 288]))
    assert by_number.names == by_angle.names
    assert len(rotated_stream(*some(), 1).train_stream) == 1


@pytest.mark.parametrize("scenario", ["domain", "task"])
def test_training_and_test_images_of_a_task_have_the_same_permutation(scenario: str) -> None:
    train, test = some(height=3, width=4)
    stream = permuted_stream(train, test, 4, seed=6, scenario=scenario)
    assert torch.equal(images_of(stream.train_stream[0]), train.images)
    assert torch.equal(images_of(stream.test_stream[0]), test.images)
    for t in range(4):
        # where each of the twelve pixels went, found from the images
        before, after = (
            x.flatten(2).permute(2, 0, 1).flatten(1) for x in (train.images, images_of(stream.train_stream[t]))
        )
        order = [int((before == pixel).all(1).nonzero()) for pixel in after]
        assert sorted(order) == list(range(12))
        assert (order == list(range(12))) == (t == 0)
        moved = images_of(stream.test_stream[t])
        assert torch.equal(moved.flatten(2)[:, :, torch.tensor(order).argsort()].view_as(moved), test.images)
        assert list(stream.test_stream[t].task_labels) == [t if scenario == "task" else 0]


def test_permuted_streams_are_equal_only_for_equal_seeds() -> None:
    data = some()
    streams = [permuted_stream(*data, 3, seed=seed) for seed in (0, 0, 1)]
    for t in range(3):
        one, same, other = (images_of(stream.train_stream[t]) for stream in streams)
        assert torch.equal(one, same)
        assert torch.equal(one, other) == (t == 0)


@pytest.mark.parametrize("make", [rotated_stream, permuted_stream])
def test_the_same_images_are_held_out_in_every_task(make) -> None:
    """Otherwise an image could be trained on at one angle and tested at another."""
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    images[:, :, 1:3, 1:3] += 100  # a frame whose grey, and a middle whose grey, number the image
    train = ImageSet(images, torch.arange(40) % 4, ["a", "b", "c", "d"])
    _, test = some(channels=1, height=4, width=4)
    stream = make(train, ImageSet(test.images, test.labels, train.classes), 4, validation=0.25, seed=2)
    held = [{int(image.max()) - 100 for image in images_of(e)} for e in stream.test_stream]
    kept = [{int(image.max()) - 100 for image in images_of(e)} for e in stream.train_stream]
    assert all(h == held[0] for h in held)
    assert all(k == kept[0] for k in kept)
    assert held[0] | kept[0] == set(range(40))
    assert not held[0] & kept[0]
    assert np.bincount(labels_of(stream.test_stream[1])).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (rotated_stream, {"rotations": []}, r"rotations is \[\]; give at least one angle in degrees"),
        (rotated_stream, {"rotations": 0}, r"rotations is 0; give at least one"),
        (rotated_stream, {"rotations": [0, math.nan]}, r"rotations is \[0, nan\]; give"),
        (rotated_stream, {"rotations": [0, 90, 360]}, r"rotations is \[0, 90, 360\]; two of these angles are equal"),
        (
            rotated_stream,
            {"rotations": 2, "scenario": "class"},
            r"scenario is 'class', but all rotations have the same",
        ),
        (rotated_stream, {"rotations": 2, "scenario": "tasks"}, r"scenario is 'tasks'; known: task, domain, class"),
        (rotated_stream, {"rotations": 2, "validation": 1.5}, r"validation is 1.5; it is a share"),
        (permuted_stream, {"permutations": 0}, r"permutations is 0; it must be at least 1"),
        (permuted_stream, {"permutations": 2, "scenario": "class"}, r"but all permutations have .*'domain' or 'task'"),
    ],
)
def test_arguments_of_domain_streams_that_do_not_fit_are_refused(make, options: dict, says: str) -> None:
    with pytest.raises(FsclError, match=says):
        make(*some(), **options)


def test_training_and_test_images_must_have_the_same_classes() -> None:
    train, test = some()
    with pytest.raises(FsclError, match="training and test images have different classes"):
        rotated_stream(train, ImageSet(test.images, test.labels, ["x", *test.classes[1:]]), 2)


@pytest.mark.skipif(find_data("fmnist") is None, reason="Fashion-MNIST is not installed")
def test_rotations_of_fashion_mnist_equal_rot90() -> None:
    train, test = (ImageSet(s.images[:200], s.labels[:200], s.classes) for s in load_images("fmnist", download=False))
    stream = rotated_stream(train, test, 4)
    for t, experience in enumerate(stream.test_stream):
        assert torch.equal(torch.rot90(images_of(experience), -t, (2, 3)), test.images)
