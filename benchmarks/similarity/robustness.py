"""How far a similarity moves with what it is measured on: fewer images, others, noise; and ours, which takes none."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.similarity.contents import Context, Unit
from benchmarks.similarity.lab import SIDE, Budget, Images, Task, bank_of, learn, start
from benchmarks.similarity.populations import drawn_tasks, networks_of
from fscl.atoms import AtomBank
from fscl.compare import READINGS, moment_similarity, response_features, tangent_similarity
from fscl.similarity import collect_features, dead_leaves, mantel, noise_images, probing_matrix, recall_images

__all__ = ["MEASURES", "compared", "probed", "robustness", "units"]

MEASURES = {
    "linear_cka": "linear CKA",
    "minibatch_cka": "unbiased CKA",
    "mean_cca": "mean CCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes": "Procrustes",
}
BUDGETS = {"fmnist": Budget(), "cifar100": Budget(images=5000, epochs=6, first_epochs=12)}
QUICK = Budget(images=2000, epochs=1, first_epochs=3)
SAMPLES, QUICK_SAMPLES = 4000, 2000  # places times images of a probe; the largest ones have more
Probe = tuple[str, list[Tensor], bool]  # what it is called, its images in each draw, whether their maps are pooled


def units(quick: bool) -> list[Unit]:
    sources = ("fmnist",) if quick else tuple(BUDGETS)
    return [Unit(f"robustness-{images}", partial(robustness, images)) for images in sources]


def robustness(images: str, context: Context, seed: int = 0) -> dict[str, Any]:
    """Trains networks, each from that of the first task, and measures all pairs of them on every probe."""
    source, budget = Images(images, context.data), QUICK if context.quick else BUDGETS[images]
    count, largest, draws = (8, 500, 2) if context.quick else (12, 10_000, 3)
    samples = QUICK_SAMPLES if context.quick else SAMPLES
    turns, task = drawn_tasks(source, images, count, budget, seed)
    bank, model, accuracies = _trained(task, count, budget, seed)
    used = turns if images == "fmnist" else (0,)
    reference = probed(bank, model, source.probe(largest, 0, used), samples)
    rows = [_row(f"{largest:,} images", largest, {m: [compared(v, v)] for m, v in reference.items()})]
    for name, drawn, pooled in _probes(source, largest, used, draws, context):
        found = [probed(bank, model, pictures, samples, pooled, draw) for draw, pictures in enumerate(drawn)]
        moved = {m: [compared(values[m], reference[m]) for values in found] for m in MEASURES}
        rows.append(_row(name, len(drawn[0]), moved))
    stimuli, steps = (16, 50) if context.quick else (64, 300)
    return {
        "images": images,
        "networks": len(bank),
        "budget": budget.to_json(),
        "accuracies": accuracies,
        "draws": draws,
        "places": [_places(n, samples) for n in (largest, 50)],
        "probes": rows,
        "stimuli": {"images": stimuli, "steps": steps},
        "ours": _ours(bank, model, source.channels, reference, stimuli, steps, draws),
    }


def probed(
    bank: AtomBank, model: nn.Module, images: Tensor, samples: int, pooled: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Every measure of all pairs of a bank's networks on some images, mean over layers: (T, T) each.

    The fewer images there are, the more places are looked at in each, 2 to 64, until there are so many samples: small
    probes shall not be worse than they need be. Pooled over its places, an image is one sample.
    """
    where: dict[str, Any] = {"maps": "pooled"}
    if not pooled:
        where = {"maps": "positions", "positions": _places(len(images), samples)}
    features = []
    for task in bank.tasks:
        with bank.swapped(model, task):
            features.append(collect_features(model, images.split(250), bank.layers, **where, progress=False, seed=seed))
    totals = {measure: torch.zeros(len(bank), len(bank), dtype=torch.float64) for measure in MEASURES}
    for layer in bank.layers:
        # in their own order a batch of the unbiased CKA would hold the places of very few images
        order = torch.randperm(len(features[0][layer]), generator=torch.Generator().manual_seed(seed))
        mixed = [own.pop(layer)[order] for own in features]
        for measure, total in totals.items():
            total += probing_matrix(mixed, measure) / len(bank.layers)
    return totals


