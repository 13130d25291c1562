"""The evidence as one HTML page that opens offline, and one Markdown page with its figures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader
from markupsafe import Markup, escape

from benchmarks.similarity.contents import Part, Picture, Table
from benchmarks.similarity.opening import opening
from fscl.files import write_text_atomically, written_together
from fscl.plots.figures import inline_svg, save_png
from fscl.report.page import environment

__all__ = ["write_page"]

TEMPLATES = FileSystemLoader(Path(__file__).parent / "templates")
TITLE = "Can a cosine of filter atoms stand in for CKA and CCA?"


@written_together()
def write_page(results: dict[str, Any], parts: Sequence[Part], out: Path) -> Path:
    """Writes ``index.html``, ``README.md`` and ``figures/*.png`` into a folder; returns the HTML page."""
    pictures = [block for part in parts for block in part.blocks if isinstance(block, Picture)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        save_png(picture.figure, out / "figures" / f"{picture.slug}.png")
    done = list(results["units"].values())
    of = results.get("of", len(done))
    dates = sorted({unit["date"] for unit in done})
    facts = [
        ("mode", "quick: small populations, to try the code" if results["quick"] else "full"),
        ("made by", f"python -m benchmarks.similarity --data DIR{' --quick' if results['quick'] else ''}"),
        (
            "work",
            f"{len(done)}{f' of {of}' if len(done) < of else ''} units, "
            f"{sum(unit['seconds'] for unit in done) / 3600:.1f} hours of one core",
        ),
        ("machine", "; ".join(sorted({unit["machine"] for unit in done}))),
        ("date", dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"),
    ]
    values = {"title": TITLE, "facts": facts, "parts": [opening(parts), *parts], "kind": _kind}
    html = environment(True, TEMPLATES)
    html.filters["rich"] = lambda text: Markup(_inline(str(escape(_signs(text))), ("<strong>", "</strong>"), "code"))
    html.globals["svg"] = lambda p: Markup(inline_svg(p.figure, p.slug, f"{p.title}. {p.caption}"))
    markdown = environment(False, TEMPLATES)
    markdown.filters["text"] = lambda text: re.sub(r"<(?=[A-Za-z/!?])", r"\<", _signs(text))
    write_text_atomically(out / "index.html", html.get_template("evidence.html.j2").render(values))
    write_text_atomically(out / "README.md", markdown.get_template("evidence.md.j2").render(values))
    return out / "index.html"


def _kind(block: object) -> str:
    return "table" if isinstance(block, Table) else "picture" if isinstance(block, Picture) else "text"


def _inline(text: str, strong: tuple[str, str], code: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", rf"{strong[0]}\1{strong[1]}", text)
    return re.sub(r"`(.+?)`", rf"<{code}>\1</{code}>", text)


def _signs(text: str) -> str:
    """Minus signs in front of numbers."""
    return re.sub(r"(?<![\w.\-`])-(?=\d)", "\N{MINUS SIGN}", text)
