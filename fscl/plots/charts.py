"""Charts: functions that take data and an optional ``ax``, and return the Axes (or the Figure of small multiples).

There is no pyplot state. Without ``ax``, each makes its own ``matplotlib.figure.Figure``, available as ``ax.figure``
and freed with its last reference. All ink has one colour, ``figures.INK``, so that an inline SVG can take the text
colour of its page.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fscl.plots.figures import (
    INK,
    MARKERS,
    LearnerStyle,
    learner_styles,
    mark_learner,
    new_axes,
    new_figure,
    quiet_grid,
    shortened,
    some_of,
    style,
)

__all__ = ["correlation_forest", "memory_against_accuracy"]

NAMED = 40  # all dots are named up to this number
FRONT = 12  # names shown if there are more dots than NAMED
TALLEST = 24.0  # height of all rows of a forest, inches
Answer = tuple[float, float, float, float]


def memory_against_accuracy(
    points: Mapping[str, tuple[float, float]],
    *,
    bounds: Collection[str] = (),
    styles: Mapping[str, LearnerStyle] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Stored bytes (x) against final mean accuracy (y, a fraction), one dot for each learner.

    ``bounds`` are labels that are bounds, not learners; they are drawn hollow and grey. ``styles`` is as in
    :func:`fscl.plots.accuracy_over_time`. Of more than 40 learners, only those are named for which no other learner is
    as accurate with as little memory.
    """
    from adjustText import adjust_text

    styles = styles or learner_styles(points, bounds)
    with style():
        axes = ax if ax is not None else new_axes((7.2, 3.2 + 0.08 * min(len(points), NAMED)))
        texts, xs, ys = [], [], []
        named = set(points) if len(points) <= NAMED else set(_best(points))
        unit, scale = ("MB", 1e6) if max((size for size, _ in points.values()), default=0) >= 1e6 else ("kB", 1e3)
        for label, (size, accuracy) in points.items():
            x, y, hollow = size / scale, 100 * accuracy, label in bounds
            xs.append(x)
            ys.append(y)
            (dot,) = axes.plot(
                x, y, styles[label].marker, color=styles[label].colour, clip_on=False,
                markersize=7 if len(named) == len(points) else 3.5, markeredgewidth=1.2 if hollow else 0,
                markerfacecolor="none" if hollow else styles[label].colour,
            )  # fmt: skip
            mark_learner(dot, label)
            if label in named:
                texts.append(axes.text(x, y, shortened(label), fontsize=8, color="grey" if hollow else INK))
                mark_learner(texts[-1], label)
        if min(xs, default=0) > 0 and max(xs) > 8 * min(xs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(x=0.16, y=0.12)
        axes.set_xlabel(f"stored in all ({unit})")
        axes.set_ylabel("final mean accuracy (%)")
        quiet_grid(axes)
        if texts:
            # with many dots, names would have to avoid each of them
            xs, ys = (values if len(texts) == len(points) else [] for values in (xs, ys))
            lines = {"arrowstyle": "-", "color": "grey", "linewidth": 0.6}
            adjust_text(texts, xs, ys, ax=axes, arrowprops=lines, expand=(1.2, 1.6), min_arrow_len=8)
    return axes


def _best(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Labels of the Pareto front: most accurate for their memory. If there are too many, some at equal distances."""
    best: list[str] = []
    for label in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[label][1] > points[best[-1]][1]:
            best.append(label)
    return [best[place] for place in some_of(len(best), FRONT)]


def correlation_forest(answers: Mapping[str, Mapping[str, Mapping[str, Answer]]]) -> Figure:
    """Rank correlations of several learners, with a panel for each question.

    ``answers[question][learner][way]`` is (rho, low, high, p), where a way is one way to answer the question. Ways are
    drawn below each other, hollow if p is 0.05 or more. NaN leaves a place empty.
    """
    learners = list(dict.fromkeys(learner for by_learner in answers.values() for learner in by_learner))
    ways = list(
        dict.fromkeys(way for by_learner in answers.values() for by_way in by_learner.values() for way in by_way)
    )
    colours = sns.color_palette("colorblind")
    with style():
        columns = len(answers) if len(answers) <= 4 else 3
        rows = -(-len(answers) // columns)
        step = min(0.32, TALLEST / max(1, len(learners) * rows))  # distance of two learners, inches
        figure = new_figure((1.7 + 2.1 * columns, 0.3 + (0.8 + step * len(learners)) * rows))
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in panels[len(answers) :]:
            axes.set_visible(False)
        thin = step / 0.32
        for axes, (question, by_learner) in zip(panels, answers.items(), strict=False):
            axes.axvline(0, color=INK, linewidth=0.6)
            for place, way in enumerate(ways):
                missing = (np.nan,) * 4
                values = np.array([by_learner.get(learner, {}).get(way, missing) for learner in learners]).reshape(
                    -1, 4
                )
                rho, low, high, p = values.T
                y = np.arange(len(learners)) + 0.32 * (place - (len(ways) - 1) / 2)
                colour, marker = colours[place % len(colours)], MARKERS[place % len(MARKERS)]
                axes.hlines(y, low, high, color=colour, linewidth=max(0.3, 1.1 * thin), alpha=0.8)
                for chosen, face in ((p < 0.05, colour), (~(p < 0.05), "white")):
                    axes.plot(
                        rho[chosen], y[chosen], marker, color=colour, markersize=max(1.5, 5 * thin),
                        markeredgewidth=max(0.3, 1.1 * thin), markerfacecolor=face,
                    )  # fmt: skip
            axes.set_title(_two_lines(question), fontsize=9)
            axes.set_xlim(-1.05, 1.05)
            axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "", "0", "", "1"])
            axes.set_ylim(len(learners) - 0.4, -0.6)
            named = some_of(len(learners), math.ceil(TALLEST / rows / 0.13))
            axes.set_yticks(named, [shortened(learners[place]) for place in named])
            axes.grid(axis="x", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=2.5)
        handles = [
            Line2D(
                [],
                [],
                color=colours[place % len(colours)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=5,
                linewidth=1.1,
                label=way,
            )
            for place, way in enumerate(ways)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(ways), 3 * columns), fontsize=8)
        figure.supxlabel("Spearman's rho, mean over seeds", fontsize=9)
    return figure


def _two_lines(text: str) -> str:
    """Breaks a text at the space nearest to its middle. Brackets at the end get a line of their own."""
    if text.endswith(")"):
        head, _, brackets = text.rpartition(" (")
        return f"{_two_lines(head)}\n({brackets}" if head else text
    spaces = [i for i, letter in enumerate(text) if letter == " "]
    if len(text) < 22 or not spaces:
        return text
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"
