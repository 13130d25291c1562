"""Scatter plots of pairs of tasks: all in one, or a panel for each learner. For ``ax`` see :mod:`fscl.plots.charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fscl.errors import FsclError
from fscl.plots.figures import (
    MARKERS,
    LearnerStyle,
    learner_styles,
    mark_learner,
    new_axes,
    new_figure,
    quiet_grid,
    shortened,
    style,
)

__all__ = ["scatter_correlation", "scatter_panels"]

PANELS = 24  # learners get a panel each up to this number


def scatter_correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    xlabel: str = "similarity",
    ylabel: str = "forgetting (points)",
    colour: Any = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """One dot for each pair of tasks. ``groups`` (one label for each dot, say its seed) sets shades of one colour.

    No line is fitted. Dots share tasks, so neither a band nor a p-value computed from the dots would be valid.
    """
    first, second = (np.ravel(np.asarray(values, dtype=np.float64)) for values in (x, y))
    if first.shape != second.shape or (groups is not None and len(groups) != len(first)):
        raise FsclError(f"scatter needs one x, y and group for each dot; got {first.size} x and {second.size} y")
    group_names = np.array(groups if groups is not None else [""] * len(first))
    with style():
        axes = ax if ax is not None else new_axes((3.5, 2.7))
        base = colour if colour is not None else sns.color_palette("colorblind")[0]
        labels = list(dict.fromkeys(group_names.tolist()))
        # shades of one hue differ in lightness, so they can be told apart with every kind of colour vision
        rgb = np.array(to_rgb(base))
        shades = sns.blend_palette([0.6 * rgb, 0.5 + 0.5 * rgb], len(labels)) if len(labels) > 1 else [rgb]
        codes = {label: position for position, label in enumerate(labels)}
        group_numbers = np.array([codes[label] for label in group_names.tolist()], dtype=int)
        # one collection for each marker; if there are more groups than markers, markers are used again
        for turn in range(min(len(labels), len(MARKERS))):
            chosen = group_numbers % len(MARKERS) == turn
            axes.scatter(
                first[chosen], second[chosen], s=13, color=np.array(shades)[group_numbers[chosen]], alpha=0.7,
                linewidths=0, rasterized=True, label=shortened(labels[turn]), marker=MARKERS[turn],
            )  # fmt: skip
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        quiet_grid(axes)
        if legend and 1 < len(labels) <= len(MARKERS):  # more shades than that cannot be told apart
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(labels), 5), handletextpad=0.1)
    return axes


def scatter_panels(
    dots: Mapping[str, tuple[ArrayLike, ArrayLike, Sequence[str]]],
    *,
    xlabel: str,
    ylabel: str,
    columns: int = 4,
    styles: Mapping[str, LearnerStyle] | None = None,
) -> Figure:
    """A panel for each learner, all on one scale; ``dots[learner]`` is (x, y, groups), see :func:`scatter_correlation`.

    ``styles`` is as in :func:`fscl.plots.accuracy_over_time`.
    """
    drawn = dict(list(dots.items())[:PANELS])
    count = max(1, len(drawn))
    columns = min(columns if count <= 20 else 8, count)
    rows = -(-count // columns)
    styles = styles or learner_styles(dots)
    with style():
        figure = new_figure((0.5 + 2.1 * columns, 0.6 + 1.8 * rows))
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (label, (x, y, groups)) in zip(panels, drawn.items(), strict=False):
            colour = styles[label].colour
            scatter_correlation(x, y, groups=groups, xlabel="", ylabel="", colour=colour, legend=False, ax=axes)
            mark_learner(axes, label)
            axes.set_title(shortened(label, 26), fontsize=9)
        for axes in panels[count:]:
            axes.set_visible(False)
        for axes in panels[max(0, count - columns) : count]:  # the lowest panel of each column
            axes.tick_params(labelbottom=True)
        omitted_note = f" ({len(drawn)} of {len(dots)})" if len(drawn) < len(dots) else ""
        figure.supxlabel(f"{xlabel}{omitted_note}", fontsize=9)
        figure.supylabel(ylabel, fontsize=9)
    return figure
