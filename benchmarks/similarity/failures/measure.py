"""Where comparing atoms misleads, and what warns: other starts, gauges and orders of channels, moved coefficients."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.similarity.failures.networks import (
    compared,
    of_atoms,
    outputs_apart,
    own_bank,
    permuted,
    refused,
    regauged,
    weights_of,
)
from benchmarks.similarity.failures.results import (
    Across,
    Compared,
    CosineAgainstCka,
    Gauge,
    Level,
    MovedCoefficients,
    Order,
    Permuted,
    Starts,
)
from benchmarks.similarity.lab import Budget, Images, Task, fit, head_of, learn, start
from benchmarks.similarity.populations import below_diagonal
from benchmarks.similarity.units import Context, Unit, spread
from fscl.atoms import atom_layers
from fscl.compare import joint_decompose
from fscl.compare.filter_history import FilterHistory
from fscl.similarity import mantel

__all__ = ["moved_coefficients", "starts", "units"]

MOVED = ("first", "sequence")  # regimes of the populations whose coefficients move
FULL, QUICK = Budget(), Budget(images=1500, epochs=1, first_epochs=3)
# the rate of coefficients as a share of the atoms', and how many times as long training lasts
LEVELS = ((0.0, 1), (0.1, 1), (0.3, 1), (1.0, 1), (1.0, 3), (3.0, 3))
QUICK_LEVELS = ((0.0, 1), (1.0, 1))


def units(quick: bool) -> list[Unit]:
    """The units of the section."""
    runs = itertools.product(MOVED, (0,) if quick else (0, 1))
    return [
        Unit("failures-starts", starts, Starts),
        *(
            Unit(f"failures-{regime}-{seed}", partial(moved_coefficients, regime, seed), MovedCoefficients)
            for regime, seed in runs
        ),
    ]


def starts(context: Context) -> Starts:
    """The same tasks from several random starts; then one start's networks written otherwise, with the same outputs."""
    source, budget = Images("fmnist", context.data), QUICK if context.quick else FULL
    seeds, count, draws, n = (2, 4, 3, 250) if context.quick else (3, 6, 20, 1000)
    turns = [0.0, *np.random.default_rng(0).uniform(0, 360, count - 1).round().tolist()]
    networks: list[tuple[int, int, nn.Module]] = []  # with the start and the task of each
    accuracies, banks = [], []
    for seed in range(seeds):
        model, bank, reached = start("plain", source.rotated(turns[0], budget, 0), budget, seed)
        accuracies.append(reached)
        for task in range(1, count):
            rotated = source.rotated(turns[task], budget, task)
            accuracies.append(learn(model, bank, rotated, budget, task, begin_from=0))
            bank.store(model, task)
        networks += [(seed, task, bank.network(model, task)) for task in bank.tasks]
        banks.append(bank)
    probe = source.probe(n, 0, turns)
    matrices = compared([network for *_, network in networks], probe)
    kinds: dict[str, list[tuple[int, int]]] = {}  # pairs of networks
    for (i, (start_i, task_i, _)), (j, (start_j, task_j, _)) in itertools.combinations(enumerate(networks), 2):
        kind = f"{'same' if start_i == start_j else 'other'} start, {'same' if task_i == task_j else 'other'} task"
        kinds.setdefault(kind, []).append((j, i))
    across = [pair for kind, pairs in kinds.items() if kind.startswith("other") for pair in pairs]
    of_one_start = [network for seed, _, network in networks if seed == 0]
    return Starts(
        networks=len(networks),
        starts=seeds,
        tasks=count,
        budget=budget,
        accuracies=accuracies,
        probe=n,
        pairs={
            kind: Compared(
                **{name: spread([float(matrix[pair]) for pair in pairs]) for name, matrix in matrices.items()}
            )
            for kind, pairs in kinds.items()
        },
        across=Across(
            pairs=len(across),
            order=Order(
                **{name: _spearman(matrices["cka"], matrices[name], across) for name in ("stored", "joint", "filters")}
            ),
        ),
        refused=refused(banks[0], banks[1]),
        gauge=_gauges(of_one_start, probe[: n // 4].double(), draws),
        permuted=_permutations(of_one_start, probe[: n // 4].double(), draws),
    )


def _gauges(networks: Sequence[nn.Module], probe: Tensor, draws: int) -> Gauge:
    """All networks in other gauges that they share, and one network in a gauge of its own."""
    before = [copy.deepcopy(network).double() for network in networks]
    cosine, by_filter, cka = of_atoms(before), of_atoms(before, "filter"), compared(before, probe)["cka"]
    rows = []
    for seed in range(draws):
        after = [regauged(network, seed) for network in before]
        now = of_atoms(after)
        pair = [before[0], after[0]]
        alone = compared(pair, probe)
        rows.append({
            "outputs": max(outputs_apart(a, b, probe) for a, b in zip(before, after, strict=True)),
            "cosine": float(below_diagonal(now - cosine).abs().mean()),
            "level": float(below_diagonal(now).mean()),
            "filter": float(below_diagonal(of_atoms(after, "filter") - by_filter).abs().max()),
            "order": _spearman(cka, now),
            "alone": float(alone["stored"][0, 1]),
            "alone_joint": float(alone["joint"][0, 1]),
            "alone_cka": float(alone["cka"][0, 1]),
            "alone_refused": float(refused(own_bank(pair[0]), own_bank(pair[1]))),
        })  # fmt: skip
    return Gauge(
        **{key: spread([row[key] for row in rows]) for key in rows[0]},
        networks=len(networks),
        draws=draws,
        level_before=float(below_diagonal(cosine).mean()),
        cka=float(below_diagonal(cka).mean()),
        order_before=_spearman(cka, cosine),
    )


def _permutations(networks: Sequence[nn.Module], probe: Tensor, draws: int) -> Permuted:
    """Networks against themselves with permuted channels."""
    rows = []
    for seed in range(draws):
        network = copy.deepcopy(networks[seed % len(networks)]).double()
        other = permuted(network, seed)
        row = {name: float(matrix[0, 1]) for name, matrix in compared([network, other], probe).items()}
        row["outputs"] = outputs_apart(network, other, probe)
        row["refused"] = float(refused(own_bank(network), own_bank(other)))
        rows.append(row)
    return Permuted(**{key: spread([row[key] for row in rows]) for key in rows[0]}, draws=draws)


def moved_coefficients(regime: str, seed: int, context: Context) -> MovedCoefficients:
    """Tasks learned with coefficients that learn along, ever faster: what is left of the agreement with CKA."""
    source, budget = Images("fmnist", context.data), QUICK if context.quick else FULL
    count, n = (4, 250) if context.quick else (8, 1000)
    turns = [0.0, *np.random.default_rng(10 + seed).uniform(0, 360, count - 1).round().tolist()]
    first, _, _ = start("plain", source.rotated(turns[0], budget, seed), budget, seed)
    probe = source.probe(n, seed, turns)
    levels = []
    for rate, times in QUICK_LEVELS if context.quick else LEVELS:
        longer = replace(budget, epochs=budget.epochs * times)
        model, networks, accuracies = copy.deepcopy(first), [copy.deepcopy(first).eval()], []
        for layer in atom_layers(model).values():
            layer.coefficients.requires_grad_(rate > 0)
            if rate > 0:  # of plain SGD a scaled gradient is a scaled rate
                layer.coefficients.register_hook(partial(torch.mul, rate))
        for task in range(1, count):
            if regime == "first":
                model.load_state_dict(first.state_dict())
            rotated = source.rotated(turns[task], budget, seed + task)
            accuracies.append(_learn_with_coefficients(model, rotated, longer, seed + task))
            networks.append(_plain_copy(model, first))
        levels.append(_level(networks, probe, rate, times, float(np.mean(accuracies))))
    return MovedCoefficients(regime=regime, seed=seed, networks=count, probe=n, budget=budget, levels=levels)


def _learn_with_coefficients(model: nn.Module, task: Task, budget: Budget, seed: int) -> float:
    """As :func:`benchmarks.similarity.lab.learn`, without a bank, which would refuse coefficients that moved."""
    torch.manual_seed(seed)
    head_of(model).reset_parameters()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return fit(model, task, trained, budget.epochs, budget.rate, budget, seed)


def _level(networks: Sequence[nn.Module], probe: Tensor, rate: float, times: int, accuracy: float) -> Level:
    history = FilterHistory()
    for network in networks:
        history.add(network)
    matrices = compared(networks, probe)
    matrices["first"] = history.similarity("cosine", "depth").double()
    cka, cca = matrices["cka"], matrices["cca"]
    shares = [share for layers in history.explained[1:] for share in layers.values()]
    return Level(
        rate=rate,
        times=times,
        accuracy=accuracy,
        explained=float(np.mean(shares)),
        least_explained=float(np.min(shares)),
        joint_explained=joint_decompose([weights_of(network) for network in networks]).share,
        cka=float(below_diagonal(cka).mean()),
        cca=float(below_diagonal(cca).mean()),
        ours={
            name: CosineAgainstCka(
                level=float(below_diagonal(matrices[name]).mean()),
                difference=float(below_diagonal(matrices[name] - cka).abs().mean()),
                rho=_spearman(cka, matrices[name]),
                rho_cca=_spearman(cca, matrices[name]),
            )
            for name in ("first", "joint", "filters")
        },
    )


def _plain_copy(model: nn.Module, like: nn.Module) -> nn.Module:
    """A copy without the hooks on its coefficients."""
    network = copy.deepcopy(like)
    network.load_state_dict(model.state_dict())
    return network.eval()


def _spearman(matrix: Tensor, other: Tensor, pairs: Sequence[tuple[int, int]] | None = None) -> float:
    if pairs is None:
        return mantel(matrix, other, pairs="lower", n_resamples=1).statistic
    from scipy.stats import spearmanr

    places = tuple(torch.tensor(pairs).mT)
    return float(spearmanr(matrix[places], other[places]).statistic)
