"""What all figures share: ink, fonts, colours, short names; and a figure as a PNG file or as inline SVG.

Names come from outside. They are drawn as plain text, never as formulas, in whichever installed font has their letters.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from fscl.files import write_atomically
from fscl.text import printable

__all__ = [
    "INK",
    "MARKERS",
    "STYLE",
    "abbreviate",
    "inline_svg",
    "learner_palette",
    "new_axes",
    "new_figure",
    "palette",
    "quiet_grid",
    "save_png",
    "some_of",
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
    "text.parse_math": False,
    "text.usetex": False,
}


@contextmanager
def style(**extra: Any) -> Iterator[None]:
    """Draw inside this; it leaves the user's own settings as they were."""
    settings: Any = {**STYLE, **extra}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # said once, by _NamedFigure
        yield


class _NamedFigure(Figure):
    """Is drawn in our style wherever it is drawn, with fonts that have the letters of all names."""

    def draw(self, renderer: Any) -> None:
        with style():
            for text in self.findobj(Text):
                assert isinstance(text, Text)
                text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
                _choose_fonts(text)
            super().draw(renderer)


def _choose_fonts(text: Text) -> None:
    """Adds to a text's fonts those that have what its first lacks; says once which letters no font has."""
    if text.get_text().isascii():
        return
    lacking = _lacking("".join(sorted(set(text.get_text()))), findfont(text.get_fontproperties()))
    if not lacking:
        return
    families, unknown = _fallback(lacking)
    text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *families])])
    if unknown:
        _say_unknown(unknown)


@cache
def _lacking(letters: str, font: str) -> str:
    known = get_font(font)
    return "".join(c for c in letters if not (c.isspace() or known.get_char_index(ord(c))))


@cache
def _fallback(letters: str) -> tuple[list[str], str]:
    """Installed families that have the letters, and the letters that none has."""
    families: list[str] = []
    for entry in fontManager.ttflist:
        # the last resort has a box for every letter
        if not letters or entry.style != "normal" or "LastResort" in entry.name.replace(" ", ""):
            continue
        try:
            left = _lacking(letters, entry.fname)
        except (OSError, RuntimeError):  # gone since Matplotlib looked for fonts, or none that it can read
            continue
        if left != letters and findfont(FontProperties(family=[entry.name])) == entry.fname:
            families.append(entry.name)
            letters = left
    return families, letters


_unknown_said: list[str] = []


def _say_unknown(letters: str) -> None:
    if not _unknown_said:
        _unknown_said.append(letters)
        logging.getLogger(__name__).warning(
            "Figures show boxes for letters that no installed font has (%s%s); a font that has them would do, such as "
            "Noto Sans or Noto Sans CJK",
            letters[:8],
            " ..." * (len(letters) > 8),
        )


def abbreviate(name: str, width: int = 18) -> str:
    """Shorten a task's name, by whole classes where it is a list of them.

    >>> abbreviate("apple, bear, beaver, bed, bee")
    'apple, bear +3'
    >>> abbreviate("aquarium fish with very long fins", 14)
    'aquarium fish…'
    """
    name = printable(name)
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


def some_of(count: int, most: int) -> list[int]:
    """Places of at most so many of a row of things, at equal distances from the first on.

    >>> some_of(3, 10), some_of(1000, 4)
    ([0, 1, 2], [0, 250, 500, 750])
    """
    return list(range(0, count, max(1, -(-count // most))))


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure whose texts may hold any names."""
    return _NamedFigure(figsize=size, layout="constrained")


def new_axes(size: tuple[float, float]) -> Axes:
    return new_figure(size).subplots()


def quiet_grid(axes: Axes) -> None:
    axes.grid(axis="y", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5)


def save_png(figure: Figure, file: Path, dpi: int = 150) -> None:
    """Write on white, to a temporary name first, so that nobody finds half a file."""

    box = _tight_box(figure, 0.06)

    def write(temporary: Path) -> None:
        with style():
            figure.savefig(temporary, format="png", dpi=dpi, facecolor="white", bbox_inches=box)

    write_atomically(file, write)


def _tight_box(figure: Figure, pad: float) -> Bbox:
    """The box, in inches, around all that is drawn. The layout is found once for all files: it takes half the time."""
    with style():
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine(None)
        return figure.get_tightbbox().padded(pad)


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """The figure as an ``<svg>`` element to put straight into HTML: transparent, its ink the page's text colour.

    ``prefix`` keeps element ids of several figures on one page apart; ``alt`` is what a screen reader says.
    """
    buffer = io.StringIO()
    # A fixed salt makes the same data give the same page.
    box = _tight_box(figure, 0.02)
    with style(**{"svg.hashsalt": "fscl"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None}, bbox_inches=box)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s(xmlns(:\w+)?)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip()
