"""Populations of networks over shared coefficients, in the three ways in which such networks come about."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.similarity.lab import CLASSES, DATA, Budget, Images, Task, blank, learn, start
from benchmarks.similarity.units import Context
from fscl.atoms import AtomBank
from fscl.files import write_text_atomically

__all__ = [
    "REGIMES",
    "TASKS",
    "Population",
    "Regime",
    "below_diagonal",
    "budget_of",
    "drawn_tasks",
    "learned_tasks",
    "networks_of",
    "population",
]  # fmt: skip


@dataclass(frozen=True)
class Regime:
    """How the networks of a population come about."""

    title: str
    short: str  # in headers of tables


REGIMES = {
    "sequence": Regime("tasks learned one after another", "one after another"),
    "first": Regime("every task learned from the first", "each from the first"),
    "snapshots": Regime("snapshots of one task's training", "snapshots"),
}
TASKS = {"fmnist": f"{DATA['fmnist']}, rotated", "cifar100": f"{DATA['cifar100']}, class sets"}
BUDGETS = {
    "fmnist": Budget(images=8000, epochs=2, first_epochs=6),
    "cifar100": Budget(images=5000, epochs=6, first_epochs=15),
}
QUICK = Budget(images=2000, epochs=1, first_epochs=4)
NETWORKS, QUICK_NETWORKS = 28, 12
PROBE, QUICK_PROBE = 1000, 250


@dataclass(frozen=True)
class Population:
    """Networks over shared coefficients, and the images to probe them with."""

    images: str
    architecture: str
    regime: str
    bank: AtomBank
    model: nn.Module  # the network of its first task
    accuracies: list[float]  # of each network on its own task
    probe: Tensor  # test images, as many of each task, (n, channels, 32, 32)
    seconds: float  # of training


def budget_of(images: str, context: Context) -> Budget:
    return QUICK if context.quick else BUDGETS[images]


def drawn_tasks(
    source: Images, images: str, count: int, budget: Budget, seed: int
) -> tuple[list[float], Callable[[int], Task]]:
    """Draws rotations of Fashion-MNIST, the first one upright, or sets of ten classes of CIFAR-100.

    Returns:
        The angles, and a function that makes the task of a number.
    """
    rng = np.random.default_rng(seed)
    turns = [0.0, *rng.uniform(0, 360, count - 1).round().tolist()]
    classes = [rng.permutation(len(source.train.classes))[:CLASSES].tolist() for _ in range(count)]

    def task(number: int) -> Task:
        if images == "fmnist":
            return source.rotated(turns[number], budget, seed + number)
        return source.of_classes(classes[number], budget, seed + number)

    return turns, task


def population(images: str, architecture: str, regime: str, context: Context, seed: int = 0) -> Population:
    """Trains a population, or reads it from the work folder if it was trained before.

    Args:
        images: ``fmnist``, whose tasks are rotations, or ``cifar100``, whose tasks are sets of ten classes.
        architecture: ``plain``, ``vgg`` or ``resnet``.
        regime: one of REGIMES.
        context: where data and the work folder are, and whether to be quick.
        seed: of the tasks, the first weights and the order of images.
    """
    source, budget = Images(images, context.data), budget_of(images, context)
    count = QUICK_NETWORKS if context.quick else NETWORKS
    turns, task = drawn_tasks(source, images, count, budget, seed)
    mode = "quick" if context.quick else "full"
    folder = context.work / "populations" / f"{images}-{architecture}-{regime}-{seed}-{mode}"
    facts = folder / "facts.json"
    if not facts.exists():
        began = time.perf_counter()
        if regime == "snapshots":
            bank, accuracies = _snapshots(architecture, task, count, budget, seed)
        else:
            bank, _, accuracies = learned_tasks(architecture, regime, task, count, budget, seed)
        folder.mkdir(parents=True, exist_ok=True)
        bank.save(folder / "bank.safetensors")
        _write(facts, {"accuracies": accuracies, "seconds": time.perf_counter() - began})
    trained = json.loads(facts.read_text(encoding="utf-8"))
    bank = AtomBank.load(folder / "bank.safetensors")
    model = blank(architecture, source.channels)
    bank.restore(model, 0)
    shown = turns if regime != "snapshots" else turns[:2]
    probe = source.probe(QUICK_PROBE if context.quick else PROBE, seed, shown if images == "fmnist" else (0,))
    return Population(
        images, architecture, regime, bank, model.eval(), trained["accuracies"], probe, trained["seconds"]
    )


def learned_tasks(
    architecture: str, regime: str, task: Callable[[int], Task], count: int, budget: Budget, seed: int
) -> tuple[AtomBank, nn.Module, list[float]]:
    """Learns tasks one after another, each from the network before it or from the first.

    Returns:
        The bank of all tasks, the network of the first, and the accuracy of each network on its own task.
    """
    model, bank, reached = start(architecture, task(0), budget, seed)
    accuracies = [reached]
    for number in range(1, count):
        now = task(number)
        begin_from = 0 if regime == "first" else None
        accuracies.append(learn(model, bank, now, budget, seed + number, begin_from))
        bank.store(model, number, now.name)
    bank.restore(model, 0)
    return bank, model, accuracies


def _snapshots(
    architecture: str, task: Callable[[int], Task], count: int, budget: Budget, seed: int
) -> tuple[AtomBank, list[float]]:
    """The network of the first task, and networks at steps of training on the second, denser at its beginning."""
    model, bank, _ = start(architecture, task(0), budget, seed)
    second = task(1)
    steps = np.unique(np.geomspace(1, budget.steps(second, budget.epochs), 4 * count).round().astype(int))
    kept = steps[np.linspace(0, len(steps) - 1, count - 1).round().astype(int)]

    def keep(step: int) -> None:
        if step in kept:
            bank.store(model, len(bank), f"step {step}")

    return bank, [learn(model, bank, second, budget, seed + 1, after_step=keep)]


def _write(file: Path, values: dict[str, object]) -> None:
    write_text_atomically(file, json.dumps(values, indent=1) + "\n")


def networks_of(bank: AtomBank, model: nn.Module) -> list[nn.Module]:
    """A network for each task of a bank, in evaluation mode."""
    return [bank.network(model, task) for task in bank.tasks]


def below_diagonal(matrix: Tensor) -> Tensor:
    """The entries of a square matrix below its diagonal, row by row: one of each pair."""
    rows, columns = torch.tril_indices(len(matrix), len(matrix), -1)
    return matrix[rows, columns]
