"""Does a comparison without data say what CKA and CCA say with it? Three regimes, three architectures, real images."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.similarity.agreement.results import Agreement, Correlation, Correlations
from benchmarks.similarity.lab import ARCHITECTURES
from benchmarks.similarity.measures import YARDSTICKS
from benchmarks.similarity.populations import (
    REGIMES,
    Population,
    below_diagonal,
    budget_of,
    networks_of,
    population,
)  # fmt: skip
from benchmarks.similarity.units import Context, Unit
from fscl.atoms import AtomBank
from fscl.atoms.entries import point_entries
from fscl.compare import moment_similarity, response_features, tangent_features, tangent_similarity
from fscl.errors import FsclError
from fscl.similarity import (
    aggregate_layers,
    collect_features,
    dead_leaves,
    mantel,
    noise_images,
    probing_matrix,
    recall_images,
)

__all__ = ["AGAINST", "agreement", "correlations", "measure", "pearson", "units"]

AGAINST = ("linear_cka", "minibatch_cka", "mean_cca", "svcca")  # the yardsticks of this section
STIMULI, POSITIONS = 64, 16  # images that a comparison passes, and positions that it looks at in each
PROBED = 10  # positions in each image that the yardsticks see
RECALL_STEPS, QUICK_RECALL_STEPS = 300, 100
RESAMPLES, QUICK_RESAMPLES = 999, 199


def units(quick: bool) -> list[Unit]:
    """The units of the section."""
    sources = ("fmnist",) if quick else ("fmnist", "cifar100")
    architectures = ("plain",) if quick else tuple(ARCHITECTURES)
    return [
        Unit(
            f"agreement-{images}-{architecture}-{regime}",
            partial(measure, images, architecture, regime),
            Agreement,
            version=2,
        )
        for images in sources
        for architecture in architectures
        for regime in REGIMES
    ]


def agreement(
    similarity: Tensor,
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    yardsticks: Iterable[str] = ("linear_cka", "mean_cca"),
    resamples: int = RESAMPLES,
) -> dict[str, Correlations]:
    """How far a similarity of networks agrees with CKA and CCA, which see the features of some images.

    Args:
        similarity: (T, T), of the tasks of the bank.
        bank: T tasks, at least 4.
        model: their network; it is left as it was.
        images: (n, channels, height, width), real ones.
        yardsticks: names of YARDSTICKS.
        resamples: permutations of the Mantel test.

    Returns:
        By yardstick the correlations over all pairs of networks.

    Raises:
        FsclError: a yardstick is unknown, or the bank is not of this network.

    Example:
        >>> from fscl.atoms import decompose
        >>> from fscl.similarity import noise_images
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> model = decompose(net).model
        >>> bank = AtomBank(model)
        >>> for task in range(5):  # here networks with random atoms; yours have learned something
        ...     _ = nn.init.normal_(model[0].atoms)
        ...     bank.store(model, task)
        >>> mine = bank.similarity("cosine")  # or a matrix of your own
        >>> found = agreement(mine, bank, model, noise_images(50, (1, 8, 8)))
        >>> sorted(found), -1 <= found["linear_cka"].pearson.r <= 1
        (['linear_cka', 'mean_cca'], True)
    """
    known = _yardsticks(bank, model, images, yardsticks)
    return {name: correlations(similarity, layers.mean(0), resamples) for name, layers in known.items()}


def measure(images: str, architecture: str, regime: str, context: Context) -> Agreement:
    """Trains a population and correlates every method with every yardstick, by layer and for the whole network."""
    networks = population(images, architecture, regime, context)
    bank = networks.bank
    yardsticks = _yardsticks(bank, networks.model, networks.probe, AGAINST)
    methods, seconds = _methods(networks, steps=QUICK_RECALL_STEPS if context.quick else RECALL_STEPS)
    correlated = partial(correlations, resamples=QUICK_RESAMPLES if context.quick else RESAMPLES)
    return Agreement(
        images=images,
        architecture=architecture,
        regime=regime,
        networks=len(bank),
        probe=len(networks.probe),
        layers=bank.layers,
        budget=budget_of(images, context),
        accuracies=networks.accuracies,
        training_seconds=networks.seconds,
        seconds=seconds,
        values={name: _pairs(layers.mean(0)) for name, layers in yardsticks.items()},
        methods={name: _pairs(_whole(matrix)) for name, matrix in methods.items()},
        levels={name: [float(below_diagonal(layer).mean()) for layer in layers] for name, layers in yardsticks.items()},
        agreement={
            name: {yardstick: correlated(_whole(matrix), layers.mean(0)) for yardstick, layers in yardsticks.items()}
            for name, matrix in methods.items()
        },
        by_layer={
            name: {
                yardstick: [pearson(*pair) for pair in zip(matrix, yardsticks[yardstick], strict=True)]
                for yardstick in ("linear_cka", "mean_cca")
            }
            for name, matrix in methods.items()
            if matrix.ndim == 3
        },
        yardsticks_agree=correlated(yardsticks["linear_cka"].mean(0), yardsticks["mean_cca"].mean(0)),
    )


def _yardsticks(bank: AtomBank, model: nn.Module, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """By name the similarity of all pairs by layer, (L, T, T)."""
    names = tuple(names)
    if unknown := next((name for name in names if name not in YARDSTICKS), None):
        raise FsclError(f"unknown yardstick {unknown!r}; known: {', '.join(YARDSTICKS)}")
    features = response_features(bank, model, images, positions=PROBED)
    return {name: _compared(features, name) for name in names}


def _methods(networks: Population, steps: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """By name: similarity of all pairs by layer (L, T, T), or of whole networks (T, T); and the seconds each took."""
    bank, model = networks.bank, networks.model
    shape = (networks.probe.shape[1], networks.probe.shape[2], networks.probe.shape[3])
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

    variants: Mapping[str, dict[str, Any]] = {
        "moments": {},
        "moments_white": {"exponent": 0.0},
        "moments_bare": {"normalisation": False},
        "moments_series": {"terms": 3},
    }
    for name, options in variants.items():
        call = partial(moment_similarity, bank, model, shape, per_layer=True, **options)
        matrices[name] = timed(name, call)

    stimuli = {
        "white": noise_images(STIMULI, shape, exponent=0.0),
        "noise": noise_images(STIMULI, shape),
        "leaves": dead_leaves(STIMULI, shape),
        "real": networks.probe[:STIMULI],
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
            readings = [matrices[key] for key in ("recalled", "recalled_cka", "recalled_cca")]  # fscl.compare.READINGS
            matrices["recalled_three"] = torch.stack(readings).mean(0)
    for name in ("noise", "leaves", "recalled"):
        call = partial(tangent_similarity, bank, model, stimuli[name], positions=POSITIONS, per_layer=True)
        matrices[f"tangent_{name}"] = timed(f"tangent_{name}", call)
    tangent = tangent_features(bank, model, stimuli["recalled"], positions=POSITIONS)
    matrices["tangent_recalled_cka"] = _compared(tangent, "linear_cka")
    own = _compared(_atom_features(networks, stimuli["recalled"], alone=True), "aligned_cosine")
    matrices["recalled_own"] = own.cumprod(0)
    all_atoms = _atom_features(networks, stimuli["recalled"], alone=False)
    matrices["recalled_atoms"] = _compared(all_atoms, "aligned_cosine")
    return matrices, seconds


def _atom_features(networks: Population, images: Tensor, alone: bool) -> dict[str, list[Tensor]]:
    """Features of the first network with a task's atoms and nothing else of it: in one layer alone, or in all."""
    bank, model = networks.bank, networks.model
    features: dict[str, list[Tensor]] = {layer: [] for layer in bank.layers}
    for task in bank.tasks:
        atoms = bank.atoms(task)
        for layers in [[layer] for layer in bank.layers] if alone else [bank.layers]:
            entries = {f"{layer}.atoms": atoms[layer] for layer in layers}
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


def _compared(features: Mapping[str, list[Tensor]], measure: str) -> Tensor:
    return torch.stack([probing_matrix(values, measure) for values in features.values()])


def _whole(matrix: Tensor) -> Tensor:
    return matrix.mean(0) if matrix.ndim == 3 else matrix


def _pairs(matrix: Tensor) -> list[float]:
    """One entry of each pair, to six digits."""
    return [round(float(value), 6) for value in below_diagonal(matrix)]


def pearson(matrix: Tensor, other: Tensor) -> float:
    pairs = torch.stack([below_diagonal(matrix), below_diagonal(other)]).double()
    return float(torch.corrcoef(pairs)[0, 1])


def correlations(matrix: Tensor, other: Tensor, resamples: int) -> Correlations:
    def correlation(method: str) -> Correlation:
        test = mantel(matrix, other, method=method, pairs="lower", n_resamples=resamples)
        return Correlation(r=test.statistic, low=test.low, high=test.high, p=test.p_value)

    return Correlations(pearson=correlation("pearson"), spearman=correlation("spearman"))
