"""The networks on which similarities are tested, all learned from one first task's network, and their similarities."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.similarity.grounding.superclasses import SUPERCLASSES, class_numbers
from benchmarks.similarity.lab import Budget, Images, Task, bank_of, head_of, learn, start
from benchmarks.similarity.measures import COMPARED, VARIANTS
from benchmarks.similarity.units import Context
from fscl.atoms import AtomBank
from fscl.compare import READINGS, moment_similarity, response_features, tangent_similarity
from fscl.optimization import channels_last
from fscl.similarity import dead_leaves, probing_matrix, recall_images, similarity_matrix

__all__ = [
    "FIRST_SUPERCLASSES",
    "Origin",
    "networks",
    "noisy",
    "origin",
    "probe_of",
    "similarities",
    "similarities_to_first",
    "transfer_accuracy",
]

Array = NDArray[Any]
Features = dict[str, list[Tensor]]
BUDGETS = {
    "fmnist": Budget(images=4000, epochs=4, first_epochs=8),
    "cifar100": Budget(images=3000, epochs=5, first_epochs=12),
}
FIRST_IMAGES = 6000
QUICK = Budget(images=1000, epochs=2, first_epochs=3)
FIRST_SUPERCLASSES = ("vehicles 1", "vehicles 2")  # their ten classes are the first task of CIFAR-100


@dataclass(frozen=True)
class Origin:
    """The network of a first task, from which all further ones are learned, and images recalled from it."""

    source: Images
    budget: Budget
    model: nn.Module
    shown: int  # training images
    accuracy: float
    recalled: Tensor
    probed: int  # real images that the rivals see
    positions: int  # in each image, at which features are compared


@lru_cache(maxsize=3)
def origin(images: str, context: Context, seed: int = 0) -> Origin:
    """The origin for some images, trained once in each process."""
    source = Images(images, context.data)
    budget = QUICK if context.quick else BUDGETS[images]
    longer = replace(budget, images=max(budget.images, 2000 if context.quick else FIRST_IMAGES))
    if images == "fmnist":
        task = source.rotated(0, longer, seed)
    else:
        names = [name for group in FIRST_SUPERCLASSES for name in SUPERCLASSES[group]]
        task = source.of_classes(class_numbers(source.train.classes, names), longer, seed)
    model, _, reached = start("plain", task, longer, seed)
    count, steps = (16, 60) if context.quick else (64, 200)
    channels, height, width = task.images.shape[1:]
    recalled = recall_images(model, dead_leaves(count, (channels, height, width)), steps)
    probed, positions = (200, 8) if context.quick else (500, 16)
    return Origin(source, budget, model.eval(), len(task.images), reached, recalled, probed, positions)


def networks(first: Origin, tasks: Sequence[Task], seeds: Sequence[int]) -> tuple[AtomBank, list[float]]:
    """Each task learned from the first one's network: the bank, and each network's accuracy on its own task."""
    bank, accuracies = AtomBank(first.model), []
    for place, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
        network = copy.deepcopy(first.model)
        accuracies.append(learn(network, bank, task, first.budget, seed))
        bank.store(network, place, task.name)
    return bank, accuracies


def noisy(task: Task, share: float, seed: int) -> Task:
    """The task with a share of its training labels drawn anew from all classes, so that some stay as they were."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(task.labels), generator=generator)[: round(share * len(task.labels))]
    labels = task.labels.clone()
    labels[drawn] = torch.randint(int(task.labels.max()) + 1, (len(drawn),), generator=generator)
    return replace(task, name=f"{100 * share:.0f} %", labels=labels)


