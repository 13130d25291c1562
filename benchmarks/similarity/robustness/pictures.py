"""The figure of how far similarities move with the probe."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from benchmarks.similarity.measures import YARDSTICKS
from benchmarks.similarity.populations import TASKS
from benchmarks.similarity.robustness.results import Draws, Robustness
from benchmarks.similarity.robustness.tables import mean
from fscl.plots.figures import INK, MARKERS, palette, quiet_grid, style

__all__ = ["probes_figure"]


def probes_figure(results: Sequence[Robustness]) -> Figure:
    """Mean similarity on each probe above, order of pairs below, a column a data set."""
    names = list(results[0].probes[0].measures)
    colours = palette(names)
    with style():
        figure = Figure(figsize=(0.9 + 4.4 * len(results), 5.2), layout="constrained")
        grid = figure.subplots(2, len(results), squeeze=False, sharex="col", sharey="row")
        for column, result in enumerate(results):
            labels = [probe.name for probe in result.probes]
            ordered = sum(label.endswith("images") for label in labels)  # those with images of the tasks: a line
            for axes, of_draws in zip(grid[:, column], (_levels, _rhos), strict=True):
                for place, name in enumerate(names):
                    values = [
                        [v for v in of_draws(probe.measures[name]) if math.isfinite(v)] for probe in result.probes
                    ]
                    x = np.arange(len(values)) + 0.09 * (place - (len(names) - 1) / 2)
                    means = np.array([fmean(v) if v else np.nan for v in values])
                    axes.vlines(x, [min(v, default=np.nan) for v in values], [max(v, default=np.nan) for v in values],
                                color=colours[name], linewidth=1.2, alpha=0.7)  # fmt: skip
                    axes.plot(x[:ordered], means[:ordered], color=colours[name], linewidth=0.9, alpha=0.6)
                    axes.plot(x, means, MARKERS[place], color=colours[name], markersize=4.2, markeredgewidth=0,
                              label=YARDSTICKS[name])  # fmt: skip
                cosine = result.ours["cosine"]
                level = mean(cosine.level) if of_draws is _levels else cosine.agrees["linear_cka"]
                axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="cosine of atoms")
                axes.axvline(ordered - 0.5, color=(0.5, 0.5, 0.5, 0.5), linewidth=0.6)
                quiet_grid(axes)
            grid[0, column].set_title(TASKS[result.images])
            grid[1, column].set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        grid[0, 0].set_ylabel("mean similarity")
        grid[1, 0].set_ylabel("Spearman with reference")
        handles, titles = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside upper center", ncols=4)
    return figure


def _levels(draws: Draws) -> list[float]:
    return draws.level


def _rhos(draws: Draws) -> list[float]:
    return draws.rho
