"""Tests that a similarity must pass to be believed, with CKA and CCA put to the same tests.

After Ding, Denain, Steinhardt (2021), Grounding representation similarity with statistical testing: a similarity should
see what matters for the behaviour of a network, and should ignore the rest.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.similarity.grounding.networks import (
    FIRST_SUPERCLASSES,
    Origin,
    networks,
    noisy,
    origin,
    probe_of,
    similarities,
    similarities_to_first,
    transfer_accuracy,
)
from benchmarks.similarity.grounding.results import Damage, Groups, Transfer
from benchmarks.similarity.grounding.scores import (
    damage_scores,
    group_scores,
    less_own_mean,
    matrix_scores,
    transfer_scores,
)
from benchmarks.similarity.grounding.statistics import distances
from benchmarks.similarity.grounding.superclasses import SUPERCLASSES, class_numbers, superclass_tasks
from benchmarks.similarity.lab import Task, accuracy, bank_of
from benchmarks.similarity.units import Context, Unit

__all__ = ["class_windows", "damage", "damaged", "label_noise", "rotations", "seeds", "superclasses", "units"]

Array = NDArray[Any]
WINDOWS = 12
REPEATS = 2  # first networks, each with all tasks learned from it
# the whole circle; and a fan without 0 and 90 degrees, the only angles at which pixels are not interpolated
ANGLES = {"circle": tuple(range(0, 360, 30)), "fan": tuple(range(12, 84, 6))}


def units(quick: bool) -> list[Unit]:
    """The units of the section."""
    sources = ("fmnist",) if quick else ("fmnist", "cifar100")
    all_units = [
        *(Unit(f"grounding-noise-{images}", partial(label_noise, images), Groups) for images in sources),
        *(Unit(f"grounding-damage-{images}", partial(damage, images), Damage) for images in sources),
        *(Unit(f"grounding-seeds-{images}", partial(seeds, images), Groups) for images in sources),
        Unit("grounding-fan-fmnist", partial(rotations, "fan"), Transfer),
    ]
    if not quick:
        all_units += [
            Unit("grounding-circle-fmnist", partial(rotations, "circle"), Transfer),
            Unit("grounding-windows-cifar100", class_windows, Transfer),
            Unit("grounding-superclasses-cifar100", superclasses, Transfer),
        ]
    return all_units


def label_noise(images: str, context: Context) -> Groups:
    """Networks of one task that differ in how many labels are wrong: does a similarity tell the levels apart?"""
    first = origin(images, context)
    levels, repeats = ((0.0, 0.4, 0.8), 2) if context.quick else ((0.0, 0.2, 0.4, 0.6, 0.8), 5)
    drawn = [(level, 100 * place + repeat) for place, level in enumerate(levels) for repeat in range(1, repeats + 1)]
    tasks = [noisy(_further_tasks(first)[0](seed), level, seed) for level, seed in drawn]
    return _groups(first, tasks, [seed for _, seed in drawn], "noise")


def seeds(images: str, context: Context) -> Groups:
    """Several networks of each of several tasks, which differ in images, their order and the head's first values."""
    first = origin(images, context)
    count, repeats = (3, 2) if context.quick else (5, 4)
    makers = _further_tasks(first)[:count]
    drawn = [(maker, 100 * place + repeat) for place, maker in enumerate(makers) for repeat in range(1, repeats + 1)]
    return _groups(first, [maker(seed) for maker, seed in drawn], [seed for _, seed in drawn], "seeds")


