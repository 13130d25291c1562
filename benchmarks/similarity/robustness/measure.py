"""How far a similarity moves with its images: fewer images, other images, noise; and measures that need none."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.similarity.lab import DATA, SIDE, Budget, Images
from benchmarks.similarity.measures import YARDSTICKS
from benchmarks.similarity.populations import below_diagonal, drawn_tasks, learned_tasks, networks_of
from benchmarks.similarity.robustness.results import Draws, Moved, Probe, Robustness, Stimuli, WithoutData
from benchmarks.similarity.units import Context, Unit
from fscl.atoms import AtomBank
from fscl.compare import READINGS, moment_similarity, response_features, tangent_similarity
from fscl.similarity import collect_features, dead_leaves, mantel, noise_images, probing_matrix, recall_images

__all__ = ["measure", "moved", "probed", "units"]

BUDGETS = {"fmnist": Budget(), "cifar100": Budget(images=5000, epochs=6, first_epochs=12)}
QUICK = Budget(images=2000, epochs=1, first_epochs=3)
SAMPLES, QUICK_SAMPLES = 4000, 2000  # positions times images of a probe; the largest ones have more


class _Images(NamedTuple):
    name: str
    draws: list[Tensor]
    pooled: bool = False  # whether an image is one sample, the mean over its positions


def units(quick: bool) -> list[Unit]:
    """The units of the section."""
    sources = ("fmnist",) if quick else tuple(DATA)
    return [Unit(f"robustness-{images}", partial(measure, images), Robustness) for images in sources]


def measure(images: str, context: Context, seed: int = 0) -> Robustness:
    """Trains networks, each from that of the first task, and compares all pairs of them on every probe."""
    source, budget = Images(images, context.data), QUICK if context.quick else BUDGETS[images]
    count, largest, draws = (8, 500, 2) if context.quick else (12, 10_000, 3)
    samples = QUICK_SAMPLES if context.quick else SAMPLES
    turns, task = drawn_tasks(source, images, count, budget, seed)
    bank, model, accuracies = learned_tasks("plain", "first", task, count, budget, seed)
    model.eval()
    shown = turns if images == "fmnist" else (0,)
    reference = probed(bank, model, source.probe(largest, 0, shown), samples)
    unmoved = {name: _draws([moved(matrix, matrix)]) for name, matrix in reference.items()}
    probes = [Probe(name=f"{largest:,} images", n=largest, measures=unmoved)]
    for name, drawn, pooled in _probes(source, largest, shown, draws, context):
        matrices = [probed(bank, model, pictures, samples, pooled, draw) for draw, pictures in enumerate(drawn)]
        measures = {m: _draws([moved(of_draw[m], reference[m]) for of_draw in matrices]) for m in YARDSTICKS}
        probes.append(Probe(name=name, n=len(drawn[0]), measures=measures))
    stimuli = Stimuli(images=16, steps=50) if context.quick else Stimuli(images=64, steps=300)
    return Robustness(
        images=images,
        networks=len(bank),
        budget=budget,
        accuracies=accuracies,
        draws=draws,
        places=(_positions(largest, samples), _positions(50, samples)),
        probes=probes,
        stimuli=stimuli,
        ours=_without_data(bank, model, source.channels, reference, stimuli, draws),
    )


def probed(
    bank: AtomBank, model: nn.Module, images: Tensor, samples: int, pooled: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """Every measure of all pairs of a bank's networks on some images, mean over layers: (T, T) each.

    The fewer images there are, the more positions are looked at in each, 2 to 64, until there are enough samples: small
    probes shall not be worse than they need be. Pooled over its positions, an image is one sample.
    """
    where: dict[str, Any] = {"maps": "pooled"}
    if not pooled:
        where = {"maps": "positions", "positions": _positions(len(images), samples)}
    features = []
    for task in bank.tasks:
        with bank.swapped(model, task):
            features.append(collect_features(model, images.split(250), bank.layers, **where, progress=False, seed=seed))
    totals = {measure: torch.zeros(len(bank), len(bank), dtype=torch.float64) for measure in YARDSTICKS}
    for layer in bank.layers:
        # in their own order a batch of the unbiased CKA would hold the positions of very few images
        order = torch.randperm(len(features[0][layer]), generator=torch.Generator().manual_seed(seed))
        mixed = [own.pop(layer)[order] for own in features]
        for measure, total in totals.items():
            total += probing_matrix(mixed, measure) / len(bank.layers)
    return totals


def moved(matrix: Tensor, reference: Tensor) -> Moved:
    """How far a similarity is from a reference, over all pairs."""
    entries, known = below_diagonal(matrix).double(), below_diagonal(reference).double()
    rho = mantel(matrix, reference, pairs="lower", n_resamples=1).statistic
    return Moved(level=float(entries.mean()), shift=float((entries - known).abs().mean()), rho=rho)


def _positions(images: int, samples: int) -> int:
    return max(2, min(64, samples // images))


def _draws(draws: Sequence[Moved]) -> Draws:
    return Draws(
        level=[draw.level for draw in draws], shift=[draw.shift for draw in draws], rho=[draw.rho for draw in draws]
    )


def _probes(source: Images, largest: int, turns: Sequence[float], draws: int, context: Context) -> Iterator[_Images]:
    """All but the reference, one at a time."""
    yield _Images(f"{largest:,} training images", [source.probe(largest, 0, turns, train=True)])
    few, pooled = ((100, 50), (100,)) if context.quick else ((1000, 250, 100, 50), (1000, 100))
    for sizes, pool in ((few, False), (pooled, True)):
        for n in sizes:
            name = f"{n:,} images{', pooled' if pool else ''}"
            yield _Images(name, [source.probe(n, 1 + draw, turns) for draw in range(draws)], pool)
    n = 100 if context.quick else 1000
    if not context.quick:  # a quick page needs no second data set
        yield _Images("another data set", [_foreign(source.name, n, draw, context.data) for draw in range(draws)])
    shape = (source.channels, SIDE, SIDE)
    for name, exponent in (("1/f noise", 1.0), ("white noise", 0.0)):
        yield _Images(name, [noise_images(n, shape, exponent, draw) for draw in range(draws)])


def _foreign(images: str, n: int, seed: int, data: str | None) -> Tensor:
    """Images of the other data set with the channels of this one, mean 0 and variance 1."""
    pixels = Images("cifar100" if images == "fmnist" else "fmnist", data).probe(n, seed)
    changed = pixels.mean(1, keepdim=True) if images == "fmnist" else pixels.expand(-1, 3, -1, -1)
    return (changed - changed.mean()) / changed.std()


def _without_data(
    bank: AtomBank, model: nn.Module, channels: int, reference: Mapping[str, Tensor], stimuli: Stimuli, draws: int
) -> dict[str, WithoutData]:
    """The measures that need no data: how far other seeds of the synthetic images move them, and how right they are."""
    networks, shape = networks_of(bank, model), (channels, SIDE, SIDE)
    matrices: dict[str, list[Tensor]] = {
        "cosine": [bank.similarity("cosine", "depth").double()] * 2,
        "moments": [moment_similarity(bank, model, shape)] * 2,
        "tangent": [],
        "response": [],
        "readings": [],
    }
    for seed in range(1 + draws):
        images = recall_images(networks, dead_leaves(stimuli.images, shape, seed), stimuli.steps)
        matrices["tangent"].append(tangent_similarity(bank, model, images, positions=16))
        features = response_features(bank, model, images, positions=16).values()  # of one pass for all readings
        readings = {how: torch.stack([probing_matrix(f, how) for f in features]).mean(0) for how in READINGS}
        matrices["response"].append(readings["aligned_cosine"])
        matrices["readings"].append(torch.stack(list(readings.values())).mean(0))
    return {
        name: WithoutData(
            **dict(_draws([moved(matrix, first) for matrix in others])),
            agrees={yardstick: moved(first, reference[yardstick]).rho for yardstick in ("linear_cka", "mean_cca")},
        )
        for name, (first, *others) in matrices.items()
    }
