"""The superclasses of CIFAR-100 (Krizhevsky 2009), and tasks that have them in common but no class."""

from collections.abc import Sequence

import numpy as np

from fscl.errors import FsclError

__all__ = ["SUPERCLASSES", "class_numbers", "superclass_tasks"]

_TABLE = """
aquatic mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food containers: bottle bowl can cup plate
fruit and vegetables: apple mushroom orange pear sweet_pepper
household electrical devices: clock keyboard lamp telephone television
household furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large carnivores: bear leopard lion tiger wolf
large man-made outdoor things: bridge castle house road skyscraper
large natural outdoor scenes: cloud forest mountain plain sea
large omnivores and herbivores: camel cattle chimpanzee elephant kangaroo
medium-sized mammals: fox porcupine possum raccoon skunk
non-insect invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles 1: bicycle bus motorcycle pickup_truck train
vehicles 2: lawn_mower rocket streetcar tank tractor
"""
SUPERCLASSES = {
    name: tuple(members.split()) for name, _, members in (line.partition(":") for line in _TABLE.strip().splitlines())
}


def class_numbers(classes: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where classes stand in a data set, whether it writes their names with blanks or underscores.

    Raises:
        FsclError: a class that it lacks.

    >>> class_numbers(["apple", "maple tree"], ["maple_tree"])
    [1]
    """
    places = {name.replace(" ", "_"): place for place, name in enumerate(classes)}
    absent = [name for name in wanted if name not in places]
    if absent:
        raise FsclError(f"no class {absent[0]!r} among {len(classes)}: {', '.join(list(classes)[:5])}, ...")
    return [places[name] for name in wanted]


def superclass_tasks(superclasses: Sequence[str], seed: int = 0) -> list[tuple[str, list[str]]]:
    """Two tasks of five classes for each pair of superclasses: three classes of one, two of the other, none in common.

    Superclasses are paired at random, so that tasks of a pair share these two and no other theme.

    Returns:
        For each task the name of its pair, and its classes.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(superclasses))
    tasks = []
    for first, second in zip(order[::2].tolist(), order[1::2].tolist(), strict=True):
        left, right = (rng.permutation(SUPERCLASSES[superclasses[i]]).tolist() for i in (first, second))
        name = f"{superclasses[first]} + {superclasses[second]}"
        tasks += [(name, left[:3] + right[:2]), (name, left[3:] + right[2:])]
    return tasks
