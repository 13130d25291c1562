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

from benchmarks.similarity.contents import Context
from benchmarks.similarity.grounding_superclasses import SUPERCLASSES, class_numbers
from benchmarks.similarity.lab import Budget, Images, Task, bank_of, learn, start
from fscl.atoms import AtomBank
from fscl.compare import READINGS, moment_similarity, response_features, tangent_similarity
from fscl.continual.acceleration import channels_last
from fscl.similarity import dead_leaves, probing_matrix, recall_images, similarity_matrix

__all__ = [
    "MEASURES",
    "OURS",
    "SHORT",
    "VARIANTS",
    "Origin",
    "lists",
    "networks",
    "noisy",
    "origin",
    "probe_of",
    "similarities",
    "similarities_to_first",
    "worth",
]

Array = NDArray[Any]
Features = dict[str, list[Tensor]]
OURS = {
    "atoms": "cosine of atoms, over depth",
    "moments": "moments through the layers",
    "tangent": "tangent on recalled images",
    "responses": "response to recalled images",
    "readings": "three readings of recalled images",
}
MEASURES = {**OURS, "cka": "linear CKA", "cca": "mean CCA"}
SHORT = {
    "atoms": "atoms",
    "moments": "moments",
    "tangent": "tangent",
    "responses": "responses",
    "readings": "readings",
    "cka": "linear CKA",
    "cca": "mean CCA",
}
# what else is computed, so that a reader sees whether another choice would have done better
VARIANTS = {
    "atoms_mean": "cosine of atoms, mean over layers",
    "atoms_product": "cosine of atoms, product of squares",
    "responses_real": "response to the rivals' real images",
    "cka_recalled": "linear CKA on recalled images",
    "atoms_change": "cosine of changes of atoms since the first task",
    "responses_change": "change of responses since the first task",
    "cka_change": "linear CKA of changes of features since the first task",
}
BUDGETS = {
    "fmnist": Budget(images=4000, epochs=4, first_epochs=8),
    "cifar100": Budget(images=3000, epochs=5, first_epochs=12),
}
FIRST_IMAGES = 6000
QUICK = Budget(images=1000, epochs=2, first_epochs=3)
FIRST_SUPERCLASSES = ("vehicles 1", "vehicles 2")  # their ten classes are the first task of CIFAR-100


@dataclass(frozen=True)
class Origin:
    """The network of a first task, from which all others are learned, and images recalled from it."""

    source: Images
    budget: Budget
    model: nn.Module
    shown: int  # training images
    accuracy: float
    recalled: Tensor
    probed: int  # real images that the rivals see
    positions: int  # places in each image at which features are compared


@lru_cache(maxsize=3)
def origin(images: str, context: Context, seed: int = 0) -> Origin:
    """Trained once for all units that one process does."""
    source = Images(images, context.data)
    budget = QUICK if context.quick else BUDGETS[images]
    longer = replace(budget, images=max(budget.images, 2000 if context.quick else FIRST_IMAGES))
    if images == "fmnist":
        task = source.rotated(0, longer, seed)
    else:
        names = [name for group in FIRST_SUPERCLASSES for name in SUPERCLASSES[group]]
        task = source.of_classes(class_numbers(source.train.classes, names), longer, seed)
    model, reached = start("plain", task, longer, seed)
    count, steps = (16, 60) if context.quick else (64, 200)
    channels, height, width = task.images.shape[1:]
    recalled = recall_images(model, dead_leaves(count, (channels, height, width)), steps)
    return Origin(
        source, budget, model.eval(), len(task.images), reached, recalled, *((200, 8) if context.quick else (500, 16))
    )


def networks(first: Origin, tasks: Sequence[Task], seeds: Sequence[int]) -> tuple[AtomBank, list[float]]:
    """Each task learned from the first one's network: the bank, and each network's accuracy on its own task."""
    states, reached = [], []
    for task, seed in zip(tasks, seeds, strict=True):
        network = copy.deepcopy(first.model)
        reached.append(learn(network, task, first.budget, seed))
        states.append((task.name, network.state_dict()))
    return bank_of(first.model, states), reached


