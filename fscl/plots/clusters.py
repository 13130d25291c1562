"""A heatmap of similarity in the order of a clustering, below the tree of the clusters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from fscl.errors import FsclError, printable
from fscl.plots.figures import INK, INK_ON_COLOUR, style
from fscl.plots.heatmaps import NAMED, similarity_heatmap
from fscl.text import decimals

__all__ = ["clustered_heatmap", "short_names"]

ORDERED = 300  # leaves are ordered optimally up to this number: the time grows with its cube
STRIP = 0.17  # height of a strip of groups, inches
SAME = 5e-7  # below this 1 - similarity two networks are copies, as atoms are stored in float32


def clustered_heatmap(
    similarity: ArrayLike,
    names: Sequence[str],
    *,
    groups: Sequence[int] | None = None,
    beside: Mapping[str, Sequence[int]] | None = None,
    limits: tuple[float, float] | None = None,
    label: str = "similarity",
    most_names: int = NAMED,
) -> Figure:
    """A heatmap of similarities (T, T), ordered by clustering, with the tree of the clusters on top.

    Clusters are joined by average linkage of 1 - similarity. Leaves are ordered so that neighbours are similar. The
    height of a join in the tree is the mean similarity of its two clusters. The scale of 1 - similarity is logarithmic
    if it spans orders of magnitude, as for networks of several starts that were fine-tuned only a little.

    Args:
        similarity: (T, T).
        names: of the T tasks or networks.
        groups: a group number for each of them. Groups are outlined.
        beside: further groups by title, a number for each of them, -1 if it has none. They are letters on a strip
            between the tree and the heatmap.
        limits: the range of the colours; by default the range of values off the diagonal.
        label: of the colour bar.
        most_names: as for :func:`fscl.plots.similarity_heatmap`.

    Raises:
        FsclError: there are fewer than two names, the shape does not fit, or values are not finite.
    """
    matrix = np.asarray(similarity, dtype=np.float64)
    if matrix.shape != (len(names), len(names)) or len(names) < 2 or not np.isfinite(matrix).all():
        raise FsclError(
            f"the matrix has shape {matrix.shape} for {len(names)} names; finite similarities (T, T) of two or more "
            "tasks can be clustered"
        )
    distance = 1 - (matrix + matrix.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance.clip(min=0), checks=False), "average", optimal_ordering=len(names) <= ORDERED)
    order = leaves_list(tree).tolist()
    short = short_names(names)
    shown = matrix[np.ix_(order, order)]
    axes = similarity_heatmap(shown, [short[i] for i in order], limits=limits, label=label, most_names=most_names)
    figure = axes.figure
    assert isinstance(figure, Figure)  # not a SubFigure
    with style():
        axes.set(xlabel="", ylabel="")
        if max(map(len, short)) <= 3:  # there is room for such names without turning them
            axes.set_xticks(
                axes.get_xticks(), [text.get_text() for text in axes.get_xticklabels()], rotation=0, ha="center"
            )
        strips = [(title, [numbers[i] for i in order]) for title, numbers in (beside or {}).items()]
        for row, (title, numbers) in enumerate(reversed(strips)):
            _draw_strip(axes, figure, title, numbers, row)
        _draw_tree(axes, figure, *_brackets(tree, order), above=len(strips) * STRIP)
        # one group, or a group for each name, would say nothing
        if groups is not None and 1 < len(set(groups)) < len(names):
            _outline(axes, [groups[i] for i in order])
    return figure


def short_names(names: Sequence[str], width: int = 18) -> list[str]:
    """Shortens names to fit on an axis, and keeps them different.

    Removed are first the words that all names begin or end with, then words that many names have, then middles.

    >>> short_names(["resnet18_flowers_lr0.01_best", "resnet18_flowers_lr0.1_best"])
    ['…lr0.01…', '…lr0.1…']
    >>> short_names(["one_of_a_great_many_tasks", "another_of_a_great_number"], 16)
    ['one_…many_tasks', 'another_…number']
    >>> short_names(["unpronounceable_appearances", "indistinguishable_differences"])
    ['unpro…_appearances', 'indis…_differences']
    """
    names = [printable(name) for name in names]
    if max(map(len, names), default=0) <= width:
        return names
    words = [_words(name) for name in names]
    least = min(map(len, words)) - 1
    start = next((i for i in range(least) if len({w[i] for w in words}) > 1), least)
    end = next((i for i in range(least - start) if len({w[-1 - i] for w in words}) > 1), least - start)
    shortened = ["".join(w[start : len(w) - end]) for w in words]
    shortened = [f"{'…' * (start > 0)}{n.rstrip('_-/ ') if end else n}{'…' * (end > 0)}" for n in shortened]
    counts = Counter(word.rstrip("_-/ ") for name in shortened for word in set(_words(name)))
    shortened = [_without_common_words(name, width, counts) for name in shortened]
    head = (width - 1) // 3
    shortened = [n if len(n) <= width else f"{n[:head]}…{n[len(n) - (width - 1 - head) :]}" for n in shortened]
    if len(set(shortened)) == len(set(names)):
        return shortened
    return [f"{name[: width - 1 - len(str(i))]}…{i}" for i, name in enumerate(shortened, 1)]


def _words(name: str) -> list[str]:
    return re.findall(r"[^_\-/ ]*[_\-/ ]?", name)[:-1]


def _without_common_words(name: str, width: int, counts: Counter[str]) -> str:
    """The name without its commonest words, until it fits. Words that no other name has are kept."""
    words = _words(name)
    often = [counts[word.rstrip("_-/ ")] for word in words]
    while len(name) > width and max(often) > 1:
        commonest = often.index(max(often))
        words[commonest], often[commonest] = "…", 0
        name = re.sub("…+", "…", "".join(words))
    return name


def _brackets(tree: NDArray[np.float64], order: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The line of each join, up, across and down: its columns and its heights, (joins, 4) each.

    SciPy's ``dendrogram`` recurses, and fails if a thousand leaves join one after another.
    """
    count = len(order)
    middle, height = np.zeros(count + len(tree)), np.zeros(count + len(tree))
    middle[np.asarray(order)] = np.arange(count) + 0.5
    across, up = [], []
    for join, (first, second, distance, _) in enumerate(tree, count):
        left, right = sorted((int(first), int(second)), key=middle.__getitem__)
        across.append([middle[left], middle[left], middle[right], middle[right]])
        up.append([height[left], distance, distance, height[right]])
        middle[join], height[join] = (middle[left] + middle[right]) / 2, distance
    return np.array(across), np.array(up)


