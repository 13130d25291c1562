"""Does a comparison without data say what CKA and CCA say with it? Three regimes, three architectures, real images."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.similarity.contents import Context, Unit
from benchmarks.similarity.lab import ARCHITECTURES
from benchmarks.similarity.populations import REGIMES, Population, budget_of, networks_of, population, tensors_of
from fscl.atoms.entries import point_entries
from fscl.compare import moment_similarity, response_features, tangent_features, tangent_similarity
from fscl.similarity import (
    aggregate_layers,
    collect_features,
    dead_leaves,
    mantel,
    noise_images,
    probing_matrix,
    recall_images,
)

__all__ = ["METHODS", "YARDSTICKS", "agreement", "units"]

YARDSTICKS = {
    "linear_cka": "linear CKA",
    "minibatch_cka": "unbiased CKA",
    "mean_cca": "mean CCA",
    "svcca": "SVCCA",
}
# key -> what it is called, and what it needs beside the networks
METHODS = {
    "cosine_mean": ("cosine of atoms, mean over layers", "atoms"),
    "cosine_product": ("cosine of atoms, product of squares", "atoms"),
    "cosine_depth": ("cosine of atoms, over depth", "atoms"),
    "grassmann": ("Grassmann (rank 3), mean over layers", "atoms"),
    "projection": ("projection (rank 3), mean over layers", "atoms"),
    "moments": ("moments through the layers", "atoms, normalisation"),
    "moments_white": ("moments, of white noise", "atoms, normalisation"),
    "moments_bare": ("moments, no normalisation", "atoms"),
    "moments_series": ("moments, rectifier to third order", "atoms, normalisation"),
    "tangent_noise": ("tangent on 1/f noise", "one network, noise"),
    "tangent_leaves": ("tangent on dead leaves", "one network, dead leaves"),
    "tangent_recalled": ("tangent on recalled images", "one network, recalled images"),
    "tangent_recalled_cka": ("tangent on recalled images, as CKA", "one network, recalled images"),
    "white": ("response to white noise", "passes of noise"),
    "noise": ("response to 1/f noise", "passes of noise"),
    "noise_cka": ("CKA on 1/f noise", "passes of noise"),
    "leaves": ("response to dead leaves", "passes of dead leaves"),
    "leaves_cka": ("CKA on dead leaves", "passes of dead leaves"),
    "recalled_one": ("response to images recalled from the first network", "passes of recalled images"),
    "recalled": ("response to recalled images", "passes of recalled images"),
    "recalled_cka": ("CKA on recalled images", "passes of recalled images"),
    "recalled_cca": ("mean CCA on recalled images", "passes of recalled images"),
    "recalled_three": ("three readings of recalled images", "passes of recalled images"),
    "recalled_own": ("recalled, each layer's own atoms alone, over depth", "passes of recalled images"),
    "recalled_atoms": ("recalled, all atoms but no normalisation", "passes of recalled images"),
    "real": ("response to 64 real images", "64 real images"),
    "real_cka": ("CKA on 64 real images", "64 real images"),
}
STIMULI, POSITIONS = 64, 16  # images that a comparison passes, and places that it looks at in each
PROBED = 10  # places in each of the yardsticks' images
RECALL_STEPS = 300


def units(quick: bool) -> list[Unit]:
    sources = ("fmnist",) if quick else ("fmnist", "cifar100")
    shapes = ("plain",) if quick else ARCHITECTURES
    return [
        Unit(f"agreement-{images}-{shape}-{regime}", partial(agreement, images, shape, regime), version=2)
        for images in sources
        for shape in shapes
        for regime in REGIMES
    ]


def agreement(images: str, architecture: str, regime: str, context: Context) -> dict[str, Any]:
    """Trains a population and correlates every method with every yardstick, by layer and for the whole network."""
    found = population(images, architecture, regime, context)
    bank, model = found.bank, found.model
    features = response_features(bank, model, found.probe, positions=PROBED)
    yardsticks = {
        name: torch.stack([probing_matrix(values, name) for values in features.values()]) for name in YARDSTICKS
    }
    del features
    methods, seconds = _methods(found, steps=100 if context.quick else RECALL_STEPS)
    resamples = 199 if context.quick else 999
    result: dict[str, Any] = {
        "images": images,
        "architecture": architecture,
        "regime": regime,
        "networks": len(bank),
        "probe": len(found.probe),
        "layers": bank.layers,
        "budget": budget_of(images, context).to_json(),
        "accuracies": found.accuracies,
        "training_seconds": found.seconds,
        "seconds": seconds,
        "values": {name: tensors_of(matrix.mean(0)) for name, matrix in yardsticks.items()},
        "methods": {name: tensors_of(_whole(matrix)) for name, matrix in methods.items()},
        "levels": {name: [float(_off(layer).mean()) for layer in matrix] for name, matrix in yardsticks.items()},
        "agreement": {},
        "by_layer": {},
    }
    yardstick_pair = _correlations(yardsticks["linear_cka"].mean(0), yardsticks["mean_cca"].mean(0), resamples)
    result["yardsticks_agree"] = yardstick_pair
    for name, matrix in methods.items():
        result["agreement"][name] = {
            yardstick: _correlations(_whole(matrix), against.mean(0), resamples)
            for yardstick, against in yardsticks.items()
        }
        if matrix.ndim == 3:
            result["by_layer"][name] = {
                yardstick: [_pearson(one, other) for one, other in zip(matrix, yardsticks[yardstick], strict=True)]
                for yardstick in ("linear_cka", "mean_cca")
            }
    return result


def _methods(found: Population, steps: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """By name: similarity of all pairs by layer (L, T, T), or of whole networks (T, T); and the seconds each took."""
    bank, model = found.bank, found.model
    shape = (found.probe.shape[1], found.probe.shape[2], found.probe.shape[3])
    matrices: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        value = call()
        seconds[name] = time.perf_counter() - began
        return value

    cosine = timed("cosine_depth", lambda: bank.similarity("cosine", per_layer=True)).double()
    matrices["cosine_mean"] = cosine
    matrices["cosine_product"] = aggregate_layers(cosine, "product")
    matrices["cosine_depth"] = cosine.square().cumprod(0)  # its mean over layers is the aggregate
    for name in ("grassmann", "projection"):
        matrices[name] = timed(name, partial(bank.similarity, name, per_layer=True)).double()

    carried: dict[str, dict[str, Any]] = {
        "moments": {},
        "moments_white": {"exponent": 0.0},
        "moments_bare": {"normalisation": False},
        "moments_series": {"terms": 3},
    }
    for name, options in carried.items():
        call = partial(moment_similarity, bank, model, shape, per_layer=True, **options)
        matrices[name] = timed(name, call)

    stimuli = {
        "white": noise_images(STIMULI, shape, exponent=0.0),
        "noise": noise_images(STIMULI, shape),
        "leaves": dead_leaves(STIMULI, shape),
        "real": found.probe[:STIMULI],
    }
    stimuli["recalled_one"] = timed("recall_one", lambda: recall_images(model, stimuli["leaves"], steps))
    stimuli["recalled"] = timed("recall", lambda: recall_images(networks_of(bank, model), stimuli["leaves"], steps))
    for name, pictures in stimuli.items():
        features = timed(f"{name}_passes", partial(response_features, bank, model, pictures, positions=POSITIONS))
        matrices[name] = timed(name, partial(_compared, features, "aligned_cosine"))
        if name not in ("white", "recalled_one"):
            matrices[f"{name}_cka"] = timed(f"{name}_cka", partial(_compared, features, "linear_cka"))
        if name == "recalled":
            matrices["recalled_cca"] = timed("recalled_cca", partial(_compared, features, "mean_cca"))
            readings = [matrices[key] for key in ("recalled", "recalled_cka", "recalled_cca")]  # fscl.atoms.READINGS
            matrices["recalled_three"] = torch.stack(readings).mean(0)
    for name in ("noise", "leaves", "recalled"):
        call = partial(tangent_similarity, bank, model, stimuli[name], positions=POSITIONS, per_layer=True)
        matrices[f"tangent_{name}"] = timed(f"tangent_{name}", call)
    tangent = tangent_features(bank, model, stimuli["recalled"], positions=POSITIONS)
    matrices["tangent_recalled_cka"] = _compared(tangent, "linear_cka")
    own = _compared(_partial_features(found, stimuli["recalled"], own=True), "aligned_cosine")
    matrices["recalled_own"] = own.cumprod(0)
    matrices["recalled_atoms"] = _compared(_partial_features(found, stimuli["recalled"], own=False), "aligned_cosine")
    return matrices, seconds


def _partial_features(found: Population, images: Tensor, own: bool) -> dict[str, list[Tensor]]:
    """Responses of the first network with a task's atoms in one layer alone (`own`) or in all, and nothing else."""
    bank, model = found.bank, found.model
    features: dict[str, list[Tensor]] = {layer: [] for layer in bank.layers}
    for task in bank.tasks:
        atoms = {f"{layer}.atoms": value for layer, value in bank.atoms(task).items()}
        for layers in [[layer] for layer in bank.layers] if own else [bank.layers]:
            entries = {name: atoms[name] for name in (f"{layer}.atoms" for layer in layers)}
            for layer, values in _swapped_features(model, entries, images, layers).items():
                features[layer].append(values)
    return features


def _swapped_features(
    model: nn.Module, entries: dict[str, Tensor], images: Tensor, layers: list[str]
) -> dict[str, Tensor]:
    before = point_entries(model, entries)
    try:
        return collect_features(model, images.split(64), layers, maps="positions", positions=POSITIONS, progress=False)
    finally:
        point_entries(model, before)


def _compared(features: dict[str, list[Tensor]], measure: str) -> Tensor:
    return torch.stack([probing_matrix(values, measure) for values in features.values()])


def _whole(matrix: Tensor) -> Tensor:
    return matrix.mean(0) if matrix.ndim == 3 else matrix


def _off(matrix: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(len(matrix), len(matrix), -1)
    return matrix[rows, columns]


def _pearson(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([_off(one), _off(other)]).double())[0, 1])


def _correlations(one: Tensor, other: Tensor, resamples: int) -> dict[str, dict[str, float]]:
    """Pearson and Spearman over all pairs, with 95 % intervals over networks and Mantel's p."""
    found = {}
    for method in ("pearson", "spearman"):
        value = mantel(one, other, method=method, pairs="lower", n_resamples=resamples)
        found[method] = {"r": value.statistic, "low": value.low, "high": value.high, "p": value.p_value}
    return found
