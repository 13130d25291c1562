"""Curves of accuracy: over the tasks of a stream, and over what a federation has cost. For ``ax`` see ``charts``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from fscl.plots.figures import (
    INK,
    LearnerStyle,
    learner_styles,
    mark_learner,
    new_axes,
    quiet_grid,
    shortened,
    some_of,
    style,
)

__all__ = ["accuracy_over_cost", "accuracy_over_time"]

MANY = 8  # curves have bands up to this number
NAMED = 40  # all curves are named up to this number

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def accuracy_over_time(
    curves: Mapping[str, ArrayLike],
    *,
    bounds: Collection[str] = (),
    styles: Mapping[str, LearnerStyle] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean accuracy on the tasks seen so far: a line for each learner, a band of one standard deviation over seeds.

    More than 8 learners have no bands, because these would cover each other. Of more than 40 learners, the best is
    named and others at equal distances in rank.

    Args:
        curves: accuracies (seeds, T) by label, fractions; entry t is the mean of ``R[t, :t+1]``.
        bounds: labels that are bounds, not learners. Their lines are grey and dashed.
        styles: style by label, so that a learner looks the same in several figures; by default those of
            :func:`fscl.plots.figures.learner_styles`.
        ax: where to draw; a new figure by default.
    """
    seeds = {label: np.atleast_2d(np.asarray(values, dtype=np.float64)) for label, values in curves.items()}
    placed = {label: (np.arange(1, values.shape[1] + 1), values) for label, values in seeds.items()}
    longest = max((values.shape[1] for values in seeds.values()), default=1)
    styles = styles or learner_styles(curves, bounds)
    with style():
        axes = ax if ax is not None else _new_axes(len(placed))
        ends = _draw(axes, placed, styles)
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("mean accuracy, tasks so far (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(1 - 0.02 * longest, longest + 0.02 * longest)
        quiet_grid(axes)
        ranked = sorted(ends)
        # the best learner, and others at equal distances in rank
        named = [ranked[-1 - place] for place in some_of(len(ranked), NAMED)]
        _name_ends(axes, [end for end in ends if end in named], longest, styles)
    return axes


def accuracy_over_cost(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    ylabel: str = "mean accuracy of clients (%)",
    log: bool = False,
    bounds: Collection[str] = (),
    styles: Mapping[str, LearnerStyle] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against what it has cost: a line for each method, a band of one standard deviation over seeds.

    Methods are named in a legend, the most accurate one first: lines may end anywhere. Bands and names are left out as
    in :func:`accuracy_over_time`. A line has a gap where an accuracy is NaN.

    Args:
        curves: by label, the cost (E) at each evaluation and accuracies (seeds, E), fractions.
        xlabel: name and unit of the cost.
        ylabel: name and unit of the accuracy, which is drawn in %.
        log: whether the axis of the cost is logarithmic. Evaluations without cost are then left out.
        bounds, styles, ax: as for :func:`accuracy_over_time`.
    """
    placed = {}
    for label, (cost, values) in curves.items():
        x, seeds = np.asarray(cost, dtype=np.float64), np.atleast_2d(np.asarray(values, dtype=np.float64))
        kept = x > 0 if log else np.isfinite(x)
        if kept.any():
            placed[label] = x[kept], seeds[:, kept]
    styles = styles or learner_styles(curves, bounds)
    with style():
        axes = ax if ax is not None else _new_axes(len(placed))
        ends = sorted(_draw(axes, placed, styles), reverse=True)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if log and placed:
            _log_axis(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.5), min(high, 102.5))  # bands may leave the range of accuracies
        quiet_grid(axes)
        handles, names = axes.get_legend_handles_labels()
        by_name = dict(zip(names, handles, strict=True))
        ranked = [label for _, label in ends if label in by_name]
        if ranked:
            legend = axes.legend(
                [by_name[label] for label in ranked], [shortened(label) for label in ranked],
                loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6,
            )  # fmt: skip
            for text, label in zip(legend.get_texts(), ranked, strict=True):
                mark_learner(text, label)
    return axes


def _new_axes(curves: int) -> Axes:
    return new_axes((6.2, max(3.2, 0.9 + 0.2 * min(curves, NAMED))))


def _draw(axes: Axes, curves: Curves, styles: Mapping[str, LearnerStyle]) -> list[tuple[float, str]]:
    """Draws the curves, and returns the last accuracy of each that is known, in %, with its label."""
    ends: list[tuple[float, str]] = []
    crowded = len(curves) > NAMED
    thin: list[Any] = []  # curves of few points
    for label, (x, values) in curves.items():
        style_of = styles[label]
        seeds = 100 * values
        mean = seeds.mean(axis=0)
        if crowded:
            shown = [*some_of(len(x), 200), len(x) - 1]
            thin.append(np.stack([x[shown], mean[shown]], 1))
        else:
            (line,) = axes.plot(
                x, mean, linestyle=style_of.line, color=style_of.colour, linewidth=1.6, markersize=3.6,
                markeredgewidth=0, marker=style_of.marker, markevery=max(1, len(x) // 50), label=label,
            )  # fmt: skip
            mark_learner(line, label)
        if len(seeds) > 1 and len(curves) <= MANY:
            spread = seeds.std(axis=0, ddof=1)
            band = axes.fill_between(x, mean - spread, mean + spread, color=style_of.colour, alpha=0.16, linewidth=0)
            mark_learner(band, label)
        if np.isfinite(mean).any():
            ends.append((float(mean[np.isfinite(mean)][-1]), label))
    if crowded:
        colours = [styles[label].colour for label in curves]
        axes.add_collection(LineCollection(thin, colors=colours, linewidths=0.6, alpha=0.5))
        axes.autoscale_view()
    return ends


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_ends(axes: Axes, ends: list[tuple[float, str]], x: int, styles: Mapping[str, LearnerStyle]) -> None:
    """Writes labels at the ends of lines, moved apart if they would overlap, but not above or below the axes."""
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
    count = len(places)
    for i in range(count):
        places[i] = max(places[i], places[i - 1] + gap if i else low)
    for i in reversed(range(count)):
        places[i] = min(places[i], places[i + 1] - gap if i < count - 1 else high)
    for (value, label), place in zip(ordered, places, strict=True):
        # names have the ink of all texts: not every colour has the contrast that letters need
        name = axes.annotate(
            shortened(label), (x, value), xytext=(1.09, place), textcoords=axes.get_yaxis_transform(),
            va="center", fontsize=8, annotation_clip=False, color=INK,
            arrowprops={
                "arrowstyle": "-", "color": styles[label].colour, "linestyle": styles[label].line, "linewidth": 1.2,
                "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5),
            },
        )  # fmt: skip
        assert name.arrow_patch is not None
        mark_learner(name, label)
        mark_learner(name.arrow_patch, label)
