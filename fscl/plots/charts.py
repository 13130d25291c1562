"""Figures: functions that take data and an optional ``ax``, and return the Axes (or the Figure of small multiples).

No pyplot state: without ``ax`` each makes its own ``matplotlib.figure.Figure``, reached as ``ax.figure`` and freed with
its last reference. All ink has one colour, ``figures.INK``, so that an inline SVG can follow the page's text colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fscl.errors import FsclError
from fscl.plots.figures import MARKERS, abbreviate, new_axes, palette, quiet_grid, style

__all__ = ["accuracy_over_time", "memory_against_accuracy", "scatter_correlation"]


def scatter_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    xlabel: str = "similarity",
    ylabel: str = "forgetting (points)",
    colour: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """One dot for each pair of tasks. ``groups`` (one label for each dot, say its seed) sets shades of one colour.

    No line is fitted: dots share tasks, so neither a band nor a p-value from the dots would be valid.
    """
    first, second = (np.ravel(np.asarray(values, dtype=np.float64)) for values in (x, y))
    if first.shape != second.shape or (groups is not None and len(groups) != len(first)):
        raise FsclError(f"scatter needs one x, y and group for each dot; got {first.size} x and {second.size} y")
    which = np.array(groups if groups is not None else [""] * len(first))
    with style():
        axes = ax if ax is not None else new_axes((3.5, 2.7))
        base = colour if colour is not None else sns.color_palette("colorblind")[0]
        labels = list(dict.fromkeys(which.tolist()))
        # Shades of one hue stay apart by lightness for every kind of colour vision.
        rgb = np.array(to_rgb(base))
        shades = sns.blend_palette([0.6 * rgb, 0.5 + 0.5 * rgb], len(labels)) if len(labels) > 1 else [base]
        for position, label in enumerate(labels):
            chosen = which == label
            axes.scatter(
                first[chosen], second[chosen], s=13, color=shades[position], alpha=0.7, linewidths=0, rasterized=True,
                label=label, marker=MARKERS[position % len(MARKERS)],
            )  # fmt: skip
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        quiet_grid(axes)
        if len(labels) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(labels), 5), handletextpad=0.1)
    return axes


def accuracy_over_time(curves: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Mean accuracy on the tasks seen so far, one line a strategy with a band of one standard deviation over seeds.

    ``curves`` maps a label to (seeds, T) fractions; line t is the mean of ``R[t, :t+1]``.
    """
    colours = palette(list(curves))
    with style():
        axes = ax if ax is not None else new_axes((5.4, 3.2))
        ends: list[tuple[float, str]] = []
        longest = 1
        for position, (label, values) in enumerate(curves.items()):
            seeds = 100 * np.atleast_2d(np.asarray(values, dtype=np.float64))
            x = np.arange(1, seeds.shape[1] + 1)
            mean = seeds.mean(axis=0)
            axes.plot(
                x, mean, color=colours[label], linewidth=1.6, marker=MARKERS[position % len(MARKERS)],
                markersize=3.6, markeredgewidth=0, label=label,
            )  # fmt: skip
            if len(seeds) > 1:
                spread = seeds.std(axis=0, ddof=1)
                axes.fill_between(x, mean - spread, mean + spread, color=colours[label], alpha=0.16, linewidth=0)
            ends.append((float(mean[-1]), label))
            longest = max(longest, len(x))
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("mean accuracy, tasks so far (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(1 - 0.02 * longest, longest + 0.02 * longest)
        quiet_grid(axes)
        _name_ends(axes, ends, longest, colours)
    return axes


def memory_against_accuracy(points: Mapping[str, tuple[float, float]], *, ax: Axes | None = None) -> Axes:
    """What one more task costs (bytes, x) against the final mean accuracy (fraction, y), one dot a strategy."""
    colours = palette(list(points))
    with style():
        axes = ax if ax is not None else new_axes((5.4, 3.2))
        sizes = [size / 1000 for size, _ in points.values()]
        for position, (label, (size, accuracy)) in enumerate(points.items()):
            axes.plot(
                size / 1000, 100 * accuracy, MARKERS[position % len(MARKERS)], color=colours[label], markersize=7,
                markeredgewidth=0, clip_on=False,
            )  # fmt: skip
            axes.annotate(
                abbreviate(label, 30), (size / 1000, 100 * accuracy), xytext=(7, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        if min(sizes, default=0) > 0 and max(sizes) > 20 * min(sizes):
            axes.set_xscale("log")
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel("stored for one more task (kB)")
        axes.set_ylabel("final mean accuracy (%)")
        quiet_grid(axes)
    return axes


def _name_ends(axes: Axes, ends: list[tuple[float, str]], x: int, colours: Mapping[str, Any]) -> None:
    """Labels at the lines' ends, pushed apart where they would overlap; nobody has to match a legend by colour."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = 11.0 * (high - low) / height
    ordered = sorted(ends)
    places = [value for value, _ in ordered]
    for _ in range(50):
        for i in range(len(places) - 1):
            overlap = gap - (places[i + 1] - places[i])
            if overlap > 1e-9:
                places[i] -= overlap / 2
                places[i + 1] += overlap / 2
    for (value, label), place in zip(ordered, places, strict=True):
        axes.annotate(
            abbreviate(label, 30), (x, value), xytext=(1.03, place), textcoords=axes.get_yaxis_transform(),
            va="center", fontsize=8, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[label], "linewidth": 1.0, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
