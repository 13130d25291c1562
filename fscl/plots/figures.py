"""Style, fonts, colours and short names of all figures; and saving a figure as a PNG file or as inline SVG.

Names come from users. They are drawn as plain text, never as formulas, in an installed font that has their letters.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import matplotlib as mpl
import seaborn as sns
from markupsafe import escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL.Image import Image
from PIL.Image import open as open_image

from fscl.errors import printable
from fscl.files import write_atomically

__all__ = [
    "INK",
    "INK_ON_COLOUR",
    "MARKERS",
    "STYLE",
    "WHITE_ON_COLOUR",
    "LearnerStyle",
    "abbreviate",
    "image_of",
    "inline_svg",
    "learner_styles",
    "mark_learner",
    "new_axes",
    "new_figure",
    "palette",
    "quiet_grid",
    "save_png",
    "shortened",
    "some_of",
    "style",
]

INK = "#24292f"
# numbers on coloured cells: an inline SVG keeps these two, while INK and white follow the page's theme
INK_ON_COLOUR, WHITE_ON_COLOUR = "#1f2328", "#fefefe"
BLUE, INDIGO = "#0173b2", "#332288"  # of the palette; a dark page needs lighter ones
THEMED = {INK: "currentColor", "#ffffff": "var(--page, #ffffff)"} | {
    colour: f"var(--{name}, {colour})" for name, colour in (("blue", BLUE), ("indigo", INDIGO))
}
LEARNER = "learner:"  # begins the SVG id of what belongs to a learner
MARKERS = "osD^vPX*<>"
LINES: tuple[Any, ...] = ("-", ":", "-.", (0, (8, 1.5, 1, 1.5, 1, 1.5)))  # learners of one colour
BOUND_LINES: tuple[Any, ...] = ("--", (0, (8, 3)), (0, (2, 2)))
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
    """Sets fscl's style within the block. The user's own settings are restored after it."""
    settings: Any = {**STYLE, **extra}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # _NamedFigure logs it once
        yield


class _NamedFigure(Figure):
    """A figure that is always drawn in fscl's style, with fonts that have the letters of all names."""

    def draw(self, renderer: Any) -> None:
        with style():
            for text in self.findobj(Text):
                assert isinstance(text, Text)
                text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
                _choose_fonts(text)
            super().draw(renderer)


def _choose_fonts(text: Text) -> None:
    """Adds fonts for letters that a text's first font lacks. Logs once which letters no font has."""
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
    face = get_font(font)
    return "".join(c for c in letters if not (c.isspace() or face.get_char_index(ord(c))))


@cache
def _fallback(letters: str) -> tuple[list[str], str]:
    """Installed font families that have the letters, and the letters that no font has."""
    families: list[str] = []
    for entry in fontManager.ttflist:
        # the font LastResort has a box for every letter
        if not letters or entry.style != "normal" or "LastResort" in entry.name.replace(" ", ""):
            continue
        try:
            still_lacking = _lacking(letters, entry.fname)
        except (OSError, RuntimeError):  # removed since Matplotlib listed fonts, or unreadable
            continue
        if still_lacking != letters and findfont(FontProperties(family=[entry.name])) == entry.fname:
            families.append(entry.name)
            letters = still_lacking
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


def shortened(label: str, width: int = 36) -> str:
    """Shortens the label of a learner or method at its end.

    >>> shortened("Atoms and head in clusters, 8 bits", 28)
    'Atoms and head in clusters,…'
    """
    label = printable(label)
    return label if len(label) <= width else f"{label[: width - 1].rstrip()}…"


def abbreviate(name: str, width: int = 18) -> str:
    """Shortens a task's name. A list of classes is shortened by whole classes.

    >>> abbreviate("apple, bear, beaver, bed, bee")
    'apple, bear +3'
    >>> abbreviate("aquarium fish with very long fins", 14)
    'aquarium fish…'
    """
    name = printable(name)
    if len(name) <= width:
        return name
    parts = name.split(", ")
    for count in range(len(parts) - 1, 0, -1):
        short = f"{', '.join(parts[:count])} +{len(parts) - count}"
        if len(short) <= width:
            return short
    suffix = f" +{len(parts) - 1}" if len(parts) > 1 else ""
    return f"{parts[0][: max(1, width - 1 - len(suffix))].rstrip()}…{suffix}"


