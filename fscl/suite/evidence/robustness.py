"""How far a similarity moves with what it is measured on: fewer images, others, noise; and ours, which takes none."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fscl.atoms import AtomBank
from fscl.atoms.response import response_similarity, tangent_similarity
from fscl.plots.figures import INK, MARKERS, palette, quiet_grid, style
from fscl.similarity import collect_features, dead_leaves, mantel, noise_images, probing_matrix, recall_images
from fscl.suite.evidence.contents import Block, Context, Part, Picture, Table, Unit
from fscl.suite.evidence.lab import CLASSES, SIDE, Budget, Images, Task, bank_of, learn, start

__all__ = ["MEASURES", "compared", "part", "probed", "robustness", "units"]

MEASURES = {
    "linear_cka": "linear CKA",
    "minibatch_cka": "unbiased CKA",
    "mean_cca": "mean CCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes": "Procrustes",
}
OURS = {
    "cosine": ("cosine of atoms, over depth", "nothing"),
    "tangent": ("tangent on recalled images", "seed of the images"),
    "response": ("response to recalled images", "seed of the images"),
}
IMAGES = {"fmnist": "Fashion-MNIST, rotated", "cifar100": "CIFAR-100, class sets"}
BUDGETS = {"fmnist": Budget(), "cifar100": Budget(images=5000, epochs=6, first_epochs=12)}
QUICK = Budget(images=2000, epochs=1, first_epochs=3)
SAMPLES, QUICK_SAMPLES = 4000, 2000  # places times images of a probe; the largest ones have more
Probe = tuple[str, list[Tensor], bool]  # what it is called, its images in each draw, whether their maps are pooled


def units(quick: bool) -> list[Unit]:
    sources = ("fmnist",) if quick else tuple(IMAGES)
    return [Unit(f"robustness-{images}", partial(robustness, images)) for images in sources]


def robustness(images: str, context: Context, seed: int = 0) -> dict[str, Any]:
    """Trains networks, each from that of the first task, and measures all pairs of them on every probe."""
    source, budget = Images(images, context.data), QUICK if context.quick else BUDGETS[images]
    count, largest, draws = (8, 500, 2) if context.quick else (12, 10_000, 3)
    samples = QUICK_SAMPLES if context.quick else SAMPLES
    rng = np.random.default_rng(seed)
    turns = [0.0, *rng.uniform(0, 360, count - 1).round().tolist()]
    classes = [rng.permutation(len(source.train.classes))[:CLASSES].tolist() for _ in range(count)]

    def task(number: int) -> Task:
        if images == "fmnist":
            return source.rotated(turns[number], budget, seed + number)
        return source.of_classes(classes[number], budget, seed + number)

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
    networks = []
    for task in bank.tasks:
        networks.append(copy.deepcopy(model))
        bank.restore(networks[-1], task)
    matrices: dict[str, list[Tensor]] = {"cosine": [bank.similarity("cosine", "depth").double()] * 2}
    for seed in range(1 + draws):
        images = recall_images(networks, dead_leaves(stimuli, (channels, SIDE, SIDE), seed), steps)
        matrices.setdefault("tangent", []).append(tangent_similarity(bank, model, images, positions=16))
        matrices.setdefault("response", []).append(response_similarity(bank, model, images, positions=16))
    found = {}
    for name, (first, *rest) in matrices.items():
        moved = [compared(matrix, first) for matrix in rest]
        found[name] = {key: [draw[key] for draw in moved] for key in moved[0]} | {
            "agrees": {m: compared(first, reference[m])["rho"] for m in ("linear_cka", "mean_cca")}
        }
    return found


def part(results: dict[str, dict[str, Any]]) -> Part:
    """The page's section, from the results of the units."""
    found = list(results.values())
    blocks: list[Block] = [
        "CKA and CCA are functions of networks **and of a probe**. Here the networks stay as they are and the probe "
        "changes. Comparisons of atoms take no probe: **there is nothing to choose, so that their shift is zero by "
        "construction**. That makes them repeatable, not right; how right they are is in the second table.",
        _probe_table(found),
        Picture(
            "robustness-probes", _figure(found), "The same networks on other probes",
            "Above: mean similarity of all pairs. Below: Spearman correlation of the pairs with the same measure "
            "on the reference probe, the leftmost. Bars span the draws of a probe. Dashed, the cosine of atoms over "
            "depth: above its mean, below its correlation with the reference of linear CKA.", wide=True,
        ),
        _our_table(found),
    ]  # fmt: skip
    return Part("Robustness to the probe", _lead(found), blocks)


def _lead(found: Sequence[Mapping[str, Any]]) -> str:
    sentences = []
    for r in found:
        reference, *rest = r["probes"]
        text = f"{IMAGES[r['images']]}: the mean similarity of the same {r['networks']} networks is"
        for measure, joint in (("linear_cka", ""), ("mean_cca", " and")):
            levels = [_mean(row["measures"][measure]["level"]) for row in rest]
            known = [level for level in levels if math.isfinite(level)]
            if known:
                at = _mean(reference["measures"][measure]["level"])
                text += f"{joint} by {MEASURES[measure]} {at:.2f} on {reference['n']:,} images of their tasks, "
                text += f"{min(known):.2f} to {max(known):.2f} on other probes"
        ours = r["ours"]["cosine"]["agrees"]["linear_cka"]
        orders = [(row["name"], _mean(row["measures"]["linear_cka"]["rho"])) for row in rest]
        less = [f"{name} ({rho:.2f})" for name, rho in orders if rho < ours]
        text += (
            f"; the cosine of atoms cannot move, and orders pairs as the reference CKA does at {ours:.2f} (Spearman)"
        )
        text += f"; CKA itself keeps less of that order on {_listed(less) or 'none of the other probes'}"
        sentences.append(text)
    return ". ".join(sentences) + "."


