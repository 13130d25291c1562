"""Heatmaps of accuracy and of similarity, readable from 2 tasks to 20 and beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from fscl.errors import FsclError
from fscl.plots.figures import (
    INK_ON_COLOUR,
    WHITE_ON_COLOUR,
    abbreviate,
    new_axes,
    new_figure,
    some_of,
    style,
)
from fscl.text import decimals

__all__ = [
    "UNSEEN",
    "CellText",
    "accuracy_heatmap",
    "similarity_by_layer",
    "similarity_heatmap",
    "similarity_label",
    "similarity_limits",
]

# a translucent grey means "no value" on white and on black; the diagonal is among pale cells and needs a darker one
UNSEEN = (0.5, 0.5, 0.5, 0.14)
DIAGONAL = (0.5, 0.5, 0.5, 0.42)
ANNOTATE_UP_TO = 12
NAMED = 100  # most names on an axis; if there are more tasks, some are named, at equal distances
PANELS = 24  # most layers that are drawn beside each other
PIXELS = 250  # most cells on a side of a panel
OVER_LAYERS = {
    "product": "product over layers of squares",
    "mean": "mean over layers",
    "depth": "mean over layers of the product of squares so far",
}
EVEN = 0.224  # luminance of the background on which white and ink have the same contrast
FILLED = 0.86  # the most of a cell's width that its number takes

Array = NDArray[np.float64]


def accuracy_heatmap(
    accuracy: ArrayLike,
    names: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy on task i (columns) after learning task t (rows), in %, from a (T, T) matrix of fractions.

    Only tasks that have been learned are drawn (i <= t). ``limits`` in % puts several heatmaps on one colour scale.
    """
    matrix = 100 * _square(accuracy, names)
    hidden = np.triu(np.ones(matrix.shape, dtype=bool), 1) | np.isnan(matrix)
    low, high = limits or (float(np.min(matrix[~hidden], initial=100)), 100.0)
    axes = _heatmap(matrix, hidden, names, _colours("crest", UNSEEN), (low, high), "accuracy (%)", None, ax)
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after learning task")
    return axes


def similarity_limits(similarity: ArrayLike) -> tuple[float, float]:
    """Smallest and largest off-diagonal value of matrices (..., T, T). The ones on the diagonal would waste colours.

    >>> similarity_limits([[1.0, 0.2], [0.2, 1.0]])[1] > 0.2  # a single value is widened into a range
    True
    """
    values = np.asarray(similarity, dtype=np.float64)
    low, high = np.inf, -np.inf
    for matrix in values.reshape(-1, *values.shape[-2:]):  # copies one layer at a time
        off = matrix[~np.eye(len(matrix), dtype=bool) & np.isfinite(matrix)]
        low, high = float(off.min(initial=low)), float(off.max(initial=high))
    if low > high:
        return 0.0, 1.0
    return (low, high) if high - low > 1e-6 else (low - 0.01, high + 0.01)


def similarity_label(metric: str, aggregate: str) -> str:
    """The name of a similarity measure, for a colour bar.

    >>> similarity_label("cosine", "product")
    'cosine similarity, product over layers of squares'
    """
    return f"{metric} similarity, {OVER_LAYERS.get(aggregate, aggregate)}"


def similarity_heatmap(
    similarity: ArrayLike,
    names: Sequence[str],
    *,
    limits: tuple[float, float] | None = None,
    label: str = "similarity",
    most_names: int = NAMED,
    ax: Axes | None = None,
) -> Axes:
    """A heatmap of task-to-task similarity (T, T). The diagonal is grey; the colours span the off-diagonal values.

    Of more than ``most_names`` tasks some are named, at equal distances. The figure grows with the names.
    """
    matrix = _square(similarity, names)
    hidden = np.eye(len(matrix), dtype=bool) | np.isnan(matrix)
    limits = limits or similarity_limits(matrix)
    places = decimals(limits[1] - limits[0], most=6 if len(matrix) <= 5 else 4)  # as many as fit into a cell
    annotated = matrix[:ANNOTATE_UP_TO, :ANNOTATE_UP_TO] if len(matrix) <= ANNOTATE_UP_TO else matrix[:0]
    texts = [[_written(value, places) for value in row] for row in annotated.tolist()]
    axes = _heatmap(matrix, hidden, names, _colours("flare", DIAGONAL), limits, label, texts, ax, most_names)
    axes.set_xlabel("task")
    axes.set_ylabel("task")
    return axes


def _written(value: float, places: int) -> str:
    """A similarity as text, with more digits if it would round to 1 but is less, and no sign if it rounds to 0.

    >>> _written(0.9, 2), _written(0.9987, 2), _written(0.99999, 2), _written(-0.001, 2)
    ('0.90', '.9987', '1', '0.00')
    """
    text = f"{value:z.{places}f}"
    if not (value < 1 and float(text) == 1):
        return text
    return f"{value:.4f}"[1:] if value < 0.99995 else "1"


