"""Does a comparison by all layers say what CKA and CCA say? Of transformers and ConvNeXt-like networks."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.similarity.agreement.measure import correlations, pearson
from benchmarks.similarity.lab import Budget, Images
from benchmarks.similarity.populations import drawn_tasks
from benchmarks.similarity.transformers.networks import NETWORKS, REGIMES, SIDE, networks_of_regime, shrunk
from benchmarks.similarity.transformers.results import AllLayers
from benchmarks.similarity.units import Context, Unit
from fscl.compare import joint_decompose
from fscl.compare.comparison import compare
from fscl.similarity import aggregate_layers, collect_features, dead_leaves, probing_matrix, similarity_matrix

__all__ = ["METHODS", "measure", "units"]

METHODS = {  # by name: the title, and what it needs
    "atoms_mean": ("cosine of atoms, mean over layers", "weights"),
    "atoms_depth": ("cosine of atoms, over depth", "weights"),
    "weights_mean": ("cosine of whole weights, mean over layers", "weights"),
    "weights_depth": ("cosine of whole weights, over depth", "weights"),
    "leaves": ("response to dead leaves", "passes of dead leaves"),
    "leaves_cka": ("CKA on dead leaves", "passes of dead leaves"),
    "leaves_cca": ("mean CCA on dead leaves", "passes of dead leaves"),
    "leaves_three": ("three readings of dead leaves", "passes of dead leaves"),
}
# unlike in other sections, networks learn by AdamW, which transformers need
BUDGETS = {
    "fmnist": Budget(images=4000, epochs=1, first_epochs=4, rate=1e-3, first_rate=2e-3, decay=0.01),
    "cifar100": Budget(images=4000, epochs=1, first_epochs=6, rate=1e-3, first_rate=2e-3, decay=0.01),
}
QUICK = Budget(images=1000, epochs=1, first_epochs=2, rate=1e-3, first_rate=2e-3, decay=0.01)
COUNT, QUICK_COUNT = 15, 6  # networks
PROBE, QUICK_PROBE = 300, 100
STIMULI, POSITIONS, PROBED = 64, 16, 6  # synthetic images, and positions in each of them and of the probe
YARDSTICKS = ("linear_cka", "mean_cca")
RESAMPLES, QUICK_RESAMPLES = 999, 199


def units(quick: bool) -> list[Unit]:
    """The units of the section."""
    return [
        Unit(
            f"transformers-{images}-{architecture}-{regime}", partial(measure, images, architecture, regime), AllLayers
        )
        for images in (("fmnist",) if quick else tuple(BUDGETS))
        for architecture in (("vit",) if quick else tuple(NETWORKS))
        for regime in REGIMES
    ]


def measure(images: str, architecture: str, regime: str, context: Context, seed: int = 0) -> AllLayers:
    """Trains a population and correlates every method with every yardstick, by layer and for the whole network."""
    source, budget = Images(images, context.data), QUICK if context.quick else BUDGETS[images]
    count = QUICK_COUNT if context.quick else COUNT
    turns, task = drawn_tasks(source, images, count, budget, seed)
    began = time.perf_counter()
    networks, accuracies = networks_of_regime(
        architecture, regime, lambda number: shrunk(task(number)), count, budget, seed
    )
    training_seconds = time.perf_counter() - began
    shown = {"first": turns, "snapshots": turns[:2], "starts": turns[: count // 3]}[regime]
    pictures = source.probe(QUICK_PROBE if context.quick else PROBE, seed, shown if images == "fmnist" else (0,))
    probe = F.avg_pool2d(pictures, 2)
    joint = joint_decompose(networks)
    features = _features(networks, joint.layers, probe, PROBED)
    yardsticks = {name: _compared(features, name) for name in YARDSTICKS}
    methods, seconds = _methods(networks, list(joint.layers))
    comparison = compare(joint)
    correlated = partial(correlations, resamples=QUICK_RESAMPLES if context.quick else RESAMPLES)
    depth = similarity_matrix(joint, per_layer=True).double().square().cumprod(0)
    return AllLayers(
        images=images,
        architecture=architecture,
        regime=regime,
        networks=len(networks),
        probe=len(probe),
        budget=budget,
        accuracies=accuracies,
        training_seconds=training_seconds,
        seconds=seconds,
        layers=list(joint.layers),
        compared_share=comparison.coverage.share,
        explained=float(joint.shares.min()),
        groups=[len(group.members) for group in comparison.groups],
        agreement={
            name: {yardstick: correlated(matrix, layers.mean(0)) for yardstick, layers in yardsticks.items()}
            for name, matrix in methods.items()
        },
        by_layer={
            name: [pearson(*pair) for pair in zip(depth, layers, strict=True)] for name, layers in yardsticks.items()
        },
        yardsticks_agree=correlated(yardsticks["linear_cka"].mean(0), yardsticks["mean_cca"].mean(0)),
    )


def _methods(networks: list[nn.Module], layers: list[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """By name the similarity of all pairs, (T, T), and the seconds that it took."""
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Tensor]) -> Tensor:
        began = time.perf_counter()
        value = call()
        seconds[name] = time.perf_counter() - began
        return value

    atoms = timed("atoms", lambda: similarity_matrix(joint_decompose(networks), per_layer=True).double())
    whole = timed("weights", lambda: torch.stack([_cosines(networks, layer) for layer in layers]))
    matrices = {
        f"{name}_{how}": aggregate_layers(per_layer, how)
        for name, per_layer in (("atoms", atoms), ("weights", whole))
        for how in ("mean", "depth")
    }
    first = networks[0].get_submodule("patches")
    assert isinstance(first, nn.Conv2d)
    leaves = dead_leaves(STIMULI, (first.in_channels, SIDE, SIDE))
    features = _features(networks, layers, leaves, POSITIONS)
    readings = {"leaves": "aligned_cosine", "leaves_cka": "linear_cka", "leaves_cca": "mean_cca"}
    for name, reading in readings.items():
        matrices[name] = timed(name, partial(_compared, features, reading)).mean(0)
    matrices["leaves_three"] = torch.stack([matrices[name] for name in readings]).mean(0)
    return matrices, seconds


def _cosines(networks: list[nn.Module], layer: str) -> Tensor:
    weights = [network.state_dict()[f"{layer}.weight"].double().flatten() for network in networks]
    flat = F.normalize(torch.stack(weights))
    return flat @ flat.mT


def _features(
    networks: list[nn.Module], layers: list[str] | tuple[str, ...], images: Tensor, positions: int
) -> dict[str, list[Tensor]]:
    """By layer the outputs of each network, tokens or positions of maps as samples."""
    features: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for network in networks:
        outputs = collect_features(
            network, images.split(100), layers, maps="positions", positions=positions, progress=False
        )
        for layer, values in outputs.items():
            features[layer].append(values)
    return features


def _compared(features: dict[str, list[Tensor]], reading: str) -> Tensor:
    return torch.stack([probing_matrix(values, reading) for values in features.values()])