def _probe_table(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for r in found:
        for row in r["probes"]:
            cells = [IMAGES[r["images"]], row["name"] + (" (reference)" if row is r["probes"][0] else "")]
            for values in row["measures"].values():
                cells += [" / ".join(f"{_mean(values[key]):.2f}" for key in ("level", "shift", "rho"))]
            rows.append(cells)
    about = "; ".join(
        f"{IMAGES[r['images']]}: {r['networks']} networks, {r['networks'] * (r['networks'] - 1) // 2} pairs, "
        f"{r['budget']['images']:,} images and {r['budget']['epochs']} epochs a task, accuracy "
        f"{100 * _mean(r['accuracies']):.0f} % on average"
        for r in found
    )
    few, many = found[0]["places"]
    caption = (
        "Mean similarity / mean absolute shift of the entries / Spearman correlation with the reference, mean over "
        f"{found[0]['draws']} draws (one of the training images, by which the reference can be judged). Networks: each "
        f"learned from that of the first task over shared coefficients, seed 0 ({about}). Features of convolutions "
        f"before normalisation, positions as samples, mean over layers; {few} places in an image of the largest "
        f"probes, {many} in one of the smallest; pooled: an image is one sample. Fewer images are drawn from the same "
        "test images as the reference; noise and the other data set have mean 0 and variance 1."
    )
    return Table(caption, ["networks", "probe", *(MEASURES[m] for m in found[0]["probes"][0]["measures"])], rows)


def _our_table(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for r in found:
        for name, values in r["ours"].items():
            title, choice = OURS[name]
            moved = [f"{_mean(values['level']):.2f}"]
            if choice == "nothing":
                moved += ["0, by construction", "1, by construction"]
            else:
                moved += [f"{_mean(values['shift']):.4f}", f"{_mean(values['rho']):.3f}"]
            agrees = [f"{values['agrees'][m]:.2f}" for m in ("linear_cka", "mean_cca")]
            rows.append([IMAGES[r["images"]], title, choice, *moved, *agrees])
    made = found[0]["stimuli"]
    caption = (
        f"What takes no data. Shift and order: {found[0]['draws']} further seeds of the synthetic images "
        f"({made['images']} images, {made['steps']} steps) against the first. The last columns: Spearman correlation "
        "with the reference of linear CKA and of mean CCA over the same pairs, to be held against what other probes "
        "leave of these measures themselves."
    )
    header = ["networks", "comparison", "what is chosen", "mean similarity", "mean absolute shift"]
    return Table(caption, [*header, "Spearman with first seed", "with linear CKA", "with mean CCA"], rows)


def _figure(found: Sequence[Mapping[str, Any]]) -> Figure:
    names = list(found[0]["probes"][0]["measures"])
    colours = palette(names)
    with style():
        figure = Figure(figsize=(0.9 + 4.4 * len(found), 5.2), layout="constrained")
        grid = figure.subplots(2, len(found), squeeze=False, sharex="col", sharey="row")
        for column, r in enumerate(found):
            labels = [row["name"] for row in r["probes"]]
            ordered = sum(label.endswith("images") for label in labels)  # those with images of the tasks: a line
            for axes, key in zip(grid[:, column], ("level", "rho"), strict=True):
                for place, name in enumerate(names):
                    values = [[v for v in row["measures"][name][key] if v == v] for row in r["probes"]]
                    x = np.arange(len(values)) + 0.09 * (place - (len(names) - 1) / 2)
                    means = np.array([fmean(v) if v else np.nan for v in values])
                    axes.vlines(x, [min(v, default=np.nan) for v in values], [max(v, default=np.nan) for v in values],
                                color=colours[name], linewidth=1.2, alpha=0.7)  # fmt: skip
                    axes.plot(x[:ordered], means[:ordered], color=colours[name], linewidth=0.9, alpha=0.6)
                    axes.plot(x, means, MARKERS[place], color=colours[name], markersize=4.2, markeredgewidth=0,
                              label=MEASURES[name])  # fmt: skip
                ours = r["ours"]["cosine"]
                level = _mean(ours["level"]) if key == "level" else ours["agrees"]["linear_cka"]
                axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="cosine of atoms")
                axes.axvline(ordered - 0.5, color=(0.5, 0.5, 0.5, 0.5), linewidth=0.6)
                quiet_grid(axes)
            grid[0, column].set_title(IMAGES[r["images"]])
            grid[1, column].set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        grid[0, 0].set_ylabel("mean similarity")
        grid[1, 0].set_ylabel("Spearman with reference")
        handles, titles = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside upper center", ncols=4)
    return figure


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if len(values) else float("nan")
