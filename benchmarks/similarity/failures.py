"""Where comparing atoms misleads, what warns of it: other starts, other gauges, permuted channels, moved filters."""

import copy
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.similarity.contents import Context, Unit
from benchmarks.similarity.failures_networks import (
    compared,
    of_atoms,
    outputs_apart,
    own_bank,
    permuted,
    refused,
    regauged,
    weights_of,
)
from benchmarks.similarity.lab import Budget, Images, bank_of, learn, start
from fscl.atoms import atom_layers
from fscl.compare import joint_decompose
from fscl.compare.filter_history import FilterHistory
from fscl.similarity import mantel

__all__ = ["REGIMES", "moved_coefficients", "spread", "starts", "units"]

REGIMES = {"first": "each from the first", "sequence": "one after another"}
FULL, QUICK = Budget(), Budget(images=1500, epochs=1, first_epochs=3)
# the rate of coefficients as a share of the atoms', and how many times as long training lasts
LEVELS = ((0.0, 1), (0.1, 1), (0.3, 1), (1.0, 1), (1.0, 3), (3.0, 3))
QUICK_LEVELS = ((0.0, 1), (1.0, 1))


def units(quick: bool) -> list[Unit]:
    runs = itertools.product(REGIMES, (0,) if quick else (0, 1))
    return [
        Unit("failures-starts", starts),
        *(Unit(f"failures-{regime}-{seed}", partial(moved_coefficients, regime, seed)) for regime, seed in runs),
    ]


