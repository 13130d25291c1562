"""Figures of the agreement with CKA and CCA."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.similarity.agreement.results import Agreement
from benchmarks.similarity.agreement.tables import GOALS, correlations, of_regime, regimes_of
from benchmarks.similarity.lab import ARCHITECTURES
from benchmarks.similarity.measures import MEASURES, METHODS, YARDSTICKS
from benchmarks.similarity.populations import REGIMES
from fscl.plots.figures import palette, quiet_grid, style

__all__ = ["ladder", "pairs"]

LEAST = 0.5  # where the axis of the ladder begins
Results = Sequence[Agreement]


def ladder(results: Results) -> Figure:
    """Each method's correlations with linear CKA and mean CCA, a panel a regime."""
    regimes = regimes_of(results)
    colours = palette(["linear_cka", "mean_cca"])
    titles = [method.title for method in METHODS.values()]
    with style():
        figure = Figure(figsize=(3.1 + 2.5 * len(regimes), 0.22 * len(titles) + 0.9), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(regimes), sharey=True))
        for axes, regime in zip(panels, regimes, strict=True):
            for row, method in enumerate(METHODS):
                for yardstick, marker, shift in (("linear_cka", "o", -0.14), ("mean_cca", "s", 0.14)):
                    values = correlations(of_regime(results, regime), method, yardstick)
                    axes.scatter(
                        [max(LEAST, value) for value in values], [row + shift] * len(values), s=15, marker=marker,
                        color=colours[yardstick], alpha=0.75, linewidths=0, clip_on=True,
                        label=YARDSTICKS[yardstick] if row == 0 else None,
                    )  # fmt: skip
            axes.axvline(GOALS[regime], color=(0.5, 0.5, 0.5, 0.8), linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_title(REGIMES[regime].short)
            axes.set_yticks(range(len(titles)), titles)
            axes.set_ylim(len(titles) - 0.4, -0.6)
            axes.set_xlim(LEAST - 0.01, 1.01)
            axes.set_xlabel("Pearson correlation")
            axes.grid(axis="y", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2)
    return figure


def pairs(results: Results) -> Figure:
    """Each measure against linear CKA, pair by pair: a row a measure, a column a regime."""
    regimes = regimes_of(results)
    colours = palette(list(ARCHITECTURES.values()))
    with style():
        figure = Figure(figsize=(3.2 * len(regimes) + 0.5, 2.1 * len(MEASURES) + 0.4), layout="constrained")
        grid = figure.subplots(len(MEASURES), len(regimes), squeeze=False)
        for row, (line, measure) in enumerate(zip(grid, MEASURES, strict=True)):
            for axes, regime in zip(line, regimes, strict=True):
                for result in of_regime(results, regime):
                    name = ARCHITECTURES[result.architecture]
                    axes.scatter(
                        result.methods[measure.agreement], result.values["linear_cka"], s=5, color=colours[name],
                        alpha=0.5, linewidths=0, label=name, rasterized=True,
                    )  # fmt: skip
                quiet_grid(axes)
                axes.set_xlabel(measure.title)
                if axes is line[0]:
                    axes.set_ylabel("linear CKA")
                if row == 0:
                    axes.set_title(REGIMES[regime].short)
        handles: dict[str, Any] = {}  # by label: a network has one entry, however many populations are of it
        for axes in grid.flat:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if len(handles) > 1:
            figure.legend(
                list(handles.values()), list(handles), loc="outside upper right", ncols=len(handles), markerscale=2.5
            )
    return figure
