"""Tables of the agreement with CKA and CCA, and what they are read by."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.similarity.agreement import METHODS, YARDSTICKS
from benchmarks.similarity.contents import Table
from benchmarks.similarity.populations import REGIMES

__all__ = [
    "GOALS", "IMAGES", "LIKE", "SHAPES", "SHORT", "SHOWN", "all_methods", "by_population", "correlations", "costs",
    "layers", "medians", "of_regime", "summary",
]  # fmt: skip

GOALS = {"sequence": 0.97, "first": 0.90, "snapshots": 0.97}
SHORT = {"sequence": "one after another", "first": "each from the first", "snapshots": "snapshots"}
IMAGES = {"fmnist": "Fashion-MNIST, rotated", "cifar100": "CIFAR-100, class sets"}
SHAPES = {"plain": "plain", "vgg": "VGG-like", "resnet": "ResNet"}
# what tables of populations show, by yardstick: the ways without data, and the yardstick itself on recalled images
SHOWN = {
    "atoms": "cosine_depth",
    "moments": "moments",
    "tangent": "tangent_recalled",
    "response": "recalled",
    "readings": "recalled_three",
}
LIKE = {"linear_cka": "recalled_cka", "mean_cca": "recalled_cca"}
Results = Sequence[Mapping[str, Any]]


def summary(results: Results) -> Table:
    places = [(key, yardstick) for key in GOALS if any(of_regime(results, key)) for yardstick in LIKE]
    ways = {METHODS[method][0]: (method, method) for method in SHOWN.values()}
    ways["the yardstick, on recalled images"] = (LIKE["linear_cka"], LIKE["mean_cca"])
    rows = [["goal", *(f"{GOALS[key]:.2f}" for key, _ in places)]]
    for name, (for_cka, for_cca) in ways.items():
        cells = [name]
        for key, yardstick in places:
            method = for_cka if yardstick == "linear_cka" else for_cca
            values = correlations(of_regime(results, key), method, yardstick)
            cells.append(f"{median(values):.3f} [{min(values):.2f}, {max(values):.2f}]")
        rows.append(cells)
    header = ["method", *(f"{SHORT[key]}: {YARDSTICKS[yardstick]}" for key, yardstick in places)]
    caption = (
        "Median Pearson correlation [least, largest] over populations. The last row compares like with like: the "
        "yardstick itself, on recalled images in place of real ones."
    )
    return Table(caption, header, rows)


def by_population(results: Results, yardstick: str) -> Table:
    methods = (*SHOWN.values(), LIKE[yardstick])
    rows = []
    for key in REGIMES:
        for r in of_regime(results, key):
            cells = [
                SHORT[key],
                IMAGES[r["images"]],
                SHAPES[r["architecture"]],
                f"{100 * np.mean(r['accuracies']):.1f}",
            ]
            for method in methods:
                value = r["agreement"][method][yardstick]["pearson"]
                cells.append(f"{value['r']:.3f} [{value['low']:.2f}, {value['high']:.2f}]")
            rows.append(cells)
    caption = (
        f"Pearson correlation with {YARDSTICKS[yardstick]} [95 % interval over networks]; accuracy is the mean of the "
        "networks on their own tasks."
    )
    header = ["tasks", "images", "network", "accuracy (%)", *(METHODS[method][0] for method in methods)]
    return Table(caption, header, rows, f"Every population, against {YARDSTICKS[yardstick]}")


def medians(results: Results) -> Table:
    regimes = [key for key in REGIMES if any(of_regime(results, key))]
    rows = [
        [
            title,
            needs,
            *(f"{median(correlations(of_regime(results, key), method, y)):.2f}" for key in regimes for y in LIKE),
        ]
        for method, (title, needs) in METHODS.items()
    ]
    header = ["method", "needs", *(f"{SHORT[key]}: {name}" for key in regimes for name in ("CKA", "CCA"))]
    caption = (
        "Every method: median Pearson correlation with linear CKA and mean CCA. It is also the ablation: rows differ "
        "by a part. The tangent is exact to first order about one network, the less so the farther a task moved "
        "from it."
    )
    return Table(caption, header, rows)


def all_methods(results: Results, key: str) -> Table:
    chosen = of_regime(results, key)
    rows = []
    for method, (title, needs) in METHODS.items():
        cells = [
            " / ".join(f"{median(correlations(chosen, method, y, how)):.2f}" for how in ("pearson", "spearman"))
            for y in YARDSTICKS
        ]
        rows.append([title, needs, *cells])
    caption = f"{REGIMES[key].capitalize()}: median over {len(chosen)} populations of Pearson / Spearman correlation."
    return Table(caption, ["method", "needs", *YARDSTICKS.values()], rows, f"Every yardstick: {SHORT[key]}")


def layers(results: Results) -> Table:
    rows = []
    for key in REGIMES:
        for r in of_regime(results, key):
            for method in ("cosine_depth", "moments", "recalled"):
                values = r["by_layer"][method]["linear_cka"], r["by_layer"][method]["mean_cca"]
                rows.append([
                    SHORT[key], IMAGES[r["images"]], SHAPES[r["architecture"]], METHODS[method][0],
                    *(" ".join(f"{v:.2f}" for v in row) for row in values),
                ])  # fmt: skip
    header = ["tasks", "images", "network", "method", "with linear CKA, first layer to last", "with mean CCA"]
    return Table("Pearson correlation over all pairs, by layer.", header, rows, "Layer by layer")


def costs(results: Results) -> Table:
    def mean(*names: str) -> float:
        return float(np.mean([sum(r["seconds"][name] for name in names) for r in results]))

    count = float(np.mean([r["networks"] for r in results]))
    rows = [
        ["cosine of atoms, over depth", "nothing", f"{1e3 * mean('cosine_depth'):.1f} ms"],
        ["moments through the layers", "nothing", f"{1e3 * mean('moments'):.0f} ms"],
        ["tangent on recalled images", f"{mean('recall'):.0f} s", f"{mean('tangent_recalled'):.2f} s"],
        ["response to 1/f noise or dead leaves", "nothing", f"{mean('noise_passes', 'noise'):.2f} s"],
        ["response to recalled images", f"{mean('recall'):.0f} s", f"{mean('recalled_passes', 'recalled'):.2f} s"],
        [
            "three readings of recalled images",
            f"{mean('recall'):.0f} s",
            f"{mean('recalled_passes', 'recalled', 'recalled_cka', 'recalled_cca'):.2f} s",
        ],
        ["CKA on 64 real images", "data", f"{mean('real_passes', 'real_cka'):.2f} s"],
    ]
    caption = (
        f"What the rungs cost on one thread: once for a bank, and for all pairs of {count:.0f} networks (mean over "
        "populations). The tangent takes as many derivatives as there are tasks or atom values, whichever are "
        "fewer: it pays where tasks are many."
    )
    return Table(caption, ["method", "once", "all pairs"], rows)


def of_regime(results: Results, regime: str) -> list[Mapping[str, Any]]:
    return [r for r in results if r["regime"] == regime]


def correlations(results: Results, method: str, yardstick: str, how: str = "pearson") -> list[float]:
    return [r["agreement"][method][yardstick][how]["r"] for r in results]
