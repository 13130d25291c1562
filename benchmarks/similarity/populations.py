"""Populations of networks over shared coefficients, in the three ways in which such networks come about."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.similarity.contents import Context
from benchmarks.similarity.lab import CLASSES, Budget, Images, Task, bank_of, blank, learn, start
from fscl.atoms import AtomBank
from fscl.files import write_text_atomically

__all__ = ["REGIMES", "Population", "budget_of", "drawn_tasks", "networks_of", "population", "tensors_of"]

REGIMES = {
    "sequence": "tasks learned one after another",
    "first": "every task learned from the first",
    "snapshots": "snapshots of one task's training",
}
BUDGETS = {
    "fmnist": Budget(images=8000, epochs=2, first_epochs=6),
    "cifar100": Budget(images=5000, epochs=6, first_epochs=15),
}
QUICK = Budget(images=2000, epochs=1, first_epochs=4)
NETWORKS, QUICK_NETWORKS = 28, 12
PROBE, QUICK_PROBE = 1000, 250


@dataclass(frozen=True)
class Population:
    """Networks over shared coefficients, and what to probe them with."""

    images: str
    architecture: str
    regime: str
    bank: AtomBank
    model: nn.Module  # the network of its first task
    accuracies: list[float]  # of each network on its own task
    probe: Tensor  # test images of all tasks alike, (n, channels, 32, 32)
    seconds: float  # what training took


def budget_of(images: str, context: Context) -> Budget:
    return QUICK if context.quick else BUDGETS[images]


def drawn_tasks(
    source: Images, images: str, count: int, budget: Budget, seed: int
) -> tuple[list[float], Callable[[int], Task]]:
    """Angles, the first one upright, and what gives a task by its number: a rotation, or a random set of classes."""
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

    Rotations of Fashion-MNIST by random angles, the first one upright; random sets of ten classes of CIFAR-100.
    """
    import time

    source, budget = Images(images, context.data), budget_of(images, context)
    count = QUICK_NETWORKS if context.quick else NETWORKS
    turns, task = drawn_tasks(source, images, count, budget, seed)
    kind = "quick" if context.quick else "full"
    folder = context.work / "populations" / f"{images}-{architecture}-{regime}-{seed}-{kind}"
    facts = folder / "facts.json"
    if not facts.exists():
        began = time.perf_counter()
        bank, reached = _trained(architecture, regime, budget, seed, count, task)
        folder.mkdir(parents=True, exist_ok=True)
        bank.save(folder / "bank.safetensors")
        _write(facts, {"accuracies": reached, "seconds": time.perf_counter() - began})
    found = json.loads(facts.read_text(encoding="utf-8"))
    bank = AtomBank.load(folder / "bank.safetensors")
    model = blank(architecture, source.channels)
    bank.restore(model, 0)
    used = turns if regime != "snapshots" else turns[:2]
    probe = source.probe(QUICK_PROBE if context.quick else PROBE, seed, used if images == "fmnist" else (0,))
    return Population(images, architecture, regime, bank, model.eval(), found["accuracies"], probe, found["seconds"])


def _trained(
    architecture: str, regime: str, budget: Budget, seed: int, count: int, task: Callable[[int], Task]
) -> tuple[AtomBank, list[float]]:
    model, reached = start(architecture, task(0), budget, seed)
    first = copy.deepcopy(model.state_dict())
    states, accuracies = [(task(0).name, first)], [reached]
    if regime == "snapshots":
        steps = len(task(1).images) // budget.batch * budget.epochs
        marks = np.unique(np.geomspace(1, steps, 4 * count).round().astype(int))
        marks = marks[np.linspace(0, len(marks) - 1, count - 1).round().astype(int)]

        def keep(step: int, _: int) -> None:
            if step in marks:
                states.append((f"step {step}", copy.deepcopy(model.state_dict())))

        accuracies = [learn(model, task(1), budget, seed + 1, keep)]
    else:
        for number in range(1, count):
            if regime == "first":
                model.load_state_dict(first)
            now = task(number)
            accuracies.append(learn(model, now, budget, seed + number))
            states.append((now.name, copy.deepcopy(model.state_dict())))
    model.load_state_dict(first)
    return bank_of(model, states), accuracies


def _write(file: Path, values: dict[str, object]) -> None:
    write_text_atomically(file, json.dumps(values, indent=1) + "\n")


def networks_of(bank: AtomBank, model: nn.Module) -> list[nn.Module]:
    """A network for each task of a bank, for evaluation."""
    networks = [copy.deepcopy(model).eval() for _ in bank.tasks]
    for network, task in zip(networks, bank.tasks, strict=True):
        bank.restore(network, task)
    return networks


def tensors_of(matrix: Tensor) -> list[float]:
    """The entries below the diagonal, row by row, to six digits: what a page draws."""
    rows, columns = torch.tril_indices(len(matrix), len(matrix), -1)
    return [round(float(value), 6) for value in matrix[rows, columns]]
