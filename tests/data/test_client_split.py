import numpy as np
import pytest

from fscl.data.client_split import split_clients
from fscl.errors import FsclError

CLASSES = "abcdefghij"
TRAIN = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
TEST = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 20))
WAYS = {"classes": {"classes_per_client": 3}, "dirichlet": {"dirichlet": 0.5}, "groups": {"groups": 2}}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def split(clients=8, **options):
    return split_clients(TRAIN, TEST, CLASSES, clients, **options)


@EACH_WAY
def test_no_image_belongs_to_two_clients(way):
    images = np.concatenate(split(**way).train)
    assert len(images) == len(set(images.tolist()))
    assert set(images.tolist()) <= set(range(len(TRAIN)))


@EACH_WAY
def test_all_images_of_used_classes_are_given_out(way):
    images = np.concatenate(split(clients=10, **way).train)
    assert len(images) == len(TRAIN)


@EACH_WAY
def test_equal_seeds_give_equal_clients_and_other_seeds_do_not(way):
    first, again, other = split(seed=1, **way), split(seed=1, **way), split(seed=2, **way)
    assert all(np.array_equal(a, b) for a, b in zip(first.train + first.test, again.train + again.test, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first.train, other.train, strict=True))


@EACH_WAY
def test_a_client_keeps_at_most_so_many_images(way):
    limited, all_images = split(most_images=25, most_test_images=7, **way), split(**way)
    assert [len(own) for own in limited.train] == [min(25, len(own)) for own in all_images.train]
    assert all(set(few.tolist()) <= set(own.tolist()) for few, own in zip(limited.train, all_images.train, strict=True))
    assert max(len(own) for own in limited.test) == 7


@EACH_WAY
def test_validation_images_are_held_out_of_the_client_s_training_images(way):
    held, whole = split(validation=0.2, **way), split(**way)
    for client in range(8):
        train, test = set(held.train[client].tolist()), set(held.test[client].tolist())
        assert not train & test
        assert train | test == set(whole.train[client].tolist())
        assert len(test) == round(0.2 * len(whole.train[client]))


@pytest.mark.parametrize("each", [1, 3, 10])
def test_every_client_has_its_number_of_classes_and_classes_are_used_equally_often(each):
    clients = split(clients=7, classes_per_client=each)
    has = clients.counts(TRAIN) > 0
    assert has.sum(1).tolist() == [each] * 7
    used = has.sum(0)
    assert used.max() - used.min() <= 1
    for c in range(10):  # a class is shared out evenly
        counts = clients.counts(TRAIN)[has[:, c], c]
        assert not len(counts) or counts.max() - counts.min() <= 1


def test_clients_of_a_group_have_the_classes_of_the_group():
    groups = [["a", "b", "c"], ["d", "e"], ["f", "g", "h", "i", "j"]]
    clients = split(clients=7, groups=groups)
    assert clients.groups == (0, 1, 2, 0, 1, 2, 0)
    for client, counts in enumerate(clients.counts(TRAIN)):
        assert {CLASSES[c] for c in np.flatnonzero(counts)} == set(groups[clients.groups[client]])
    assert split(dirichlet=1.0).groups == ()


def test_shares_of_a_class_have_the_moments_of_dirichlet_s_distribution():
    """The mean share is 1/n, and its variance (1/n)(1 - 1/n) / (n * concentration + 1)."""
    labels, clients = np.repeat(np.arange(200), 1000), 5
    shares = split_clients(labels, labels, [str(c) for c in range(200)], clients, dirichlet=0.4, seed=3).counts(labels)
    shares = shares / 1000
    assert np.allclose(shares.sum(0), 1)
    variance = 0.2 * 0.8 / (clients * 0.4 + 1)
    error = np.sqrt(variance / 200)
    assert np.abs(shares.mean(1) - 0.2).max() < 4 * error
    assert shares.var() == pytest.approx(variance, rel=0.1)


def test_the_smaller_the_concentration_the_more_uneven_the_shares():
    spread = [split(dirichlet=d, seed=4).counts(TRAIN).std() for d in (0.2, 1.0, 10.0, 1000.0)]
    assert spread == sorted(spread, reverse=True)


@EACH_WAY
def test_test_images_have_the_proportions_of_the_training_images(way):
    clients = split(**way)
    for client, counts in enumerate(clients.counts(TRAIN)):
        tested = np.bincount(TEST[clients.test[client]], minlength=10)
        assert tested.tolist() == [round(20 * count / counts.max()) for count in counts]
        assert len(set(clients.test[client].tolist())) == len(clients.test[client])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of classes_per_client, dirichlet, groups; given: none"),
        ({"dirichlet": 1.0, "groups": 2}, "given: dirichlet, groups"),
        ({"clients": 0, "groups": 2}, "clients is 0; it must be at least 1"),
        ({"groups": 2, "most_images": 0}, "most_images is 0"),
        ({"groups": 2, "most_test_images": 0}, "most_test_images is 0"),
        ({"groups": 2, "validation": 1.0}, "validation is 1.0; a share"),
        ({"groups": 2, "validation": -0.1}, "validation is -0.1"),
        ({"classes_per_client": 11}, "classes_per_client is 11; there are 10 classes"),
        ({"classes_per_client": 0}, "classes_per_client is 0"),
        ({"dirichlet": 0.0}, "dirichlet is 0.0; a positive number"),
        ({"dirichlet": float("nan")}, "dirichlet is nan"),
        ({"dirichlet": float("inf")}, "dirichlet is inf"),
        ({"clients": 700, "classes_per_client": 1}, r"client \d+ of 700 gets 0 training images; fewer clients"),
        ({"clients": 300, "classes_per_client": 1, "validation": 0.1}, "of 300 gets 2 training images"),
        ({"groups": 3}, "10 classes"),
    ],
)
def test_wrong_arguments_are_refused_with_their_value(options, message):
    with pytest.raises(FsclError, match=message):
        split(**options)


def test_a_concentration_that_leaves_clients_without_images_is_refused():
    labels = np.repeat([0, 1], 60)
    with pytest.raises(
        FsclError, match=r"in 1000 draws with dirichlet 0\.001 some of 12 clients had fewer than 5 images"
    ):
        split_clients(labels, labels, "ab", 12, dirichlet=0.001)


def test_dirichlet_gives_every_client_ten_images():
    assert min(len(own) for seed in range(20) for own in split(dirichlet=0.3, seed=seed).train) >= 10
