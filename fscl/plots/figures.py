"""What all figures share: ink, fonts, colours, short names; and a figure as a PNG file or as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fscl.files import write_atomically

__all__ = [
    "INK",
    "MARKERS",
    "STYLE",
    "abbreviate",
    "inline_svg",
    "learner_palette",
    "new_axes",
    "palette",
    "quiet_grid",
    "save_png",
    "style",
]

INK = "#24292f"
MARKERS = "osD^vPX*<>"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
}


def style(**extra: Any) -> AbstractContextManager[None]:
    """Draw inside this; it leaves the user's own settings as they were."""
    settings: Any = {**STYLE, **extra}
    return mpl.rc_context(settings)


def abbreviate(name: str, width: int = 18) -> str:
    """Shorten a task's name, by whole classes where it is a list of them.

    >>> abbreviate("apple, bear, beaver, bed, bee")
    'apple, bear +3'
    >>> abbreviate("aquarium fish with very long fins", 14)
    'aquarium fish…'
    """
    if len(name) <= width:
        return name
    parts = name.split(", ")
    for kept in range(len(parts) - 1, 0, -1):
        short = f"{', '.join(parts[:kept])} +{len(parts) - kept}"
        if len(short) <= width:
            return short
    rest = f" +{len(parts) - 1}" if len(parts) > 1 else ""
    return f"{parts[0][: max(1, width - 1 - len(rest))].rstrip()}…{rest}"


def palette(labels: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour-blind-safe colour for each label, the same whenever the labels are the same; there are eight in turn."""
    colours = sns.color_palette("colorblind")
    # The pale and the yellow ones vanish on white, and grey is for bounds: an indigo takes their place.
    strong = [*(colours[i] for i in (0, 1, 2, 3, 4, 5, 9)), to_rgb("#332288")]
    return {label: strong[i % len(strong)] for i, label in enumerate(labels)}


def learner_palette(labels: Iterable[str], bounds: Collection[str] = ()) -> dict[str, tuple[float, float, float]]:
    """Colours as in :func:`palette` for learners, and grey for the bounds among them."""
    names = list(labels)
    return {name: to_rgb("grey") for name in names} | palette([name for name in names if name not in bounds])


def new_axes(size: tuple[float, float]) -> Axes:
    return Figure(figsize=size, layout="constrained").subplots()


def quiet_grid(axes: Axes) -> None:
    axes.grid(axis="y", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5)


def save_png(figure: Figure, file: Path, dpi: int = 150) -> None:
    """Write on white, to a temporary name first, so that nobody finds half a file."""

    def write(temporary: Path) -> None:
        with style():
            figure.savefig(temporary, format="png", dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.06)

    write_atomically(file, write)


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """The figure as an ``<svg>`` element to put straight into HTML: transparent, its ink the page's text colour.

    ``prefix`` keeps element ids of several figures on one page apart; ``alt`` is what a screen reader says.
    """
    buffer = io.StringIO()
    # A fixed salt makes the same data give the same page.
    tight: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.02}
    with style(**{"svg.hashsalt": "fscl"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None}, **tight)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s(xmlns(:\w+)?)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip()