def damage(images: str, context: Context) -> Damage:
    """Noise of growing size on the atoms of one trained network, in all layers or in one: is lost accuracy seen?"""
    first = origin(images, context)
    task = _further_tasks(first)[0](1)
    bank, reached = networks(first, [task], [1])
    whole = copy.deepcopy(first.model)
    bank.restore(whole, 0)
    count, draws = (6, 1) if context.quick else (12, 3)
    ranges = {"all layers": (0.02, 1.0), **dict.fromkeys(bank.layers, (0.1, 5.0))}
    where: list[str] = []
    size: list[float] = []
    lost: list[float] = []
    columns: dict[str, list[float]] = {}  # of similarity
    probe = probe_of([task], first.probed)
    for place, layer in enumerate(list(ranges)[: 3 if context.quick else None]):
        sizes = np.repeat(np.geomspace(*ranges[layer], count), draws).tolist()
        states = [("undamaged", whole.state_dict())]
        for number, of_noise in enumerate(sizes):
            layers = bank.layers if layer == "all layers" else [layer]
            states.append((f"{of_noise:.2g}", damaged(whole.state_dict(), layers, of_noise, 1000 * place + number)))
        hurt = bank_of(whole, states)
        for name, row in similarities_to_first(first, hurt, probe).items():
            columns.setdefault(name, []).extend(row.tolist())
        network = copy.deepcopy(whole)
        for label in hurt.tasks[1:]:
            hurt.restore(network, label)
            lost.append(reached[0] - accuracy(network, task.test_images, task.test_labels))
        where += [layer] * len(sizes)
        size += sizes
    columns["size"] = [-of_noise for of_noise in size]  # the trivial answer: how much noise was added
    similarity = {name: np.array(column) for name, column in columns.items()}
    return Damage(
        **_setting(first, "damage", 1),
        accuracy=reached,
        draws=draws,
        where=where,
        size=size,
        lost=lost,
        similarity=similarity,
        scores=damage_scores(similarity, where, size, lost),
    )


def damaged(state: dict[str, torch.Tensor], layers: Sequence[str], size: float, seed: int) -> dict[str, torch.Tensor]:
    """The state with normal noise on the atoms of some layers, ``size`` times their root mean square in size."""
    generator = torch.Generator().manual_seed(seed)
    changed = dict(state)
    for layer in layers:
        atoms = state[f"{layer}.atoms"]
        noise = torch.randn(atoms.shape, generator=generator)
        changed[f"{layer}.atoms"] = atoms + size * atoms.square().mean().sqrt() * noise
    return changed


def rotations(shape: str, context: Context) -> Transfer:
    """One task at twelve angles: is similarity a matter of the angle between, and of how well features transfer?"""
    angles = ANGLES[shape]
    runs = []
    for repeat in range(1 if context.quick else REPEATS):
        first = origin("fmnist", context, repeat)
        drawn = [100 * repeat + place + 1 for place in range(len(angles))]
        tasks = [first.source.rotated(angle, first.budget, seed) for angle, seed in zip(angles, drawn, strict=True)]
        runs.append((first, tasks, drawn))
    truths = {"angle": -distances(angles)}
    if shape == "circle":  # upright and upside down may be alike
        truths["line"] = -distances(angles, 180)
    return _transfer(runs, truths, context, shape, angles=list(angles))


def class_windows(context: Context) -> Transfer:
    """Tasks of ten neighbours in one list of classes: neighbours in the list share up to nine classes."""
    runs = []
    for repeat in range(1 if context.quick else REPEATS):
        first = origin("cifar100", context, repeat)
        pool = _further_classes(first)
        tasks = [first.source.of_classes(pool[k : k + 10], first.budget, 100 * repeat + k) for k in range(WINDOWS)]
        runs.append((first, tasks, [100 * repeat + k + 1 for k in range(WINDOWS)]))
    shared = np.array([[max(0, 10 - abs(i - j)) for j in range(WINDOWS)] for i in range(WINDOWS)], dtype=float)
    return _transfer(runs, {"shared": shared}, context, "windows")


def superclasses(context: Context) -> Transfer:
    """Pairs of tasks with the same two superclasses and not one class in common: are they closer than other pairs?"""
    first = origin("cifar100", context)
    pairs = superclass_tasks([name for name in SUPERCLASSES if name not in FIRST_SUPERCLASSES])
    known = first.source.train.classes
    tasks = [
        first.source.of_classes(class_numbers(known, classes), first.budget, place, name)
        for place, (name, classes) in enumerate(pairs)
    ]
    return _transfer([(first, tasks, list(range(1, len(tasks) + 1)))], {}, context, "superclasses")