def palette(labels: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour-blind-safe colour for each label. Equal labels get equal colours; eight colours are used in turn."""
    strong = _strong_colours()
    return {label: strong[i % len(strong)] for i, label in enumerate(labels)}


def _strong_colours() -> list[tuple[float, float, float]]:
    colours = sns.color_palette("colorblind")
    # without the pale and yellow colours, which are hard to see on white, and grey, which is for bounds; with indigo
    return [*(colours[i] for i in (0, 1, 2, 3, 4, 5, 9)), to_rgb(INDIGO)]


@dataclass(frozen=True)
class LearnerStyle:
    """How a learner is drawn in every figure: an RGB colour, and Matplotlib's names of a line style and a marker."""

    colour: tuple[float, float, float]
    line: Any
    marker: str


def learner_styles(labels: Iterable[str], bounds: Collection[str] = ()) -> dict[str, LearnerStyle]:
    """A style for each learner. Bounds are grey and dashed.

    Eight learners have solid lines in the colours of :func:`palette`, the next eight dotted lines in the same colours,
    and so on. So no two of 32 learners share both colour and line. Markers go on in their own order.
    """
    names = list(dict.fromkeys(labels))
    learners, bounding = [n for n in names if n not in bounds], [n for n in names if n in bounds]
    colours, period = palette(learners), len(_strong_colours())
    lines = {name: LINES[place // period % len(LINES)] for place, name in enumerate(learners)}
    lines |= {name: BOUND_LINES[place % len(BOUND_LINES)] for place, name in enumerate(bounding)}
    return {
        name: LearnerStyle(colours.get(name, to_rgb("grey")), lines[name], MARKERS[place % len(MARKERS)])
        for place, name in enumerate(names)
    }


def mark_learner(artist: Artist, label: str) -> None:
    """Says that an artist shows a learner. Its element of an inline SVG then has the attribute ``data-learner``."""
    artist.set_gid(LEARNER + quote(label, errors="surrogatepass"))  # quoted, an id is ASCII without quotation marks


def some_of(count: int, most: int) -> list[int]:
    """At most ``most`` of the indices 0 to ``count - 1``, at equal distances, from 0 on.

    >>> some_of(3, 10), some_of(1000, 4)
    ([0, 1, 2], [0, 250, 500, 750])
    """
    return list(range(0, count, max(1, -(-count // most))))


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure whose texts may contain any names."""
    return _NamedFigure(figsize=size, layout="constrained")


def new_axes(size: tuple[float, float]) -> Axes:
    return new_figure(size).subplots()


def quiet_grid(axes: Axes) -> None:
    axes.grid(axis="y", color=(0.5, 0.5, 0.5, 0.22), linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5)


def image_of(figure: Figure) -> Image:
    """A figure as an image with a white background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white")
    return open_image(buffer)


def save_png(figure: Figure, file: Path, dpi: int = 150) -> None:
    """Writes a PNG file with a white background, under a temporary name first, so that no half-written file is seen."""

    box = _tight_box(figure, 0.06)

    def write(temporary: Path) -> None:
        with style():
            figure.savefig(temporary, format="png", dpi=dpi, facecolor="white", bbox_inches=box)

    write_atomically(file, write)


def _tight_box(figure: Figure, pad: float) -> Bbox:
    """The box around all that is drawn, in inches. The layout is slow, so it is computed once for all files."""
    with style():
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine(None)
        return figure.get_tightbbox().padded(pad)


def _data_learner(gid: re.Match[str]) -> str:
    return f'data-learner="{escape(unquote(gid[1], errors="surrogatepass"))}"'


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """The figure as an ``<svg>`` element for HTML: transparent, with the page's text colour as its ink.

    ``prefix`` makes the ids of elements unique among several figures on one page. ``alt`` is the text for screen
    readers. The CSS variable ``--width`` has the width at which texts have their size in points.
    """
    buffer = io.StringIO()
    # with a fixed salt the same data gives the same SVG
    box = _tight_box(figure, 0.02)
    with style(**{"svg.hashsalt": "fscl"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None}, bbox_inches=box)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s(xmlns(:\w+)?)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    for colour, themed in THEMED.items():
        svg = svg.replace(colour, themed)
    svg = re.sub(rf'id="{prefix}-{LEARNER}([^"]*)"', _data_learner, svg)
    width = f"--width: {72 * box.width * 4 / 3:.0f}px"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" style="{width}" ', 1).strip()
