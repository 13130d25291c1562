"""Does ``fscl similarity`` find the starts of trained networks in files as other libraries write them?

The packages of two libraries are not among the project's own; ``uv run --with lightning --with transformers python -m
benchmarks.similarity --data DIR --only libraries`` measures all.
"""

import contextlib
import copy
import io
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.similarity.lab import Budget, Images, Task, head_of
from benchmarks.similarity.libraries.networks import LIBRARIES, Lesson, Library
from benchmarks.similarity.libraries.results import Recovered, start_of
from benchmarks.similarity.populations import drawn_tasks
from benchmarks.similarity.units import Context, Unit, spread

__all__ = ["measure", "units"]

STARTS = 3
TASKS, QUICK_TASKS = 4, 2  # that networks of each start are fine-tuned to
QUICK = {"images": 600, "epochs": 1, "first_epochs": 1}


def units(quick: bool) -> list[Unit]:
    """The units of the section."""
    return [
        Unit(f"libraries-{name}", partial(measure, name), Recovered, needs=library.needs)
        for name, library in LIBRARIES.items()
    ]


def measure(name: str, context: Context, seed: int = 0) -> Recovered:
    """Trains networks from several starts, writes them as a library does, and compares the files by the command."""
    library, images = LIBRARIES[name], "fmnist" if context.quick else "cifar100"
    budget = replace(library.budget, **QUICK) if context.quick else library.budget
    tasks = QUICK_TASKS if context.quick else TASKS
    _, task = drawn_tasks(Images(images, context.data), images, 1 + tasks, budget, seed)
    context.work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"libraries-{name}-", dir=context.work) as temporary:
        folder, starts = Path(temporary, "networks"), Path(temporary, "starts")
        folder.mkdir()
        starts.mkdir()
        began = time.perf_counter()
        start_accuracies, accuracies, parameters = _train(library, budget, task, tasks, folder, starts, seed)
        training_seconds = time.perf_counter() - began
        began = time.perf_counter()
        told = _similarity(folder / library.pattern, Path(temporary, "similarity"))
        seconds = time.perf_counter() - began
        megabytes = sum(file.stat().st_size for file in folder.glob("**/*") if file.is_file()) / 1e6
    pairs = list(itertools.combinations(range(len(told["names"])), 2))
    of = [start_of(network) for network in told["names"]]
    return Recovered(
        library=name,
        version=version(library.needs[0]),
        images=images,
        parameters=parameters,
        budget=budget,
        start_accuracies=start_accuracies,
        accuracies=accuracies,
        training_seconds=training_seconds,
        megabytes=megabytes,
        seconds=seconds,
        networks=told["names"],
        groups=[group["members"] for group in told["groups"]],
        within=spread([told["relatedness"][i][j] for i, j in pairs if of[i] == of[j]]),
        across=spread([told["relatedness"][i][j] for i, j in pairs if of[i] != of[j]]),
        explained=min(group["explained_least"] for group in told["groups"]),
        layers=len(told["layers"]["compared"]),
        compared_share=told["layers"]["compared_share"],
        left_out=told["layers"]["left_out"],
        trusted=told["verdict"]["trusted"],
        verdict=told["verdict"]["text"],
    )


def _train(
    library: Library, budget: Budget, task: Callable[[int], Task], tasks: int, folder: Path, starts: Path, seed: int
) -> tuple[list[float], list[float], int]:
    """Trains each start on one task from other random weights, then copies of it with new heads on further tasks.

    Returns:
        The accuracies of the starts and of the copies, and the number of parameters of a network.
    """
    lessons = [_in_colour(task(number)) for number in range(1 + tasks)]
    start_accuracies, accuracies = [], []
    for start in range(STARTS):
        torch.manual_seed(seed + start)
        model = library.make()
        lesson = Lesson(lessons[0], budget.first_epochs, budget.first_rate, budget, seed + start)
        start_accuracies.append(library.learn(model, lesson, starts / f"start{start}"))
        for number in range(1, 1 + tasks):
            tuned = copy.deepcopy(model)
            own_seed = seed + STARTS + start * tasks + number  # so that no two networks see images in one order
            torch.manual_seed(own_seed)
            head_of(tuned).reset_parameters()
            lesson = Lesson(lessons[number], budget.epochs, budget.rate, budget, own_seed)
            accuracies.append(library.learn(tuned, lesson, folder / f"start{start}-task{number}"))
    return start_accuracies, accuracies, sum(parameter.numel() for parameter in model.parameters())


def _in_colour(task: Task) -> Task:
    """Gray images in three equal channels, for which the networks of the libraries are made; others as they are."""
    return replace(task, images=task.images.expand(-1, 3, -1, -1), test_images=task.test_images.expand(-1, 3, -1, -1))


def _similarity(files: Path, out: Path) -> dict[str, Any]:
    """What ``fscl similarity`` writes to ``similarity.json``."""
    from fscl.cli.app import app

    with contextlib.redirect_stdout(io.StringIO()):
        app(["similarity", str(files), "-o", str(out)], standalone_mode=False)
    return json.loads((out / "similarity.json").read_text(encoding="utf-8"))