def starts(context: Context) -> dict[str, Any]:
    """The same tasks from several random starts; then one start's networks written otherwise, with the same outputs."""
    source, budget = Images("fmnist", context.data), QUICK if context.quick else FULL
    seeds, tasks, draws, n = (2, 4, 3, 250) if context.quick else (3, 6, 20, 1000)
    turns = [0.0, *np.random.default_rng(0).uniform(0, 360, tasks - 1).round().tolist()]
    networks: list[tuple[int, int, nn.Module]] = []  # its start, its task, itself
    accuracies, banks = [], []
    for seed in range(seeds):
        model, reached = start("plain", source.rotated(turns[0], budget, 0), budget, seed)
        first, of_start = copy.deepcopy(model.state_dict()), [copy.deepcopy(model).eval()]
        accuracies.append(reached)
        for task in range(1, tasks):
            model.load_state_dict(first)
            accuracies.append(learn(model, source.rotated(turns[task], budget, task), budget, task))
            of_start.append(copy.deepcopy(model).eval())
        networks += [(seed, task, network) for task, network in enumerate(of_start)]
        banks.append(bank_of(model, [(str(t), network.state_dict()) for t, network in enumerate(of_start)]))
    probe = source.probe(n, 0, turns)
    found = compared([network for *_, network in networks], probe)
    kinds: dict[str, list[tuple[int, int]]] = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(networks), 2):
        alike = "same start" if a[0] == b[0] else "other start"
        kinds.setdefault(f"{alike}, {'same' if a[1] == b[1] else 'other'} task", []).append((j, i))
    across = [pair for kind, pairs in kinds.items() if kind.startswith("other") for pair in pairs]
    order = {name: _spearman(found["cka"], found[name], across) for name in ("stored", "joint", "filters")}
    own = [network for seed, _, network in networks if seed == 0]
    return {
        "networks": len(networks),
        "starts": seeds,
        "tasks": tasks,
        "budget": budget.to_json(),
        "accuracies": accuracies,
        "probe": n,
        "pairs": {
            kind: {name: spread([float(matrix[pair]) for pair in pairs]) for name, matrix in found.items()}
            for kind, pairs in kinds.items()
        },
        "across": {"pairs": len(across), "order": order},
        "refused": refused(banks[0], banks[1]),
        "gauge": _gauges(own, probe[: n // 4].double(), draws),
        "permuted": _permutations(own, probe[: n // 4].double(), draws),
    }


def _gauges(networks: Sequence[nn.Module], probe: Tensor, draws: int) -> dict[str, Any]:
    """All networks in other gauges that they share, and one network in a gauge of its own."""
    before = [copy.deepcopy(network).double() for network in networks]
    was = of_atoms(before), of_atoms(before, "filter"), compared(before, probe)["cka"]
    rows = []
    for seed in range(draws):
        after = [regauged(network, seed) for network in before]
        now = of_atoms(after), of_atoms(after, "filter")
        pair = [before[0], after[0]]
        alone = compared(pair, probe)
        rows.append({
            "outputs": max(outputs_apart(a, b, probe) for a, b in zip(before, after, strict=True)),
            "cosine": float(_low(now[0] - was[0]).abs().mean()),
            "level": float(_low(now[0]).mean()),
            "filter": float(_low(now[1] - was[1]).abs().max()),
            "order": _spearman(was[2], now[0]),
            "alone": float(alone["stored"][0, 1]),
            "alone_joint": float(alone["joint"][0, 1]),
            "alone_cka": float(alone["cka"][0, 1]),
            "alone_refused": float(refused(own_bank(pair[0]), own_bank(pair[1]))),
        })  # fmt: skip
    found: dict[str, Any] = {key: spread([row[key] for row in rows]) for key in rows[0]}
    return found | {
        "networks": len(networks),
        "draws": draws,
        "level_before": float(_low(was[0]).mean()),
        "cka": float(_low(was[2]).mean()),
        "order_before": _spearman(was[2], was[0]),
    }


def _permutations(networks: Sequence[nn.Module], probe: Tensor, draws: int) -> dict[str, Any]:
    """Networks against themselves with permuted channels."""
    rows = []
    for seed in range(draws):
        network = copy.deepcopy(networks[seed % len(networks)]).double()
        other = permuted(network, seed)
        found = {name: float(matrix[0, 1]) for name, matrix in compared([network, other], probe).items()}
        found["outputs"] = outputs_apart(network, other, probe)
        found["refused"] = float(refused(own_bank(network), own_bank(other)))
        rows.append(found)
    return {key: spread([row[key] for row in rows]) for key in rows[0]} | {"draws": draws}


def moved_coefficients(regime: str, seed: int, context: Context) -> dict[str, Any]:
    """Tasks learned with coefficients that learn along, ever faster: what is left of the agreement with CKA."""
    source, budget = Images("fmnist", context.data), QUICK if context.quick else FULL
    count, n = (4, 250) if context.quick else (8, 1000)
    turns = [0.0, *np.random.default_rng(10 + seed).uniform(0, 360, count - 1).round().tolist()]
    origin, _ = start("plain", source.rotated(turns[0], budget, seed), budget, seed)
    probe = source.probe(n, seed, turns)
    rows = []
    for scale, times in QUICK_LEVELS if context.quick else LEVELS:
        longer = Budget(**{**budget.to_json(), "epochs": budget.epochs * times})  # type: ignore[arg-type]
        model, networks, accuracies = copy.deepcopy(origin), [copy.deepcopy(origin).eval()], []
        for layer in atom_layers(model).values():
            layer.coefficients.requires_grad_(scale > 0)
            if scale > 0:  # of plain SGD a scaled gradient is a scaled rate
                layer.coefficients.register_hook(partial(torch.mul, scale))
        for task in range(1, count):
            if regime == "first":
                model.load_state_dict(origin.state_dict())
            accuracies.append(learn(model, source.rotated(turns[task], budget, seed + task), longer, seed + task))
            networks.append(_plain_copy(model, origin))
        reached = float(np.mean(accuracies))
        rows.append({"rate": scale, "times": times, "accuracy": reached, **_agreement(networks, probe)})
    return {"regime": regime, "seed": seed, "networks": count, "probe": n, "budget": budget.to_json(), "levels": rows}


def _agreement(networks: Sequence[nn.Module], probe: Tensor) -> dict[str, Any]:
    history = FilterHistory()
    for network in networks:
        history.add(network)
    found = compared(networks, probe)
    found["first"] = history.similarity("cosine", "depth").double()
    shares = [share for layers in history.explained[1:] for share in layers.values()]
    return {
        "explained": float(np.mean(shares)),
        "least_explained": float(np.min(shares)),
        "joint_explained": joint_decompose([weights_of(network) for network in networks]).share,
        "cka": float(_low(found["cka"]).mean()),
        "cca": float(_low(found["cca"]).mean()),
        "ours": {
            name: {
                "level": float(_low(found[name]).mean()),
                "difference": float(_low(found[name] - found["cka"]).abs().mean()),
                "rho": _spearman(found["cka"], found[name]),
                "rho_cca": _spearman(found["cca"], found[name]),
            }
            for name in ("first", "joint", "filters")
        },
    }


def _plain_copy(model: nn.Module, like: nn.Module) -> nn.Module:
    """A copy without the hooks on its coefficients."""
    network = copy.deepcopy(like)
    network.load_state_dict(model.state_dict())
    return network.eval()


def _low(matrix: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(len(matrix), len(matrix), -1)
    return matrix[rows, columns]


def _spearman(one: Tensor, other: Tensor, pairs: Sequence[tuple[int, int]] | None = None) -> float:
    if pairs is None:
        return mantel(one, other, pairs="lower", n_resamples=1).statistic
    from scipy.stats import spearmanr

    chosen = tuple(torch.tensor(pairs).mT)
    return float(spearmanr(one[chosen], other[chosen]).statistic)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, least and largest, and of how many: pairs share networks, so their mean has no interval."""
    known = [value for value in values if math.isfinite(value)]
    mean, low, high = (f(known) if known else math.nan for f in (np.mean, min, max))
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": len(values)}
