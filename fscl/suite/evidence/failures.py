"""Where comparing atoms misleads, what warns of it: other starts, other gauges, permuted channels, moved filters."""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fscl.atoms import AtomBank, AtomConv2d, atom_layers, joint_decompose
from fscl.continual.metrics import FilterHistory
from fscl.errors import FsclError
from fscl.plots.figures import MARKERS, palette, quiet_grid, style
from fscl.similarity import atoms_of_filters, collect_features, gram_matrix, mantel, probing_matrix, similarity_matrix
from fscl.suite.evidence.contents import Block, Context, Part, Picture, Table, Unit
from fscl.suite.evidence.lab import Budget, Images, bank_of, learn, start

__all__ = ["moved_coefficients", "part", "permuted", "regauged", "starts", "units"]

REGIMES = {"first": "each from the first", "sequence": "one after another"}
FULL, QUICK = Budget(), Budget(images=1500, epochs=1, first_epochs=3)
# the rate of coefficients as a share of the atoms', and how many times as long training lasts
LEVELS = ((0.0, 1), (0.1, 1), (0.3, 1), (1.0, 1), (1.0, 3), (3.0, 3))
QUICK_LEVELS = ((0.0, 1), (1.0, 1))
PLACES = 8  # of each image of a probe


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
            kind: {name: _spread([float(matrix[pair]) for pair in pairs]) for name, matrix in found.items()}
            for kind, pairs in kinds.items()
        },
        "across": {"pairs": len(across), "order": order},
        "refused": _refused(banks[0], banks[1]),
        "gauge": _gauges(own, probe[: n // 4].double(), draws),
        "permuted": _permutations(own, probe[: n // 4].double(), draws),
    }


def compared(networks: Sequence[nn.Module], probe: Tensor) -> dict[str, Tensor]:
    """All pairs of networks (N, N): CKA and CCA of their features, cosines over depth, and what warns of these.

    ``stored`` compares atoms as they are, whatever their coefficients; ``joint`` those of a joint decomposition;
    ``filters`` whole filters. ``explained`` is the share of both networks that coefficients made for the two explain,
    ``projected`` that which the coefficients of either explain of the other, mean over layers.
    """
    features = [
        collect_features(network, probe.split(250), list(atom_layers(network)), maps="positions", positions=PLACES,
                         progress=False)
        for network in networks
    ]  # fmt: skip
    found = {
        name: torch.stack([probing_matrix([f[layer] for f in features], how) for layer in features[0]]).mean(0)
        for name, how in (("cka", "linear_cka"), ("cca", "mean_cca"))
    }
    layers = [atom_layers(network) for network in networks]
    stored = {name: torch.stack([own[name].atoms.detach() for own in layers]) for name in layers[0]}
    weights = [_weights(network) for network in networks]
    joint = joint_decompose(weights)
    found["stored"] = similarity_matrix(stored, aggregate="depth")
    found["joint"] = similarity_matrix(joint, aggregate="depth")
    found["filters"] = whole_filters(weights)
    found["related"] = joint.relatedness()
    found["explained"] = torch.ones_like(found["related"])
    found["projected"] = torch.ones_like(found["related"])
    for i, j in itertools.combinations(range(len(networks)), 2):
        pair = joint.refit(names=[joint.names[i], joint.names[j]])
        found["explained"][i, j] = found["explained"][j, i] = pair.share
        both = [torch.stack([weights[i][name], weights[j][name]]) for name in weights[0]]
        shares = [atoms_of_filters(two, own).explained[1 - own] for two in both for own in (0, 1)]
        found["projected"][i, j] = found["projected"][j, i] = torch.stack(shares).mean()
    return {name: matrix.double() for name, matrix in found.items()}


def whole_filters(weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Cosine over depth of filters (out, in, kh, kw), with nothing left out: (N, N)."""
    stacks = {name: torch.stack([own[name].flatten(0, 1) for own in weights]) for name in weights[0]}
    return similarity_matrix(stacks, aggregate="depth")


@torch.no_grad()
def regauged(network: nn.Module, seed: int) -> nn.Module:
    """The same function with coefficients x inverse(M) and M x atoms, for a random invertible M in every layer.

    M turns atoms, stretches them by factors between 1/30 and 30, uniform in the logarithm, and turns them again.
    """
    changed, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for layer in atom_layers(changed).values():
        drawn = torch.randn(2, layer.num_atoms, layer.num_atoms, generator=generator, dtype=torch.float64)
        first, last = torch.linalg.qr(drawn).Q
        stretch = 30 ** (2 * torch.rand(layer.num_atoms, generator=generator, dtype=torch.float64) - 1)
        layer.atoms.copy_((last * stretch @ first @ layer.atoms.double().flatten(1)).view_as(layer.atoms))
        layer.coefficients.copy_(layer.coefficients.double() @ first.mT / stretch @ last.mT)
    return changed.eval()  # filters that are kept from pass to pass are composed anew


@torch.no_grad()
def permuted(network: nn.Module, seed: int) -> nn.Module:
    """The same function with the channels of every convolution in another order; of a chain that ends in one head."""
    changed, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    order: Tensor | None = None
    for module in changed.modules():
        if isinstance(module, nn.Linear) and order is not None:
            columns = module.weight.unflatten(1, (len(order), -1))[:, order]  # channels, each with all its places
            module.weight.copy_(columns.flatten(1))
        if isinstance(module, AtomConv2d):
            if order is not None:
                module.coefficients.copy_(module.coefficients[:, order])
            order = torch.randperm(module.out_channels, generator=generator)
            module.coefficients.copy_(module.coefficients[order])
            if module.bias is not None:
                module.bias.copy_(module.bias[order])
        if isinstance(module, _BatchNorm) and order is not None:
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.copy_(tensor[order])
    return changed.eval()


def _gauges(networks: Sequence[nn.Module], probe: Tensor, draws: int) -> dict[str, Any]:
    """All networks in other gauges that they share, and one network in a gauge of its own."""
    before = [copy.deepcopy(network).double() for network in networks]
    was = _of_atoms(before), _of_atoms(before, "filter"), compared(before, probe)["cka"]
    rows = []
    for seed in range(draws):
        after = [regauged(network, seed) for network in before]
        now = _of_atoms(after), _of_atoms(after, "filter")
        pair = [before[0], after[0]]
        alone = compared(pair, probe)
        rows.append({
            "outputs": max(_apart(a, b, probe) for a, b in zip(before, after, strict=True)),
            "cosine": float(_low(now[0] - was[0]).abs().mean()),
            "level": float(_low(now[0]).mean()),
            "filter": float(_low(now[1] - was[1]).abs().max()),
            "order": _spearman(was[2], now[0]),
            "alone": float(alone["stored"][0, 1]),
            "alone_joint": float(alone["joint"][0, 1]),
            "alone_cka": float(alone["cka"][0, 1]),
            "alone_refused": float(_refused(_bank(pair[0]), _bank(pair[1]))),
        })  # fmt: skip
    found: dict[str, Any] = {key: _spread([row[key] for row in rows]) for key in rows[0]}
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
        apart = {"outputs": _apart(network, other, probe), "refused": float(_refused(_bank(network), _bank(other)))}
        rows.append(found | apart)
    return {key: _spread([row[key] for row in rows]) for key in rows[0]} | {"draws": draws}


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
        "joint_explained": joint_decompose([_weights(network) for network in networks]).share,
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


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight.detach() for name, layer in atom_layers(network).items()}


def _plain_copy(model: nn.Module, like: nn.Module) -> nn.Module:
    """A copy without the hooks on its coefficients."""
    network = copy.deepcopy(like)
    network.load_state_dict(model.state_dict())
    return network.eval()


def _bank(network: nn.Module) -> AtomBank:
    return bank_of(network, [("", network.state_dict())])


def _refused(one: AtomBank, other: AtomBank) -> bool:
    """Whether banks say themselves that their atoms cannot be compared."""
    try:
        one.merge(other)
    except FsclError:
        return True
    return False


def _of_atoms(networks: Sequence[nn.Module], metric: str = "cosine") -> Tensor:
    """Similarity over depth of the atoms as they are, with the first network's Gram matrices."""
    layers = [atom_layers(network) for network in networks]
    stacks = {name: torch.stack([own[name].atoms.detach() for own in layers]) for name in layers[0]}
    grams = {name: gram_matrix(layer.coefficients.detach()) for name, layer in layers[0].items()}
    return similarity_matrix(stacks, metric, "depth", grams=grams).double()


@torch.no_grad()
def _apart(one: nn.Module, other: nn.Module, probe: Tensor) -> float:
    """The largest difference of two networks' outputs, in units of the outputs' deviation."""
    outputs = one(probe)
    return float((outputs - other(probe)).abs().max() / outputs.std())


def _low(matrix: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(len(matrix), len(matrix), -1)
    return matrix[rows, columns]


def _spearman(one: Tensor, other: Tensor, pairs: Sequence[tuple[int, int]] | None = None) -> float:
    if pairs is None:
        return mantel(one, other, pairs="lower", n_resamples=1).statistic
    from scipy.stats import spearmanr

    chosen = tuple(torch.tensor(pairs).mT)
    return float(spearmanr(one[chosen], other[chosen]).statistic)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, least and largest, and of how many."""
    known = [value for value in values if math.isfinite(value)]
    mean, low, high = (f(known) if known else math.nan for f in (np.mean, min, max))
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": len(values)}


def part(results: dict[str, dict[str, Any]]) -> Part:
    """The page's section, from the results of the units."""
    started = results.get("failures-starts")
    runs = [result for name, result in results.items() if name != "failures-starts"]
    lead: list[str] = []
    blocks: list[Block] = [
        "Atoms can be compared where networks share the start and the coefficients. Each case here breaks one of "
        "these; the last column is what tells the user: a bank **refuses** networks of other coefficients by their "
        "fingerprint; `joint_decompose` gives the **relatedness** of networks and the **explained** share of their "
        "filters; metrics of any strategy emit the share that is explained when filters are **projected** on the "
        "first network's coefficients. An explained share counts energy, which a few atoms may hold in any two "
        "networks; relatedness takes off what chance explains."
    ]
    if started:
        lead.append(_lead_of_starts(started))
        blocks.append(_table_of_starts(started))
    for regime, title in REGIMES.items():
        if chosen := [r for r in runs if r["regime"] == regime]:
            still, moved = (_over(chosen, which) for which in (0, -1))
            lead.append(
                f"Coefficients that learn along, tasks {title}: where they are trained most, those of the first "
                f"network explain {_text(moved['explained'])} of the filters, the Spearman correlation with CKA is "
                f"{_text(moved['first']['rho'])} in place of {_text(still['first']['rho'])}, and the mean difference "
                f"from CKA {_text(moved['first']['difference'])} in place of {_text(still['first']['difference'])}"
            )
    if runs:
        caption = (
            "A dot is a population, whose cosines are measured in three ways; lines follow one start from coefficients "
            "that rest to those that are trained most. The share that the first network's coefficients explain falls "
            f"to the right. {_runs(runs)}"
        )
        title = "Agreement with CKA as coefficients move"
        blocks += [Picture("failures-explained", _figure(runs), title, caption, wide=True), _table_of_rates(runs)]
    return Part("Where it misleads", ". ".join(lead) + ".", blocks)


def _lead_of_starts(r: Mapping[str, Any]) -> str:
    same, other = (r["pairs"].get(kind) for kind in ("same start, other task", "other start, same task"))
    gauge, permuted = r["gauge"], r["permuted"]
    text = ""
    if same and other:
        text = (
            "Networks of other random starts that learned the same task have a CKA of "
            f"{_text(other['cka']['mean'])} and a cosine of filters of {_text(other['filters']['mean'])}; their "
            f"relatedness is {_text(other['related']['mean'])}, within a start {_text(same['related']['mean'])}. "
        )
    return text + (
        "Another gauge, outputs the same, moves the plain cosine of a pair by "
        f"{_text(gauge['cosine']['mean'])} on average and its Spearman correlation with CKA from "
        f"{_text(gauge['order_before'])} to as little as {_text(gauge['order']['low'])}; it moves the metric `filter` "
        f"by at most {_text(gauge['filter']['high'], '.0e')}. Permuted channels, outputs the same: CKA "
        f"{_text(permuted['cka']['mean'])}, cosine of filters {_text(permuted['filters']['mean'])}"
    )


def _warnings(values: Mapping[str, Any], refused: bool) -> str:
    names = (("related", "relatedness"), ("explained", "explained"), ("projected", "projected"))
    told = [f"{title} {_text(values[name]['mean'])}" for name, title in names]
    return ", ".join([*told, "a bank refuses" if refused else "a bank takes both"])


def _table_of_starts(r: Mapping[str, Any]) -> Table:
    cosines = ("stored", "joint", "filters", "cka")
    rows = []
    for kind, values in r["pairs"].items():
        refused = r["refused"] and kind.startswith("other start")
        shown = [_ranged(values[name]) for name in cosines]
        rows.append([kind, f"{values['cka']['n']} pairs", "other networks", *shown, _warnings(values, refused)])
    gauge, permuted = r["gauge"], r["permuted"]
    pairs = gauge["networks"] * (gauge["networks"] - 1) // 2
    outputs, moved = (_text(gauge[name]["high"], ".0e") for name in ("outputs", "filter"))
    rows.append([
        "all networks of one start in another gauge, the same for all", f"{gauge['draws']} gauges, {pairs} pairs",
        outputs, f"{_text(gauge['level_before'])} becomes {_ranged(gauge['level'])}", "the same", "the same",
        f"{_text(gauge['cka'])}, the same",
        f"nothing; but the metric `filter` moves by at most {moved}, and `freeze_coefficients` fixes the gauge",
    ])  # fmt: skip
    rows.append([
        "one network against itself in another gauge", f"{gauge['draws']} gauges", outputs, _ranged(gauge["alone"]),
        _ranged(gauge["alone_joint"]), "the same", _ranged(gauge["alone_cka"]),
        "a bank refuses" if gauge["alone_refused"]["low"] == 1 else "a bank takes both",
    ])  # fmt: skip
    rows.append([
        "one network against itself, channels permuted", f"{permuted['draws']} orders",
        _text(permuted["outputs"]["high"], ".0e"), *(_ranged(permuted[name]) for name in cosines),
        _warnings(permuted, permuted["refused"]["low"] == 1),
    ])  # fmt: skip
    order = r["across"]["order"]
    caption = (
        f"Mean [least, largest]; all cosines over depth. {r['networks']} networks: {r['tasks']} rotations of "
        f"Fashion-MNIST from each of {r['starts']} random starts, the first task from scratch, the others from it "
        f"with coefficients frozen ({r['budget']['images']:,} images, {r['budget']['first_epochs']} and "
        f"{r['budget']['epochs']} epochs); accuracy {_text(100 * float(np.mean(r['accuracies'])), '.0f')} % on "
        f"average; CKA on {r['probe']:,} test images. Outputs: the largest difference, in deviations of the outputs, "
        "in float64. "
        "Atoms as stored are compared whatever coefficients they belong to. Over the "
        f"{r['across']['pairs']} pairs of other starts the Spearman correlation with CKA is {_text(order['stored'])} "
        f"for atoms as stored, {_text(order['joint'])} for joint ones, {_text(order['filters'])} for filters; over the "
        f"{pairs} of one start, {_text(gauge['order_before'])} before and {_ranged(gauge['order'])} in other gauges."
    )
    header = ["what was done", "n", "outputs", "atoms as stored", "atoms of a joint decomposition", "whole filters"]
    return Table(caption, [*header, "CKA", "what warns"], rows)


def _table_of_rates(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for regime, title in REGIMES.items():
        chosen = [r for r in runs if r["regime"] == regime]
        for place, level in enumerate(chosen[0]["levels"] if chosen else []):
            values = _over(chosen, place)
            rate = f"{100 * level['rate']:.0f} %" + (f", {level['times']} times as long" if level["times"] > 1 else "")
            cells = [title, rate, _text(100 * values["accuracy"], ".1f")]
            cells += [_text(values[key]) for key in ("explained", "least_explained", "joint_explained", "cka")]
            cells += [_text(values["first"][key]) for key in ("level", "difference")]
            for name, key in (("first", "rho"), ("first", "rho_cca"), ("joint", "rho"), ("filters", "rho")):
                cells.append(_ranged(_spread([r["levels"][place]["ours"][name][key] for r in chosen])))
            rows.append(cells)
    header = [
        "tasks", "rate of the coefficients", "accuracy (%)", "explained", "least of any layer", "explained, joint",
        "CKA", "cosine", "difference from CKA", "Spearman with CKA", "with CCA", "of joint atoms with CKA",
        "of filters with CKA",
    ]  # fmt: skip
    caption = (
        "Coefficients that learn at a share of the atoms' rate. The cosine, over depth, is that of the filters as "
        "projected on the first network's coefficients, as the metrics of any strategy compare them; explained is the "
        "share that this keeps, mean over networks but the first and over layers; the last two columns leave less out. "
        f"Means [least, largest] over starts. {_runs(runs)}"
    )
    return Table(caption, header, rows)


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    r = runs[0]
    return (
        f"{r['networks']} rotations of Fashion-MNIST a population ({r['networks'] * (r['networks'] - 1) // 2} pairs), "
        f"{r['budget']['images']:,} images and {r['budget']['epochs']} epochs a task; seeds of the start "
        f"{', '.join(str(s) for s in sorted({run['seed'] for run in runs}))}; CKA on {r['probe']:,} test images."
    )


def _figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    names = {"first": "on the first network's coefficients", "joint": "joint decomposition", "filters": "whole filters"}
    colours = palette(list(names.values()))
    shown = [regime for regime in REGIMES if any(r["regime"] == regime for r in runs)]
    with style():
        figure = Figure(figsize=(0.8 + 3.3 * len(shown), 5.0), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False, sharex="col", sharey="row")
        for column, regime in enumerate(shown):
            for r in (r for r in runs if r["regime"] == regime):
                x = [level["explained"] for level in r["levels"]]
                for place, (name, title) in enumerate(names.items()):
                    for axes, key in zip(grid[:, column], ("rho", "difference"), strict=True):
                        axes.plot(
                            x, [level["ours"][name][key] for level in r["levels"]], color=colours[title], linewidth=0.9,
                            marker=MARKERS[place], markersize=4, markeredgewidth=0, alpha=0.85, label=title,
                        )  # fmt: skip
            grid[0, column].set_title(REGIMES[regime])
            grid[0, column].invert_xaxis()
            grid[1, column].set_xlabel("explained by the first network's coefficients")
            for axes in grid[:, column]:
                quiet_grid(axes)
        grid[0, 0].set_ylabel("Spearman with CKA")
        grid[1, 0].set_ylabel("mean difference from CKA")
        handles, titles = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles[: len(names)], titles[: len(names)], loc="outside upper center", ncols=len(names))
    return figure


def _over(runs: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    """One level's numbers, mean over starts."""
    levels = [r["levels"][place] for r in runs]
    plain = {key: float(np.mean([level[key] for level in levels])) for key in levels[0] if key != "ours"}
    ours = levels[0]["ours"]
    return plain | {
        name: {key: float(np.mean([level["ours"][name][key] for level in levels])) for key in ours[name]}
        for name in ours
    }


def _text(value: float, form: str = ".2f") -> str:
    return format(value, form) if math.isfinite(value) else "undefined"


def _ranged(values: Mapping[str, float]) -> str:
    mean, low, high = (_text(values[key]) for key in ("mean", "low", "high"))
    return mean if mean == low == high else f"{mean} [{low}, {high}]"
