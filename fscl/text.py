"""Numbers and values as text for people. Results stay numbers until a page or a terminal shows them."""

import math
import reprlib
from collections.abc import Iterable, Sequence
from html import escape

__all__ = [
    "DASH",
    "brief",
    "clock",
    "decimal",
    "decimals",
    "html_table",
    "human_bytes",
    "human_seconds",
    "interval",
    "percent",
    "points",
    "signed",
    "small_p",
    "spreadsheet_text",
]

DASH = "–"  # stands for a number that is not defined

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # a spreadsheet takes text that begins so for a formula

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def decimal(value: float | None, places: int = 2) -> str:
    """A number with fixed decimals and a typographic minus. A number that rounds to 0 has no minus.

    >>> decimal(0.125), decimal(-12.34, 1), decimal(-0.001), decimal(None)
    ('0.12', '−12.3', '0.00', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{value:z.{places}f}".replace("-", "−")


def signed(value: float, places: int = 2) -> str:
    """A number with its sign. A number that rounds to 0 has none.

    >>> signed(0.5), signed(-0.25), signed(-0.001)
    ('+0.50', '−0.25', '0.00')
    """
    text = decimal(value, places)
    return f"+{text}" if round(value, places) > 0 else text


def points(share: float | None, places: int = 2, sign: bool = False) -> str:
    """A share, or a difference of shares, in hundredths.

    >>> points(0.8336), points(-0.05, sign=True), points(None)
    ('83.36', '−5.00', '–')
    """
    if share is None:
        return DASH
    return signed(100 * share, places) if sign else decimal(100 * share, places)


def interval(low: float, high: float, places: int = 2) -> str:
    """An interval with signed ends; empty if the ends are not finite.

    >>> interval(-0.5, 0.25), interval(float("nan"), float("nan"))
    ('[−0.50, +0.25]', '')
    """
    return f"[{signed(low, places)}, {signed(high, places)}]" if math.isfinite(low) else ""


def small_p(value: float) -> str:
    """A p-value with three decimals.

    >>> small_p(0.00012), small_p(0.0314), small_p(float("nan"))
    ('< 0.001', '0.031', '–')
    """
    return "< 0.001" if value < 0.001 else decimal(value, 3)


def percent(share: float) -> str:
    """A share in percent, rounded down, so that only a full share is 100 %.

    >>> percent(0.99996), percent(1.0)
    ('99.9 %', '100 %')
    """
    return "100 %" if share > 1 - 1e-9 else f"{int(1000 * share) / 10:.1f} %"


def decimals(distance: float, least: int = 2, most: int = 4) -> int:
    """The number of decimals that shows two digits of the distance between numbers.

    >>> decimals(1.0), decimals(0.04), decimals(0.002), decimals(4e-7, most=6)
    (2, 3, 4, 6)
    """
    return min(most, max(least, 1 + math.ceil(-math.log10(max(distance, 1e-9)))))


def human_bytes(size: float) -> str:
    """A number of bytes in decimal units: 1 kB = 1000 B.

    >>> human_bytes(17600), human_bytes(432), human_bytes(16e6)
    ('17.6 kB', '432 B', '16.0 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95 or unit == "GB":
            break
    return f"{size:.1f} {unit}"


def human_seconds(seconds: float, whole_minutes: bool = False) -> str:
    """A duration with units. ``whole_minutes`` leaves out the seconds of a duration below one hour.

    >>> human_seconds(4.27), human_seconds(140), human_seconds(7260), human_seconds(140, whole_minutes=True)
    ('4.3 s', '2 min 20 s', '2 h 01 min', '2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" if whole_minutes else f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def clock(seconds: float | None) -> str:
    """A duration as on a digital clock.

    >>> clock(None), clock(62.4), clock(3725.0)
    ('–', '1:02', '1:02:05')
    """
    if seconds is None:
        return DASH
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def html_table(caption: str, heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook. Texts are escaped, because names may come from strangers' files.

    >>> html_table("1 task", ["task"], [["<b>"]])
    '<table><caption>1 task</caption><tr><th>task</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """

    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(cells, "td") for cells in rows)
    return f"<table><caption>{escape(caption)}</caption>{line(heading, 'th')}{body}</table>"


def brief(value: object) -> str:
    """A value for an error message: one line of at most 80 characters.

    >>> brief("a\\nb"), len(brief("x" * 1000))
    ("'a\\\\nb'", 80)
    """
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer with more digits than Python converts
        text = "an integer of thousands of digits"
    return text if text.isprintable() else ascii(text)


def spreadsheet_text(text: str) -> str:
    """A text as a cell of a CSV file. An apostrophe before a formula keeps spreadsheets from computing it.

    >>> spreadsheet_text("=1+1"), spreadsheet_text("ant, bee")
    ("'=1+1", 'ant, bee')
    """
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
