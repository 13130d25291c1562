"""Figures of the grounding tests."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from benchmarks.similarity.contents import Picture
from benchmarks.similarity.grounding_networks import MEASURES, OURS, SHORT
from fscl.plots import similarity_limits
from fscl.plots.figures import MARKERS, palette, quiet_grid, style

__all__ = ["pictures"]

Array = NDArray[Any]
Results = Sequence[Mapping[str, Any]]
Tests = Sequence[tuple[str, str, Mapping[str, Mapping[str, Any]]]]
IMAGES = {"fmnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}


def pictures(results: Results, tests: Tests) -> list[Picture]:
    """Those for which there are results; `tests` are names, statistics and scores."""
    found = []
    if any(_finite(row.get("less")) for *_, scores in tests for key, row in scores.items() if key in OURS):
        found.append(Picture(
            "grounding-difference", _differences(tests), "Our scores less that of linear CKA",
            "A dot is a similarity without data on one test, a line its 95 % interval; right of zero it did better "
            "than linear CKA with its real images.", wide=True,
        ))  # fmt: skip
    hurt = [r for r in results if r["kind"] == "damage"]
    if hurt:
        found.append(Picture(
            "grounding-damage", _damage(hurt), "Damage: similarity to the undamaged network, and what is lost",
            "A dot is a network with noise on the atoms of one layer, or of all (crosses). If similarity said all that "
            "matters, all dots would lie on one falling curve, whatever the layer.", wide=True,
        ))  # fmt: skip
    noise = [r for r in results if r["kind"] == "noise"]
    if noise:
        found.append(Picture(
            "grounding-noise", _noise(noise), "Label noise: all pairs of networks, by the share of labels drawn anew",
            "Each panel has its own colours, from its least similar pair to its most similar one (darkest is least). "
            "Networks of one level lie within a square on the diagonal.", wide=True,
        ))  # fmt: skip
    known = [r for r in results if r["kind"] in ("circle", "fan", "windows") and r.get("truths")]
    if known:
        found.append(Picture(
            "grounding-geometry", _geometry(known), "Known geometry: similarity against what tasks have in common",
            "Dots are pairs of networks of one run, shades its runs; the line is the mean of all runs.", wide=True,
        ))  # fmt: skip
    return found


def _differences(tests: Tests) -> Figure:
    shown = [t for t in tests if any(_finite(t[2].get(key, {}).get("less")) for key in OURS)]
    colours = palette(list(OURS))
    with style():
        figure = Figure(figsize=(8.2, 0.9 + 0.42 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, (key, name) in enumerate(OURS.items()):
            rows = [t[2].get(key, {}) for t in shown]
            at = np.arange(len(shown)) + 0.72 * ((place + 0.5) / len(OURS) - 0.5)
            values, low, high = (
                np.array([_number(row.get(what)) for row in rows]) for what in ("less", "less_low", "less_high")
            )
            axes.hlines(at, low, high, color=colours[key], linewidth=1.1)
            axes.plot(values, at, MARKERS[place], color=colours[key], markersize=4.5, markeredgewidth=0, label=name)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [f"{name}: {statistic}" for name, statistic, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("score less that of linear CKA")
        quiet_grid(axes)
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def _damage(results: Results) -> Figure:
    with style():
        figure = Figure(figsize=(10.4, 0.6 + 2.1 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), len(MEASURES), squeeze=False, sharey="row")
        for row, (line, r) in enumerate(zip(grid, results, strict=True)):
            where, lost = np.array(r["where"]), 100 * np.array(r["lost"])
            layers = [name for name in dict.fromkeys(r["where"]) if name != "all layers"]
            colours = palette([*layers, "all layers"])
            for axes, key in zip(line, MEASURES, strict=True):
                values = _column(r["similarity"].get(key), len(where))
                for place, name in enumerate([*layers, "all layers"]):
                    chosen = where == name
                    whole = name == "all layers"
                    label = "all layers" if whole else f"layer {place + 1}"
                    axes.scatter(
                        values[chosen], lost[chosen], s=16 if whole else 9, marker="x" if whole else MARKERS[place % 5],
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
            line[0].set_ylabel(f"{IMAGES[r['images']]}\nlost accuracy (points)")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), markerscale=1.4)
    return figure


def _noise(results: Results) -> Figure:
    with style():
        figure = Figure(figsize=(10.4, 0.2 + 2.25 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), len(MEASURES), squeeze=False)
        colours = mpl.colormaps["flare_r"].with_extremes(bad=(0.5, 0.5, 0.5, 0.42))
        for line, r in zip(grid, results, strict=True):
            levels = list(dict.fromkeys(r["groups"]))
            ends = np.cumsum([r["groups"].count(level) for level in levels])
            middles = ends - 0.5 * np.diff(np.concatenate([[0], ends])) - 0.5
            for axes, key in zip(line, MEASURES, strict=True):
                matrix = _matrix(r["similarity"].get(key), len(r["groups"]))
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
            line[0].set_ylabel(f"{IMAGES[r['images']]}\nlabels drawn anew")
    return figure


def _geometry(results: Results) -> Figure:
    with style():
        figure = Figure(figsize=(10.4, 0.3 + 2.05 * len(results)), layout="constrained")
        grid = figure.subplots(len(results), len(MEASURES), squeeze=False)
        for row, (line, r) in enumerate(zip(grid, results, strict=True)):
            angle = "angle" in r["truths"]
            truth = np.abs(np.array(r["truths"]["angle" if angle else "shared"], dtype=float))
            off = np.triu(np.ones_like(truth, dtype=bool), 1)
            for axes, key in zip(line, MEASURES, strict=True):
                given = r["similarity"].get(key)
                runs = np.full((1, *truth.shape), np.nan) if given is None else np.array(given, dtype=float)
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
            line[0].set_ylabel({"circle": "circle", "fan": "fan", "windows": "class sets"}[r["kind"]] + "\nsimilarity")
    return figure


def _column(values: Any, count: int) -> Array:
    return np.full(count, np.nan) if values is None else np.array(values, dtype=float)


def _matrix(values: Any, count: int) -> Array:
    return np.full((count, count), np.nan) if values is None else np.array(values, dtype=float)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> bool:
    return math.isfinite(_number(value))
