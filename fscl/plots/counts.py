"""How many images of each class every client of a federation has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fscl.errors import FsclError
from fscl.plots.clusters import short_names
from fscl.plots.figures import INK, new_axes, some_of, style
from fscl.plots.heatmaps import UNSEEN, CellText

__all__ = ["counts_heatmap"]

ANNOTATED = 20  # cells have numbers up to this number of clients and of classes
NAMED = 60  # most names on an axis; if there are more, some are named, at equal distances


def counts_heatmap(
    counts: ArrayLike,
    classes: Sequence[str],
    *,
    groups: Sequence[int] | None = None,
    label: str = "training images",
    ax: Axes | None = None,
) -> Axes:
    """Numbers of images of each class (rows) at each client (columns). No image is grey.

    Args:
        counts: (clients, classes).
        classes: names of the classes.
        groups: a group number for each client. Clients are sorted by group, and lines divide the groups.
        label: of the colour bar.
        ax: where to draw; a new figure by default.

    Raises:
        FsclError: the shape does not fit.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.ndim != 2 or not len(matrix) or matrix.shape[1] != len(classes):
        raise FsclError(f"counts has shape {matrix.shape} for {len(classes)} classes; (clients, classes) would do")
    clients = len(matrix)
    if groups is not None and len(groups) != clients:
        raise FsclError(f"there are {len(groups)} groups for {clients} clients; give one for each client")
    order = np.argsort(groups, kind="stable") if groups is not None else np.arange(clients)
    shown = np.ma.masked_array(matrix[order].T, matrix[order].T == 0)
    with style():
        size = (2.2 + 0.17 * min(max(clients, 12), 45), 1.3 + 0.17 * min(max(len(classes), 8), 30))
        axes = ax if ax is not None else new_axes(size)
        colours = mpl.colormaps["crest"].with_extremes(bad=UNSEEN)
        most = float(matrix.max()) or 1.0
        mesh = axes.pcolormesh(shown, cmap=colours, vmin=0, vmax=most, rasterized=True)
        if max(matrix.shape) <= ANNOTATED:
            for row, column in zip(*np.nonzero(~shown.mask), strict=True):
                under = colours(shown[row, column] / most)
                axes.add_artist(CellText(column + 0.5, row + 0.5, f"{shown[row, column]:.0f}", under))
        axes.set(xlim=(0, clients), ylim=(len(classes), 0))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        columns, rows = some_of(clients, NAMED), some_of(len(classes), NAMED)
        turned: dict[str, Any] = {"rotation": 90, "fontsize": 6.5} if len(columns) > 20 else {}
        axes.set_xticks([place + 0.5 for place in columns], [str(order[place]) for place in columns], **turned)
        names = short_names([classes[place] for place in rows])
        axes.set_yticks([place + 0.5 for place in rows], names, fontsize=8 if len(rows) <= 20 else 5.5)
        axes.set_xlabel("client, sorted by known group" if groups is not None else "client")
        axes.set_ylabel("class")
        if groups is not None:
            start = 0
            for _, members in groupby(groups[client] for client in order):
                start += len(list(members))
                if start < clients:
                    axes.axvline(start, color=INK, linewidth=1)
        bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.9, aspect=18, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2)
        bar.locator = MaxNLocator(5, integer=True)
        bar.update_ticks()
    return axes
