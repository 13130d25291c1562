"""What the page shows of the agreement with CKA and CCA."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fscl.plots.figures import palette, quiet_grid, style
from fscl.suite.evidence.agreement import METHODS, YARDSTICKS
from fscl.suite.evidence.contents import Block, Part, Picture, Table
from fscl.suite.evidence.populations import REGIMES

__all__ = ["agreement_part"]

GOALS = {"sequence": 0.97, "first": 0.90, "snapshots": 0.97}
SHORT = {"sequence": "one after another", "first": "each from the first", "snapshots": "snapshots"}
IMAGES = {"fmnist": "Fashion-MNIST, rotated", "cifar100": "CIFAR-100, class sets"}
SHAPES = {"plain": "plain", "vgg": "VGG-like", "resnet": "ResNet"}
# what a table of populations shows: of the atoms alone, of the tangent, of passes of images that need no data
SHOWN = ("cosine_depth", "tangent_recalled", "recalled")
Results = Sequence[Mapping[str, Any]]


def agreement_part(results: Results) -> Part:
    """The section, from the results of its units."""
    networks = sorted({r["networks"] for r in results})
    pairs = ", ".join(f"{n} networks, {n * (n - 1) // 2} pairs" for n in networks)
    blocks: list[Block] = [
        f"A population is {pairs}: tasks over shared coefficients, which are learned on the first task and frozen. The "
        "yardsticks compare features of convolutions before normalisation, positions as samples, on "
        f"{results[0]['probe']:,} test images of all tasks alike, layer by layer; their mean over layers is a "
        "network's. Methods are correlated with them over all pairs; 95 % intervals are over networks, not over pairs, "
        "which share networks. "
        + "; ".join(f"**{SHORT[key]}**: {text}" for key, text in REGIMES.items() if any(_of(results, key)))
        + ".",
    ]
    alike = (("linear_cka", "recalled_cka"), ("mean_cca", "recalled_cca"))
    blocks += [_by_population(results, yardstick, like) for yardstick, like in alike]
    blocks += [_goals(results), Picture(
        "agreement-ladder", _ladder(results), "What each method needs, and how far it agrees",
        "A dot is a population: its Pearson correlation with linear CKA (circles) and with mean CCA (squares). The "
        "line is the goal of that regime. Methods are ordered by what they need; data is needed by the last two alone.",
        wide=True,
    )]  # fmt: skip
    for images in dict.fromkeys(r["images"] for r in results):
        chosen = [r for r in results if r["images"] == images]
        blocks.append(Picture(
            f"agreement-pairs-{images}", _pairs(chosen), f"Pair by pair: {IMAGES[images]}",
            "A dot is a pair of networks: their similarity without data (across) and their linear CKA on real images "
            "(up).", wide=True,
        ))  # fmt: skip
    blocks += [_all_methods(results), _layers(results), _costs(results)]
    blocks.append(
        "The two kinds of yardstick do not agree with each other either: linear CKA and mean CCA correlate at "
        + ", ".join(
            f"{_range([r['yardsticks_agree']['pearson']['r'] for r in _of(results, key)])} ({SHORT[key]})"
            for key in REGIMES
            if any(_of(results, key))
        )
        + ". CKA weighs directions by their variance, CCA does not; no single number can agree perfectly with both."
    )
    return Part("Agreement", _lead(results), blocks)


def _lead(results: Results) -> str:
    sentences = []
    for key in REGIMES:
        chosen = _of(results, key)
        if chosen:
            atoms, best = (
                " and ".join(f"{median(_rs(chosen, m, y)):.2f} with {'CKA' if 'cka' in y else 'CCA'}" for m, y in pick)
                for pick in (
                    (("cosine_depth", "linear_cka"), ("cosine_depth", "mean_cca")),
                    (("recalled", "linear_cka"), ("recalled", "mean_cca")),
                )
            )
            sentences.append(
                f"{REGIMES[key]}: the atoms alone correlate at {atoms}, responses to recalled images {best}"
            )
    return f"Medians over {len(results)} populations. {'; '.join(s[0].upper() + s[1:] for s in sentences)}."


def _by_population(results: Results, yardstick: str, like: str) -> Table:
    methods = (*SHOWN, like)
    rows = []
    for key in REGIMES:
        for r in _of(results, key):
            cells = [_named(r), f"{100 * np.mean(r['accuracies']):.1f}"]
            for method in methods:
                value = r["agreement"][method][yardstick]["pearson"]
                cells.append(f"{value['r']:.3f} [{value['low']:.2f}, {value['high']:.2f}]")
            rows.append(cells)
    caption = f"Pearson correlation with {YARDSTICKS[yardstick]}, mean over layers [95 % interval over networks]."
    header = ["population", "accuracy (%)", *(METHODS[method][0] for method in methods)]
    return Table(caption, header, rows)


def _goals(results: Results) -> str:
    lines = []
    for key, goal in GOALS.items():
        chosen = _of(results, key)
        if not chosen:
            continue
        reached = {
            "the atoms over depth": ("cosine_depth", "cosine_depth"),
            "the tangent": ("tangent_recalled", "tangent_recalled"),
            "the response": ("recalled", "recalled"),
            "CKA and CCA on recalled images": ("recalled_cka", "recalled_cca"),
        }
        counts = []
        for name, (for_cka, for_cca) in reached.items():
            both = [
                min(cka, cca)
                for cka, cca in zip(_rs(chosen, for_cka, "linear_cka"), _rs(chosen, for_cca, "mean_cca"), strict=True)
            ]
            counts.append(f"{name} in {sum(b >= goal for b in both)} of {len(both)}")
        lines.append(
            f"**{SHORT[key]}**, goal {goal:.2f} with both CKA and CCA, reached by {', '.join(counts)} populations"
        )
    return "Goals: " + "; ".join(lines) + "."


def _all_methods(results: Results) -> Table:
    regimes = [key for key in REGIMES if any(_of(results, key))]
    rows = []
    for method, (title, needs) in METHODS.items():
        cells = [title, needs]
        for key in regimes:
            chosen = _of(results, key)
            cells += [
                " / ".join(f"{median(_rs(chosen, method, y, how)):.2f}" for how in ("pearson", "spearman"))
                for y in YARDSTICKS
            ]
        rows.append(cells)
    header = ["method", "needs", *(f"{SHORT[key]}: {name}" for key in regimes for name in YARDSTICKS.values())]
    caption = (
        "Every method against every yardstick: median over populations of Pearson / Spearman. It is also the ablation: "
        "each row adds or takes away one part."
    )
    return Table(caption, header, rows)


def _layers(results: Results) -> Table:
    rows = []
    for key in REGIMES:
        for r in _of(results, key):
            for method in ("cosine_depth", "recalled"):
                values = r["by_layer"][method]["linear_cka"], r["by_layer"][method]["mean_cca"]
                rows.append([_named(r), METHODS[method][0], *(" ".join(f"{v:.2f}" for v in row) for row in values)])
    header = ["population", "method", "with linear CKA, first layer to last", "with mean CCA"]
    return Table("Layer by layer: Pearson correlation over all pairs.", header, rows)


def _costs(results: Results) -> Table:
    def mean(*names: str) -> float:
        return float(np.mean([sum(r["seconds"][name] for name in names) for r in results]))

    count = float(np.mean([r["networks"] for r in results]))
    rows = [
        ["cosine of atoms, over depth", "none", f"{1e3 * mean('cosine_depth'):.2f} ms"],
        ["tangent on recalled images", f"{mean('recall'):.1f} s", f"{mean('tangent_recalled'):.2f} s"],
        ["response to 1/f noise or dead leaves", "none", f"{mean('noise_passes', 'noise'):.2f} s"],
        ["response to recalled images", f"{mean('recall'):.1f} s", f"{mean('recalled_passes', 'recalled'):.2f} s"],
        ["CKA on 64 real images", "data", f"{mean('real_passes', 'real_cka'):.2f} s"],
    ]
    caption = (
        f"What it costs, on one thread: once for a bank, and for all pairs of {count:.0f} networks "
        "(mean over populations)."
    )
    return Table(caption, ["method", "once", "all pairs"], rows)


def _ladder(results: Results) -> Figure:
    regimes = [key for key in REGIMES if any(_of(results, key))]
    colours = palette(["linear_cka", "mean_cca"])
    names = [title for title, _ in METHODS.values()]
    with style():
        figure = Figure(figsize=(3.4 + 2.2 * len(regimes), 0.25 * len(names) + 0.9), layout="constrained")
        for axes, key in zip(np.atleast_1d(figure.subplots(1, len(regimes), sharey=True)), regimes, strict=True):
            for row, method in enumerate(METHODS):
                for yardstick, marker, shift in (("linear_cka", "o", -0.14), ("mean_cca", "s", 0.14)):
                    values = _rs(_of(results, key), method, yardstick)
                    axes.scatter(
                        values, [row + shift] * len(values), s=15, marker=marker, color=colours[yardstick],
                        alpha=0.75, linewidths=0, label=YARDSTICKS[yardstick] if row == 0 else None, clip_on=True,
                    )  # fmt: skip
            axes.axvline(GOALS[key], color=(0.5, 0.5, 0.5, 0.8), linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_title(SHORT[key])
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            low = min((v for m in METHODS for y in colours for v in _rs(_of(results, key), m, y)), default=0.0)
            axes.set_xlim(max(-1.0, min(0.5, low - 0.05)), 1.01)
            axes.set_xlabel("Pearson correlation")
            axes.grid(axis="y", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2)
    return figure


def _pairs(results: Results) -> Figure:
    regimes = [key for key in REGIMES if any(_of(results, key))]
    colours = palette([SHAPES[r["architecture"]] for r in results])
    with style():
        figure = Figure(figsize=(2.5 * len(regimes) + 0.5, 2.2 * len(SHOWN) + 0.4), layout="constrained")
        grid = figure.subplots(len(SHOWN), len(regimes), squeeze=False)
        for axes_row, method in zip(grid, SHOWN, strict=True):
            for axes, key in zip(axes_row, regimes, strict=True):
                for r in _of(results, key):
                    name = SHAPES[r["architecture"]]
                    axes.scatter(
                        r["methods"][method], r["values"]["linear_cka"], s=5, color=colours[name], alpha=0.5,
                        linewidths=0, label=name, rasterized=True,
                    )  # fmt: skip
                quiet_grid(axes)
                axes.set_xlabel(METHODS[method][0])
                if axes is axes_row[0]:
                    axes.set_ylabel("linear CKA")
                if method == SHOWN[0]:
                    axes.set_title(SHORT[key])
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), markerscale=2.5)
    return figure


def _named(result: Mapping[str, Any]) -> str:
    return f"{SHORT[result['regime']]}; {IMAGES[result['images']]}; {SHAPES[result['architecture']]}"


def _of(results: Results, regime: str) -> list[Mapping[str, Any]]:
    return [r for r in results if r["regime"] == regime]


def _rs(results: Results, method: str, yardstick: str, how: str = "pearson") -> list[float]:
    return [r["agreement"][method][yardstick][how]["r"] for r in results]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f}" if len(values) == 1 else f"{min(values):.2f} to {max(values):.2f}"
