"""Figures of the agreement with CKA and CCA."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.similarity.agreement import METHODS, YARDSTICKS
from benchmarks.similarity.agreement_tables import GOALS, SHAPES, SHORT, SHOWN, correlations, of_regime
from benchmarks.similarity.populations import REGIMES
from fscl.plots.figures import palette, quiet_grid, style

__all__ = ["ladder", "pairs"]

LEAST = 0.5  # where the axis of the ladder begins
Results = Sequence[Mapping[str, Any]]


def ladder(results: Results) -> Figure:
    regimes = [key for key in REGIMES if any(of_regime(results, key))]
    colours = palette(["linear_cka", "mean_cca"])
    names = [title for title, _ in METHODS.values()]
    with style():
        figure = Figure(figsize=(3.1 + 2.5 * len(regimes), 0.22 * len(names) + 0.9), layout="constrained")
        for axes, key in zip(np.atleast_1d(figure.subplots(1, len(regimes), sharey=True)), regimes, strict=True):
            for row, method in enumerate(METHODS):
                for yardstick, marker, shift in (("linear_cka", "o", -0.14), ("mean_cca", "s", 0.14)):
                    values = [max(LEAST, value) for value in correlations(of_regime(results, key), method, yardstick)]
                    axes.scatter(
                        values, [row + shift] * len(values), s=15, marker=marker, color=colours[yardstick],
                        alpha=0.75, linewidths=0, label=YARDSTICKS[yardstick] if row == 0 else None, clip_on=True,
                    )  # fmt: skip
            axes.axvline(GOALS[key], color=(0.5, 0.5, 0.5, 0.8), linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_title(SHORT[key])
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_xlim(LEAST - 0.01, 1.01)
            axes.set_xlabel("Pearson correlation")
            axes.grid(axis="y", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2)
    return figure


def pairs(results: Results) -> Figure:
    regimes = [key for key in REGIMES if any(of_regime(results, key))]
    colours = palette(list(SHAPES.values()))
    with style():
        figure = Figure(figsize=(3.2 * len(regimes) + 0.5, 2.1 * len(SHOWN) + 0.4), layout="constrained")
        grid = figure.subplots(len(SHOWN), len(regimes), squeeze=False)
        for row, (axes_row, method) in enumerate(zip(grid, SHOWN.values(), strict=True)):
            for axes, key in zip(axes_row, regimes, strict=True):
                for r in of_regime(results, key):
                    name = SHAPES[r["architecture"]]
                    axes.scatter(
                        r["methods"][method], r["values"]["linear_cka"], s=5, color=colours[name], alpha=0.5,
                        linewidths=0, label=name, rasterized=True,
                    )  # fmt: skip
                quiet_grid(axes)
                axes.set_xlabel(METHODS[method][0])
                if axes is axes_row[0]:
                    axes.set_ylabel("linear CKA")
                if row == 0:
                    axes.set_title(SHORT[key])
        known: dict[str, Any] = {}
        for axes in grid.flat:
            known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if len(known) > 1:
            figure.legend(
                list(known.values()), list(known), loc="outside upper right", ncols=len(known), markerscale=2.5
            )
    return figure
