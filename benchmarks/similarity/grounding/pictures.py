"""Figures of the grounding tests."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from benchmarks.similarity.grounding.results import Damage, Groups, Transfer
from benchmarks.similarity.grounding.trials import Trial
from benchmarks.similarity.lab import DATA
from benchmarks.similarity.measures import COMPARED, OURS, SHORT
from fscl.plots import similarity_limits
from fscl.plots.figures import MARKERS, palette, quiet_grid, style

__all__ = ["damage", "differences", "geometry", "noise"]

Array = NDArray[Any]


def differences(trials: Sequence[Trial]) -> Figure | None:
    """Our scores less that of linear CKA, a row a test; None if no difference is defined."""
    shown = [trial for trial in trials if any(math.isfinite(_less(trial, key)[0]) for key in OURS)]
    if not shown:
        return None
    colours = palette(list(OURS))
    with style():
        figure = Figure(figsize=(8.2, 0.9 + 0.42 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, (key, name) in enumerate(OURS.items()):
            at = np.arange(len(shown)) + 0.72 * ((place + 0.5) / len(OURS) - 0.5)
            values, low, high = np.array([_less(trial, key) for trial in shown]).T
            axes.hlines(at, low, high, color=colours[key], linewidth=1.1)
            axes.plot(values, at, MARKERS[place], color=colours[key], markersize=4.5, markeredgewidth=0, label=name)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [f"{trial.name}: {trial.statistic}" for trial in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("score less that of linear CKA")
        quiet_grid(axes)
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def damage(results: Sequence[Damage]) -> Figure:
    """Lost accuracy against similarity to the undamaged network: a row a data set, a column a measure."""
    with style():
        figure = Figure(figsize=(10.4, 0.6 + 2.1 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), len(COMPARED), squeeze=False, sharey="row")
        for row, (line, result) in enumerate(zip(grid, results, strict=True)):
            where, lost = np.array(result.where), 100 * np.array(result.lost)
            layers = [name for name in dict.fromkeys(result.where) if name != "all layers"]
            colours = palette([*layers, "all layers"])
            for axes, key in zip(line, COMPARED, strict=True):
                values = result.similarity.get(key, np.full(len(where), np.nan))
                for place, name in enumerate([*layers, "all layers"]):
                    damaged = where == name
                    whole = name == "all layers"
                    label = "all layers" if whole else f"layer {place + 1}"
                    axes.scatter(
                        values[damaged], lost[damaged], s=16 if whole else 9,
                        marker="x" if whole else MARKERS[place % 5],
                        linewidths=0.8 if whole else 0, color="0.35" if whole else colours[name], alpha=0.8,
                        label=label,
                    )  # fmt: skip
                axes.invert_xaxis()
                axes.xaxis.set_major_locator(MaxNLocator(4))
                quiet_grid(axes)
                if row == 0:
                    axes.set_title(SHORT[key])
                if row == len(grid) - 1:
                    axes.set_xlabel("similarity")
            line[0].set_ylabel(f"{DATA[result.images]}\nlost accuracy (points)")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), markerscale=1.4)
    return figure


def noise(results: Sequence[Groups]) -> Figure:
    """Similarity of all pairs of networks, ordered by label noise: a row a data set, a column a measure."""
    with style():
        figure = Figure(figsize=(10.4, 0.2 + 2.25 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), len(COMPARED), squeeze=False)
        colours = mpl.colormaps["flare_r"].with_extremes(bad=(0.5, 0.5, 0.5, 0.42))
        for line, result in zip(grid, results, strict=True):
            levels = list(dict.fromkeys(result.groups))
            ends = np.cumsum([result.groups.count(level) for level in levels])
            middles = ends - 0.5 * np.diff(np.concatenate([[0], ends])) - 0.5
            for axes, key in zip(line, COMPARED, strict=True):
                matrix = result.similarity.get(key, np.full((len(result.groups), len(result.groups)), np.nan))
                low, high = similarity_limits(matrix)
                hidden = np.eye(len(matrix), dtype=bool) | np.isnan(matrix)
                axes.imshow(np.ma.masked_array(matrix, hidden), cmap=colours, vmin=low, vmax=high, rasterized=True)
                for end in ends[:-1]:
                    axes.axhline(end - 0.5, color="white", linewidth=0.8)
                    axes.axvline(end - 0.5, color="white", linewidth=0.8)
                axes.set_xticks(middles, levels, fontsize=6.5)
                axes.set_yticks(middles, levels if axes is line[0] else [], fontsize=6.5)
                axes.tick_params(length=0)
                axes.spines[:].set_visible(False)
                axes.set_title(f"{SHORT[key]}\n{low:.2f} to {high:.2f}")
            line[0].set_ylabel(f"{DATA[result.images]}\nlabels drawn anew")
    return figure


def geometry(results: Sequence[Transfer]) -> Figure:
    """Similarity against what tasks have in common: a row a stream, a column a measure."""
    with style():
        figure = Figure(figsize=(10.4, 0.3 + 2.05 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), len(COMPARED), squeeze=False)
        for row, (line, result) in enumerate(zip(grid, results, strict=True)):
            angle = "angle" in result.truths
            truth = np.abs(result.truths["angle" if angle else "shared"])
            off = np.triu(np.ones_like(truth, dtype=bool), 1)
            for axes, key in zip(line, COMPARED, strict=True):
                runs = result.similarity.get(key, np.full((1, *truth.shape), np.nan))
                shades = np.linspace(0.35, 0.8, len(runs))
                for run, shade in zip(runs, shades, strict=True):
                    colour = mpl.colormaps["flare_r"](shade)
                    axes.scatter(truth[off], run[off], s=6, color=colour, alpha=0.6, linewidths=0, rasterized=True)
                steps = np.unique(truth[off])
                axes.plot(steps, [runs[:, off & (truth == step)].mean() for step in steps], color="0.25", linewidth=1.2)
                axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                axes.yaxis.set_major_locator(MaxNLocator(4))
                quiet_grid(axes)
                axes.set_xlabel("angle between (°)" if angle else "shared classes")
                if row == 0:
                    axes.set_title(SHORT[key])
            line[0].set_ylabel(
                {"circle": "circle", "fan": "fan", "windows": "class sets"}[result.kind] + "\nsimilarity"
            )
    return figure


def _less(trial: Trial, measure: str) -> tuple[float, float, float]:
    """How far a score is above that of linear CKA, with its interval; NaN if that is not defined."""
    score = trial.scores.get(measure)
    return (score.less, score.less_low, score.less_high) if score else (math.nan, math.nan, math.nan)
