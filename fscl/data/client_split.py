"""Divides the images of a data set among clients: by classes, by Dirichlet's distribution, or by known groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fscl.data.class_split import Groups, share_out
from fscl.errors import FsclError

__all__ = ["ClientSplit", "split_clients"]

TRIES = 1000  # draws of Dirichlet's distribution until every client has enough images

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ClientSplit:
    """The images of each client.

    Attributes:
        train: indices of each client's training images. No image belongs to two clients.
        test: indices of each client's test images. Clients that have the same class may share test images.
        groups: the known group of each client, from 0; empty if there are no groups.
        classes: number of classes of the data set.
    """

    train: tuple[Indices, ...]
    test: tuple[Indices, ...]
    groups: tuple[int, ...]
    classes: int

    def __len__(self) -> int:
        return len(self.train)

    def counts(self, labels: NDArray[np.integer]) -> Indices:
        """How many training images of each class every client has, (clients, classes), for these labels."""
        return np.stack([np.bincount(labels[own], minlength=self.classes) for own in self.train])


def split_clients(
    train_labels: NDArray[np.integer],
    test_labels: NDArray[np.integer],
    classes: Sequence[str],
    clients: int,
    *,
    classes_per_client: int | None = None,
    dirichlet: float | None = None,
    groups: Groups | None = None,
    most_images: int | None = None,
    most_test_images: int | None = None,
    validation: float = 0.0,
    seed: int = 0,
) -> ClientSplit:
    """Divides images among clients, in one of three ways. The seed decides everything.

    A client is tested on images of its own classes, in the proportions of its training images: for its most frequent
    class on all test images, for every other class on as large a share as the client's images of this class are of
    those of the most frequent one.

    Args:
        train_labels, test_labels: (N) indices into ``classes``.
        classes: names of the classes.
        clients: number of clients.
        classes_per_client: each client has this number of classes. A class is shared out evenly among the clients that
            have it.
        dirichlet: concentration. The shares of each class that clients get are drawn from Dirichlet's distribution; the
            smaller the number, the more uneven. Drawn again until every client has ten images.
        groups: clients of a group have the classes of the group, shared out evenly. A number of groups that divides the
            classes, or the class names of each group. Client ``i`` is in group ``i`` modulo the number of groups.
        most_images, most_test_images: most images of a client; the others are left out. None keeps all.
        validation: share of each client's training images on which the client is tested in place of the test images.
        seed: decides who gets which classes and images.

    Raises:
        FsclError: not exactly one of the three ways is given, a number is out of range, or a client gets no image.

    References:
        Collins et al. Exploiting shared representations for personalized federated learning. ICML 2021 (classes);
        Hsu, Qi, Brown. Measuring the effects of non-identical data distribution. 2019 (Dirichlet).

    Example:
        >>> labels = np.arange(40) % 4
        >>> split = split_clients(labels, labels, "abcd", 4, groups=2, seed=1)
        >>> split.groups, [len(own) for own in split.train]
        ((0, 1, 0, 1), [10, 10, 10, 10])
    """
    ways = {"classes_per_client": classes_per_client, "dirichlet": dirichlet, "groups": groups}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise FsclError(f"clients are split by exactly one of {', '.join(ways)}; given: {', '.join(chosen) or 'none'}")
    if clients < 1:
        raise FsclError(f"clients is {clients}; it must be at least 1")
    for name, most in (("most_images", most_images), ("most_test_images", most_test_images)):
        if most is not None and most < 1:
            raise FsclError(f"{name} is {most}; it must be at least 1")
    if not 0 <= validation < 1:
        raise FsclError(f"validation is {validation}; a share of at least 0 and below 1 would do")
    numbers = np.random.default_rng([seed, 0])
    number_of_group: tuple[int, ...] = ()
    if dirichlet is not None:
        if not 0 < dirichlet < np.inf:
            raise FsclError(f"dirichlet is {dirichlet}; a positive number would do, such as 0.1")
        own = _by_dirichlet(train_labels, len(classes), clients, dirichlet, numbers)
    else:
        if groups is not None:
            shared = share_out(list(classes), groups, seed)
            number_of_group = tuple(client % len(shared) for client in range(clients))
            holders = [[client for client in range(clients) if c in shared[client % len(shared)].classes]
                       for c in range(len(classes))]  # fmt: skip
        else:
            holders = _holders(len(classes), clients, classes_per_client or 0, numbers)
        own = _evenly(train_labels, holders, clients, numbers)
    train, test = [], []
    for client, indices in enumerate(own):
        kept = numbers.permutation(indices)[:most_images]
        held_out = round(validation * len(kept))
        if not len(kept) - held_out or (validation and not held_out):
            raise FsclError(
                f"client {client} of {clients} gets {len(kept)} training images; fewer clients or more classes for "
                "each of them would do"
            )
        train.append(np.sort(kept[held_out:]))
        if held_out:
            test.append(np.sort(kept[:held_out]))
        else:
            test.append(_tested(train_labels[kept], test_labels, len(classes), most_test_images, numbers))
    return ClientSplit(tuple(train), tuple(test), number_of_group, len(classes))


def _holders(classes: int, clients: int, each: int, numbers: np.random.Generator) -> list[list[int]]:
    """The clients that have each class. Every client has ``each`` classes, and classes are used equally often."""
    if not 1 <= each <= classes:
        raise FsclError(f"classes_per_client is {each}; there are {classes} classes")
    holders: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        # the least used classes first, in a random order: no class is then used twice more often than another
        used = np.array([len(clients_of_class) for clients_of_class in holders])
        for c in np.lexsort((numbers.random(classes), used))[:each]:
            holders[c].append(client)
    return holders


def _evenly(
    labels: NDArray[np.integer], holders: Sequence[Sequence[int]], clients: int, numbers: np.random.Generator
) -> list[Indices]:
    own: list[list[Indices]] = [[] for _ in range(clients)]
    for c, holders_of_class in enumerate(holders):
        images = numbers.permutation(np.flatnonzero(labels == c))
        if holders_of_class:
            for client, share in zip(holders_of_class, np.array_split(images, len(holders_of_class)), strict=True):
                own[client].append(share)
    return [np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in own]


def _by_dirichlet(
    labels: NDArray[np.integer], classes: int, clients: int, concentration: float, numbers: np.random.Generator
) -> list[Indices]:
    least = min(10, len(labels) // (2 * clients))
    of_class = [np.flatnonzero(labels == c) for c in range(classes)]
    for _ in range(TRIES):
        drawn, counts = [], np.zeros(clients, int)
        for images_of_class in of_class:
            images = numbers.permutation(images_of_class)
            shares = numbers.dirichlet(np.full(clients, concentration))
            ends = np.rint(np.cumsum(shares)[:-1] * len(images)).astype(int)
            drawn.append((images, ends))
            counts += np.diff(ends, prepend=0, append=len(images))
        if counts.min() >= least:  # images are divided only now: 1000 divisions among 500 clients take 16 s
            return [np.concatenate(parts) for parts in zip(*(np.split(*pair) for pair in drawn), strict=True)]
    raise FsclError(
        f"in {TRIES} draws with dirichlet {concentration} some of {clients} clients had fewer than {least} images; a "
        "larger concentration or fewer clients would do"
    )


def _tested(
    own_labels: NDArray[np.integer],
    test_labels: NDArray[np.integer],
    classes: int,
    most: int | None,
    numbers: np.random.Generator,
) -> Indices:
    counts = np.bincount(own_labels, minlength=classes)
    chosen = []
    for c in np.flatnonzero(counts):
        images = np.flatnonzero(test_labels == c)
        chosen.append(numbers.permutation(images)[: round(len(images) * counts[c] / counts.max())])
    return np.sort(numbers.permutation(np.concatenate(chosen))[:most])
