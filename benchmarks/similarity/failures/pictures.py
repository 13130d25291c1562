"""The figure of what is left of the agreement with CKA as coefficients move."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.similarity.failures.results import MovedCoefficients
from benchmarks.similarity.failures.tables import REGIMES_SHOWN, of_regime
from benchmarks.similarity.populations import REGIMES
from fscl.plots.figures import MARKERS, palette, quiet_grid, style

__all__ = ["explained_figure"]


def explained_figure(runs: Sequence[MovedCoefficients]) -> Figure:
    """Agreement with CKA against the share that the first network's coefficients explain, a column a regime."""
    names = {"first": "on the first network's coefficients", "joint": "joint decomposition", "filters": "whole filters"}
    colours = palette(list(names.values()))
    shown = [regime for regime in REGIMES_SHOWN if of_regime(runs, regime)]
    with style():
        figure = Figure(figsize=(0.8 + 3.3 * len(shown), 5.0), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False, sharex="col", sharey="row")
        for column, regime in enumerate(shown):
            for run in of_regime(runs, regime):
                explained = [level.explained for level in run.levels]
                for place, (name, title) in enumerate(names.items()):
                    cosines = [level.ours[name] for level in run.levels]
                    rho, difference = [c.rho for c in cosines], [c.difference for c in cosines]
                    for axes, values in zip(grid[:, column], (rho, difference), strict=True):
                        axes.plot(
                            explained, values, color=colours[title], linewidth=0.9,
                            marker=MARKERS[place], markersize=4, markeredgewidth=0, alpha=0.85, label=title,
                        )  # fmt: skip
            grid[0, column].set_title(REGIMES[regime].short)
            grid[0, column].invert_xaxis()
            grid[1, column].set_xlabel("explained by the first network's coefficients")
            for axes in grid[:, column]:
                quiet_grid(axes)
        grid[0, 0].set_ylabel("Spearman with CKA")
        grid[1, 0].set_ylabel("mean difference from CKA")
        handles, titles = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles[: len(names)], titles[: len(names)], loc="outside upper center", ncols=len(names))
    return figure