def noisy(task: Task, share: float, seed: int) -> Task:
    """The task with a share of its training labels drawn anew from all classes, so that some stay as they were."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(task.labels), generator=generator)[: round(share * len(task.labels))]
    labels = task.labels.clone()
    labels[chosen] = torch.randint(int(task.labels.max()) + 1, (len(chosen),), generator=generator)
    return replace(task, name=f"{100 * share:.0f} %", labels=labels)


def probe_of(tasks: Sequence[Task], count: int) -> Tensor:
    """Test images, as many of each task: what is in distribution for all of them together."""
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

    found = {
        **{f"atoms_{how}": bank.similarity("cosine", how) for how in ("depth", "mean", "product")},
        "atoms_change": similarity_matrix(moved, "cosine", "mean"),
        "moments": moment_similarity(bank, model, _shape(probe)),
        "tangent": tangent_similarity(bank, model, first.recalled, positions=positions),
        **_by_features(real, recalled, compared),
        "responses_change": compared(since["recalled"], "aligned_cosine"),
        "cka_change": compared(since["real"], "linear_cka"),
    }
    return _ordered(found)


def similarities_to_first(first: Origin, bank: AtomBank, probe: Tensor) -> dict[str, Array]:
    """:func:`similarities` of a bank's first network with the others, (T - 1), without comparing these among them."""
    real, recalled = _features(first, bank, probe), _features(first, bank, first.recalled)

    def compared(features: Features, measure: str) -> Tensor:
        rows = [[probing_matrix([values[0], value], measure)[0, 1] for value in values] for values in features.values()]
        return torch.tensor(rows).mean(0)

    tangent = tangent_similarity(bank, first.model, first.recalled, positions=first.positions)
    found = {
        **{f"atoms_{how}": bank.similarity("cosine", how)[0] for how in ("depth", "mean", "product")},
        "moments": moment_similarity(bank, first.model, _shape(probe))[0],
        "tangent": tangent[0],
        **_by_features(real, recalled, compared),
    }
    return {name: row[1:] for name, row in _ordered(found).items()}


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


def _ordered(found: dict[str, Tensor]) -> dict[str, Array]:
    found["atoms"] = found.pop("atoms_depth")
    return {name: found[name].double().numpy() for name in (*MEASURES, *VARIANTS) if name in found}


@torch.no_grad()
def worth(first: Origin, bank: AtomBank, tasks: Sequence[Task], per_class: int, tested: int) -> Array:
    """Accuracy on task i of the features of network j, (T, T): nearest class mean, nothing is trained.

    As :func:`fscl.continual.class_mean_accuracy`, which takes data sets of a stream: features are what enters the head,
    an image gets the class whose mean of normalised features over training images has the largest cosine with its own.
    """
    given = []  # the images of all tasks, of which each network makes features
    for task in tasks:
        order = torch.cat([(task.labels == c).nonzero().flatten()[:per_class] for c in task.labels.unique()])
        given.append((task.images[order], task.labels[order], task.test_images[:tested], task.test_labels[:tested]))
    network = copy.deepcopy(first.model).eval()
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).float()))

    def features(images: Tensor) -> Tensor:
        seen.clear()
        for part in images.split(500):
            network(channels_last(part))
        return F.normalize(torch.cat(seen), dim=1)

    found = np.zeros((len(tasks), len(tasks)))
    for j, label in enumerate(bank.tasks):
        bank.restore(network, label)
        for i, (images, labels, test_images, test_labels) in enumerate(given):
            known = features(images)
            means = F.normalize(torch.stack([known[labels == c].mean(0) for c in labels.unique()]), dim=1)
            guess = labels.unique()[(features(test_images) @ means.T).argmax(1)]
            found[i, j] = float((guess == test_labels).double().mean())
    return found


def lists(matrices: dict[str, Array]) -> dict[str, Any]:
    """Arrays as nested lists of numbers to six digits."""
    return {name: np.round(matrix, 6).tolist() for name, matrix in matrices.items()}