def _draw_strip(axes: Axes, figure: Figure, title: str, numbers: Sequence[int], row: int) -> None:
    """Draws the groups of the columns above the heatmap, as pale colours with letters; rows are counted upwards."""
    inches = 0.7 * figure.get_size_inches()[1]
    strip = axes.inset_axes((0, 1.01 + row * STRIP / inches, 1, 0.85 * STRIP / inches), sharex=axes)
    colours = [to_rgb(colour) for colour in sns.color_palette("pastel")]
    width = 0.7 * 72 * figure.get_size_inches()[0] / len(numbers)  # of a column, points
    start = 0
    for number, members in groupby(numbers):
        count = len(list(members))
        if number >= 0:
            strip.add_patch(Rectangle((start, 0), count, 1, facecolor=colours[number % len(colours)], linewidth=0))
            if count * width >= 6 * len(_letters(number)):  # else there is no room for it
                at: dict[str, Any] = {"ha": "center", "va": "center", "color": INK_ON_COLOUR, "fontsize": 7}
                strip.text(start + count / 2, 0.45, _letters(number), **at)
        start += count
    strip.set_ylim(0, 1)
    strip.set_yticks([0.5], [title], fontsize=6.5)
    strip.tick_params(axis="both", length=0, labelbottom=False)
    strip.spines[:].set_visible(False)


def _letters(number: int) -> str:
    """A group's number as letters: A to Z, then AA.

    >>> _letters(0), _letters(25), _letters(26)
    ('A', 'Z', 'AA')
    """
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _draw_tree(
    axes: Axes, figure: Figure, across: NDArray[np.float64], up: NDArray[np.float64], above: float = 0.0
) -> None:
    """Draws the tree above the heatmap, and so many inches higher.

    As an inset it keeps the width of the heatmap in every layout.
    """
    inches = 0.7 * figure.get_size_inches()[1]
    tree = axes.inset_axes((0, 1.01 + above / inches, 1, 0.75 / inches), sharex=axes)
    joins = up.max(1).tolist()
    top, least = max(joins) or 1.0, min((y for y in joins if y > SAME), default=1.0)
    if top > 30 * least:
        tree.set_yscale("log")
        tree.minorticks_off()
        floor, ceiling = least / 4, top * (top / least) ** 0.05
        ticks = {10.0**k: f"{1 - 10.0**k:.{max(0, -k)}f}" for k in range(-6, 1) if floor < 10.0**k < ceiling}
    else:
        floor, ceiling = 0.0, 1.05 * top
        ticks = {top: f"{1 - top:z.{decimals(top)}f}"}
    if floor == 0 or min(joins) <= SAME:
        ticks[floor] = "1"
    lines = list(np.stack([across, up.clip(floor)], 2))
    tree.add_collection(LineCollection(lines, colors=INK, linewidths=0.8, capstyle="projecting"))
    tree.set_ylim(floor, ceiling)
    tree.set_yticks(list(ticks), list(ticks.values()))
    tree.set_ylabel("joined at", fontsize=6.5)
    tree.tick_params(axis="x", length=0, labelbottom=False)
    tree.tick_params(axis="y", length=2, labelsize=6.5)
    tree.spines["bottom"].set_visible(False)
    tree.spines["left"].set_linewidth(0.6)


def _outline(axes: Axes, groups: Sequence[int]) -> None:
    start = 0
    for _, members in groupby(groups):
        size = len(list(members))
        axes.add_patch(
            Rectangle((start, start), size, size, fill=False, edgecolor=INK, linewidth=1.2, clip_on=False, zorder=3)
        )
        start += size