def probe_of(tasks: Sequence[Task], count: int) -> Tensor:
    """Test images, as many of each task, so that the probe favours no network."""
    most = -(-count // len(tasks))
    return torch.cat([task.test_images[:most] for task in tasks])[:count]


def similarities(first: Origin, bank: AtomBank, probe: Tensor) -> dict[str, Array]:
    """All pairs of networks by every measure and variant, (T, T) each; those of features are means over layers."""
    model, positions = first.model, first.positions
    real, recalled = _features(first, bank, probe), _features(first, bank, first.recalled)
    before = bank_of(model, [("first", model.state_dict())])
    since = {
        name: {
            layer: [value - at_first[layer][0] for value in values]
            for layer, values in features.items()
        }
        for name, features, at_first in (
            ("real", real, _features(first, before, probe)),
            ("recalled", recalled, _features(first, before, first.recalled)),
        )
    }  # fmt: skip
    moved = {layer: bank.stack(layer) - before.stack(layer) for layer in bank.layers}

    def compared(features: Features, measure: str) -> Tensor:
        return torch.stack([probing_matrix(values, measure) for values in features.values()]).mean(0)

    matrices = {
        **{f"atoms_{how}": bank.similarity("cosine", how) for how in ("depth", "mean", "product")},
        "atoms_change": similarity_matrix(moved, "cosine", "mean"),
        "moments": moment_similarity(bank, model, _shape(probe)),
        "tangent": tangent_similarity(bank, model, first.recalled, positions=positions),
        **_by_features(real, recalled, compared),
        "responses_change": compared(since["recalled"], "aligned_cosine"),
        "cka_change": compared(since["real"], "linear_cka"),
    }
    return _ordered(matrices)


def similarities_to_first(first: Origin, bank: AtomBank, probe: Tensor) -> dict[str, Array]:
    """The first rows of :func:`similarities` without the diagonal, (T - 1), at the cost of these alone."""
    real, recalled = _features(first, bank, probe), _features(first, bank, first.recalled)

    def compared(features: Features, measure: str) -> Tensor:
        rows = [[probing_matrix([values[0], value], measure)[0, 1] for value in values] for values in features.values()]
        return torch.tensor(rows).mean(0)

    tangent = tangent_similarity(bank, first.model, first.recalled, positions=first.positions)
    first_rows = {
        **{f"atoms_{how}": bank.similarity("cosine", how)[0] for how in ("depth", "mean", "product")},
        "moments": moment_similarity(bank, first.model, _shape(probe))[0],
        "tangent": tangent[0],
        **_by_features(real, recalled, compared),
    }
    return {name: row[1:] for name, row in _ordered(first_rows).items()}


def _shape(images: Tensor) -> tuple[int, int, int]:
    return images.shape[1], images.shape[2], images.shape[3]


def _features(first: Origin, bank: AtomBank, images: Tensor) -> Features:
    return response_features(bank, first.model, images, positions=first.positions)


def _by_features(real: Features, recalled: Features, compared: Callable[[Features, str], Tensor]) -> dict[str, Tensor]:
    readings = {how: compared(recalled, how) for how in READINGS}
    return {
        "responses": readings["aligned_cosine"],
        "readings": torch.stack(list(readings.values())).mean(0),
        "cka": compared(real, "linear_cka"),
        "cca": compared(real, "mean_cca"),
        "responses_real": compared(real, "aligned_cosine"),
        "cka_recalled": readings["linear_cka"],
    }


def _ordered(matrices: dict[str, Tensor]) -> dict[str, Array]:
    matrices["atoms"] = matrices.pop("atoms_depth")
    return {name: matrices[name].double().numpy() for name in (*COMPARED, *VARIANTS) if name in matrices}


@torch.no_grad()
def transfer_accuracy(first: Origin, bank: AtomBank, tasks: Sequence[Task], per_class: int, tested: int) -> Array:
    """Accuracy on task i of the features of network j, (T, T): nearest class mean, nothing is trained.

    As :func:`fscl.continual.class_mean_accuracy`, which takes data sets of a stream. Features are what enters the head;
    an image gets the class whose mean of normalised features over training images has the largest cosine with its own.
    """
    images = []  # of each task: training images for class means and test images, both with labels
    for task in tasks:
        order = torch.cat([(task.labels == c).nonzero().flatten()[:per_class] for c in task.labels.unique()])
        images.append((task.images[order], task.labels[order], task.test_images[:tested], task.test_labels[:tested]))
    network = copy.deepcopy(first.model).eval()
    inputs_of_head: list[Tensor] = []
    head_of(network).register_forward_pre_hook(lambda _, inputs: inputs_of_head.append(inputs[0].flatten(1).float()))

    def features(pictures: Tensor) -> Tensor:
        inputs_of_head.clear()
        for part in pictures.split(500):
            network(channels_last(part))
        return F.normalize(torch.cat(inputs_of_head), dim=1)

    accuracy = np.zeros((len(tasks), len(tasks)))
    for j, label in enumerate(bank.tasks):
        bank.restore(network, label)
        for i, (known, labels, unknown, true_labels) in enumerate(images):
            of_known = features(known)
            means = F.normalize(torch.stack([of_known[labels == c].mean(0) for c in labels.unique()]), dim=1)
            guesses = labels.unique()[(features(unknown) @ means.T).argmax(1)]
            accuracy[i, j] = float((guesses == true_labels).double().mean())
    return accuracy