def compared(matrix: Tensor, reference: Tensor) -> dict[str, float]:
    """Mean level of the entries off the diagonal, mean absolute difference from a reference, and Spearman with it."""
    rows, columns = torch.tril_indices(len(matrix), len(matrix), -1)
    entries, known = matrix[rows, columns].double(), reference[rows, columns].double()
    order = mantel(matrix, reference, pairs="lower", n_resamples=1).statistic
    return {"level": float(entries.mean()), "shift": float((entries - known).abs().mean()), "rho": order}


def _places(images: int, samples: int) -> int:
    return max(2, min(64, samples // images))


def _row(name: str, n: int, measures: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Of each measure the lists, over draws, of level, shift and rho."""
    by_draw = {m: {key: [draw[key] for draw in draws] for key in draws[0]} for m, draws in measures.items()}
    return {"name": name, "n": n, "measures": by_draw}


def _trained(
    task: Callable[[int], Task], count: int, budget: Budget, seed: int
) -> tuple[AtomBank, nn.Module, list[float]]:
    model, reached = start("plain", task(0), budget, seed)
    first, accuracies = copy.deepcopy(model.state_dict()), [reached]
    states = [("0", first)]
    for number in range(1, count):
        model.load_state_dict(first)
        accuracies.append(learn(model, task(number), budget, seed + number))
        states.append((str(number), copy.deepcopy(model.state_dict())))
    model.load_state_dict(first)
    return bank_of(model, states), model, accuracies


def _probes(source: Images, largest: int, turns: Sequence[float], draws: int, context: Context) -> Iterator[Probe]:
    """All but the reference, one at a time."""
    yield f"{largest:,} training images", [source.probe(largest, 0, turns, train=True)], False
    few, pooled = ((100, 50), (100,)) if context.quick else ((1000, 250, 100, 50), (1000, 100))
    for sizes, pool in ((few, False), (pooled, True)):
        for n in sizes:
            name = f"{n:,} images{', pooled' if pool else ''}"
            yield name, [source.probe(n, 1 + draw, turns) for draw in range(draws)], pool
    others = 100 if context.quick else 1000
    if not context.quick:  # a quick page needs no second data set
        yield "another data set", [_foreign(source.name, others, draw, context.data) for draw in range(draws)], False
    shape = (source.channels, SIDE, SIDE)
    for name, exponent in (("1/f noise", 1.0), ("white noise", 0.0)):
        yield name, [noise_images(others, shape, exponent, draw) for draw in range(draws)], False


def _foreign(images: str, n: int, seed: int, data: str | None) -> Tensor:
    """Images of the other data set with the channels of this one, mean 0 and variance 1."""
    pixels = Images("cifar100" if images == "fmnist" else "fmnist", data).probe(n, seed)
    changed = pixels.mean(1, keepdim=True) if images == "fmnist" else pixels.expand(-1, 3, -1, -1)
    return (changed - changed.mean()) / changed.std()


def _ours(
    bank: AtomBank,
    model: nn.Module,
    channels: int,
    reference: Mapping[str, Tensor],
    stimuli: int,
    steps: int,
    draws: int,
) -> dict[str, Any]:
    """What takes no data: how far other seeds of the synthetic images move it from the first, and how right it is."""
    networks = networks_of(bank, model)
    matrices: dict[str, list[Tensor]] = {"cosine": [bank.similarity("cosine", "depth").double()] * 2}
    matrices["moments"] = [moment_similarity(bank, model, (channels, SIDE, SIDE))] * 2
    for seed in range(1 + draws):
        images = recall_images(networks, dead_leaves(stimuli, (channels, SIDE, SIDE), seed), steps)
        matrices.setdefault("tangent", []).append(tangent_similarity(bank, model, images, positions=16))
        features = response_features(bank, model, images, positions=16).values()  # of one pass for all readings
        readings = {how: torch.stack([probing_matrix(f, how) for f in features]).mean(0) for how in READINGS}
        matrices.setdefault("response", []).append(readings["aligned_cosine"])
        matrices.setdefault("readings", []).append(torch.stack(list(readings.values())).mean(0))
    found = {}
    for name, (first, *rest) in matrices.items():
        moved = [compared(matrix, first) for matrix in rest]
        found[name] = {key: [draw[key] for draw in moved] for key in moved[0]} | {
            "agrees": {m: compared(first, reference[m])["rho"] for m in ("linear_cka", "mean_cca")}
        }
    return found