def _further_tasks(first: Origin) -> list[Callable[[int], Task]]:
    """Makers of tasks, from a seed, that are not the first: turns 5 to 75 degrees apart, or sets of other classes."""
    if first.source.name == "fmnist":
        return [partial(_rotated, first, angle) for angle in (90, 50, 110, 120, 125)]
    pool = _further_classes(first)
    sets = [pool[start : start + 10] for start in range(0, 50, 10)]
    return [partial(_of_classes, first, classes, f"set {k + 1}") for k, classes in enumerate(sets)]


def _rotated(first: Origin, angle: float, seed: int) -> Task:
    return first.source.rotated(angle, first.budget, seed)


def _of_classes(first: Origin, classes: list[int], name: str, seed: int) -> Task:
    return first.source.of_classes(classes, first.budget, seed, name)


def _further_classes(first: Origin) -> list[int]:
    known = first.source.train.classes
    used = class_numbers(known, [name for group in FIRST_SUPERCLASSES for name in SUPERCLASSES[group]])
    return [c for c in np.random.default_rng(0).permutation(len(known)).tolist() if c not in used]


def _setting(first: Origin, kind: str, first_networks: int) -> dict[str, Any]:
    """The fields of :class:`benchmarks.similarity.grounding.results.Grounding`."""
    return {
        "kind": kind,
        "images": first.source.name,
        "budget": first.budget,
        "first_images": first.shown,
        "first_accuracy": first.accuracy,
        "first_networks": first_networks,
        "recalled": len(first.recalled),
        "probed": first.probed,
        "positions": first.positions,
    }


def _groups(first: Origin, tasks: Sequence[Task], drawn: Sequence[int], kind: str) -> Groups:
    bank, reached = networks(first, tasks, drawn)
    similarity = similarities(first, bank, probe_of(tasks, first.probed))
    if kind == "noise":  # the trivial answer: networks of like accuracy
        similarity["accuracy"] = -np.abs(np.subtract.outer(reached, reached))
    names = [task.name for task in tasks]
    scores = group_scores(similarity, names)
    return Groups(**_setting(first, kind, 1), groups=names, accuracy=reached, similarity=similarity, scores=scores)


def _transfer(
    runs: Sequence[tuple[Origin, list[Task], list[int]]],
    truths: Mapping[str, Array],
    context: Context,
    kind: str,
    angles: list[int] | None = None,
) -> Transfer:
    """What is known of tasks, and how well features of one serve another, against similarity in each run."""
    stacks: dict[str, list[Array]] = {}
    accuracies, transfers = [], []
    per_class, tested = (10, 100) if context.quick else (50, 1000)
    for first, tasks, drawn in runs:
        bank, reached = networks(first, tasks, drawn)
        for name, matrix in similarities(first, bank, probe_of(tasks, first.probed)).items():
            stacks.setdefault(name, []).append(matrix)
        transfers.append(transfer_accuracy(first, bank, tasks, per_class, tested))
        accuracies.append(reached)
    similarity = {name: np.stack(matrices) for name, matrices in stacks.items()}
    transfer = np.stack(transfers)
    groups = [task.name for task in runs[0][1]]
    resamples = 999 if context.quick else 9999
    # transfer is scored against the truths as well: how much of them there is in what networks do
    against_truths = similarity | {"transfer": less_own_mean(transfer)}
    more: dict[str, Any] = {name: matrix_scores(against_truths, truth, resamples) for name, truth in truths.items()}
    if kind == "superclasses":
        more |= dict(group_scores({name: stack[0] for name, stack in similarity.items()}, groups, together=True))
    return Transfer(
        **_setting(runs[0][0], kind, len(runs)),
        groups=groups,
        per_class=per_class,
        accuracy=accuracies,
        similarity=similarity,
        truths=dict(truths),
        transfer=transfer,
        scores=transfer_scores(similarity, transfer, resamples, **more),
        angles=angles,
    )