def similarity_by_layer(
    similarity: ArrayLike,
    layers: Sequence[str],
    names: Sequence[str],
    *,
    columns: int = 4,
    label: str = "similarity",
) -> Figure:
    """One small heatmap for each layer of (L, T, T), all on one colour scale. Axes show numbers of tasks, not names."""
    stack = np.asarray(similarity, dtype=np.float64)
    if stack.ndim != 3 or len(stack) != len(layers):
        raise FsclError(f"similarity by layer has shape {stack.shape}; {len(layers)} layers need (L, T, T)")
    limits = similarity_limits(stack)
    drawn = some_of(len(layers), PANELS)
    columns = min(columns if len(drawn) <= 20 else 8, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with style():
        figure = new_figure((1.75 * columns + 0.8, 1.95 * rows + 0.15))
        grid = figure.subplots(rows, columns, squeeze=False)
        cmap = _colours("flare", DIAGONAL)
        shown = len(names) if len(names) <= 6 else 4
        ticks = np.linspace(0, len(names) - 1, shown).round().astype(int)
        mesh: Any = None
        for position, axes in enumerate(grid.flat):
            if position >= len(drawn):
                axes.set_visible(False)
                continue
            matrix = _square(stack[drawn[position]], names)
            hidden = np.eye(len(matrix), dtype=bool) | np.isnan(matrix)
            means, edge = _pooled(matrix, hidden)
            around = (-0.5, len(means) * edge - 0.5)
            mesh = axes.imshow(
                means,
                cmap=cmap,
                vmin=limits[0],
                vmax=limits[1],
                interpolation="nearest",
                extent=(*around, *around[::-1]),
            )
            axes.set_title(abbreviate(layers[drawn[position]], 20))
            axes.set_xticks(ticks, [str(t + 1) for t in ticks])
            axes.set_yticks(ticks, [str(t + 1) for t in ticks] if position % columns == 0 else [])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=list(grid.flat), shrink=0.9 if rows == 1 else 0.6, aspect=22)
        _plain(bar, label)
        omitted_note = f" ({len(drawn)} of {len(layers)} layers)" if len(drawn) < len(layers) else ""
        figure.supxlabel(f"task, in the order learned{omitted_note}", fontsize=9)
    return figure


def _pooled(matrix: Array, hidden: NDArray[np.bool_]) -> tuple[np.ma.MaskedArray[Any, Any], int]:
    """Means over square blocks of visible cells, at most ``PIXELS`` blocks on a side; and the side of a block."""
    edge = -(-len(matrix) // PIXELS)
    starts = np.arange(0, len(matrix), edge)
    total, count = (
        np.add.reduceat(np.add.reduceat(values, starts, 0), starts, 1)
        for values in (np.where(hidden, 0.0, matrix), (~hidden).astype(np.float64))
    )
    return np.ma.masked_array(total / np.maximum(count, 1), count == 0), edge


def _heatmap(
    matrix: Array,
    hidden: NDArray[np.bool_],
    names: Sequence[str],
    colours: Colormap,
    limits: tuple[float, float],
    label: str,
    texts: Sequence[Sequence[str]] | None,
    ax: Axes | None,
    most_names: int = NAMED,
) -> Axes:
    count = len(matrix)
    with style():
        side = max(3.9, 2.3 + 0.2 * count) if count <= 16 else max(5.6, 2.2 + 0.14 * min(count, most_names))
        axes = ax if ax is not None else new_axes((side + 0.5, side))
        shown = np.ma.masked_array(matrix, hidden)
        mesh = axes.pcolormesh(shown, cmap=colours, vmin=limits[0], vmax=limits[1], rasterized=True)
        axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        places = some_of(count, most_names)
        short = [abbreviate(names[place]) for place in places]
        font: Any = {"fontsize": 8.0 if count <= 12 else 6.5, "parse_math": False}
        centres = [place + 0.5 for place in places]
        axes.set_xticks(centres, short, rotation=45, ha="right", rotation_mode="anchor", **font)
        axes.set_yticks(centres, short, rotation=0, **font)
        for row, column in zip(*np.nonzero(~hidden), strict=True) if count <= ANNOTATE_UP_TO else ():
            value = matrix[row, column]
            under = colours((value - limits[0]) / max(limits[1] - limits[0], 1e-12))
            text = f"{value:.0f}" if texts is None else texts[row][column]
            axes.add_artist(CellText(column + 0.5, row + 0.5, text, under))
        bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.75, aspect=22, pad=0.03)
        _plain(bar, label)
    return axes


class CellText(Text):
    """A number in a cell of width 1, readable on the colour under it, and made smaller where it would not fit.

    The width is known only when it is drawn.
    """

    LARGEST = 8.0

    def __init__(self, x: float, y: float, text: str, under: tuple[float, ...]) -> None:
        color = WHITE_ON_COLOUR if _luminance(under) < EVEN else INK_ON_COLOUR
        super().__init__(x, y, text, ha="center", va="center", color=color, fontsize=self.LARGEST, clip_on=False)
        self.set_in_layout(False)

    def draw(self, renderer: Any) -> None:
        assert self.axes is not None
        (left, _), (right, _) = self.axes.transData.transform([(0, 0), (1, 0)])
        self.set_fontsize(self.LARGEST)
        width = self.get_window_extent(renderer).width
        self.set_fontsize(self.LARGEST * min(1.0, FILLED * abs(right - left) / width))
        super().draw(renderer)


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of sRGB values, as in the Web Content Accessibility Guidelines."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colours(name: str, empty: tuple[float, float, float, float]) -> Colormap:
    return mpl.colormaps[name].with_extremes(bad=empty)


def _plain(bar: Any, label: str) -> None:
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()


def _square(values: ArrayLike, names: Sequence[str]) -> Array:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != (len(names), len(names)):
        raise FsclError(f"the matrix has shape {matrix.shape}; {len(names)} task names need ({len(names)},) * 2")
    return matrix
