"""Divides the classes of a data set among tasks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fscl.errors import FsclError

__all__ = ["Group", "Groups", "share_out"]

Groups = int | Sequence[int] | Sequence[Sequence[str]] | Mapping[str, Sequence[str]]


class Group(NamedTuple):
    """The name of a task, and its classes as indices into the classes of the data set."""

    name: str
    classes: list[int]


def share_out(
    classes: Sequence[str], tasks: Groups, seed: int = 0, shuffle: bool = True, parts: Sequence[int] = ()
) -> list[Group]:
    """The classes of each task, in the order in which they are learned.

    Args:
        classes: names of the classes, in the order of the data set.
        tasks: the number of tasks, each with the same number of classes; or, for a joined data set, the number of such
            tasks for each part, with the tasks of one part after those of another; or the class names of each task; or
            the class names by name of the task. Named classes keep the given order.
        seed: seed of the order of classes. With a number for each part, classes are shuffled within each part.
        shuffle: False keeps the order of the data set.
        parts: for a joined data set, the number of classes of each part.

    Raises:
        FsclError: classes cannot be divided evenly, are unknown, or are in two tasks; or the number of parts differs
            from the number of numbers.

    Example:
        >>> share_out(["ant", "bee", "cat"], [["cat"], ["ant", "bee"]])
        [Group(name='cat', classes=[2]), Group(name='ant, bee', classes=[0, 1])]
        >>> [group.classes for group in share_out("abcdef", [1, 2], shuffle=False, parts=(2, 4))]
        [[0, 1], [2, 3], [4, 5]]
    """
    if isinstance(tasks, int):
        return _even(classes, [tasks], [len(classes)], seed, shuffle)
    if isinstance(tasks, Mapping):
        return _named(classes, list(tasks), list(tasks.values()))
    counts = [count for count in tasks if isinstance(count, int)]
    if not counts:
        lists = [group for group in tasks if not isinstance(group, int)]
        return _named(classes, [", ".join(group) for group in lists], lists)
    sizes = list(parts) or [len(classes)]
    if len(counts) != len(sizes):
        raise FsclError(
            f"tasks is {counts}; give one number for each joined data set (there are {len(sizes)}, of "
            f"{', '.join(map(str, sizes))} classes)"
        )
    return _even(classes, counts, sizes, seed, shuffle)


def _even(classes: Sequence[str], counts: Sequence[int], sizes: Sequence[int], seed: int, shuffle: bool) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)
    groups, first = [], 0
    for count, size in zip(counts, sizes, strict=True):
        if count < 1 or size % count:
            fits = [n for n in range(1, size + 1) if size % n == 0]
            raise FsclError(f"{size} classes cannot be shared out evenly among {count} tasks; numbers that fit: {fits}")
        order = torch.randperm(size, generator=generator) if shuffle else torch.arange(size)
        groups += [(order[i : i + size // count] + first).tolist() for i in range(0, size, size // count)]
        first += size
    return [Group(", ".join(classes[c] for c in group), group) for group in groups]


def _named(classes: Sequence[str], names: Sequence[str], lists: Sequence[Sequence[str]]) -> list[Group]:
    flat = [name for group in lists for name in group]
    if unknown := [name for name in flat if name not in classes]:
        raise FsclError(f"unknown class {unknown[0]!r}; known classes: {', '.join(classes)}")
    if repeated := [name for name in flat if flat.count(name) > 1]:
        raise FsclError(f"class {repeated[0]!r} is in more than one task")
    if empty := [number for number, group in enumerate(lists) if not group]:
        raise FsclError(f"task {empty[0]} has no classes")
    places = {name: place for place, name in enumerate(classes)}
    return [Group(name, [places[c] for c in group]) for name, group in zip(names, lists, strict=True)]
