"""The study as one HTML page that opens offline, and one Markdown page with its figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from benchmarks.similarity.agreement.page import agreement_part
from benchmarks.similarity.blocks import Part, Picture, Table
from benchmarks.similarity.cost import cost_part
from benchmarks.similarity.failures.page import failures_part
from benchmarks.similarity.grounding.page import grounding_part
from benchmarks.similarity.libraries.page import libraries_part
from benchmarks.similarity.opening import opening
from benchmarks.similarity.prose import TEMPLATES
from benchmarks.similarity.robustness.page import robustness_part
from benchmarks.similarity.run import Results
from benchmarks.similarity.transformers.page import transformers_part
from fscl.files import write_text_atomically, written_together
from fscl.plots.figures import inline_svg, save_png
from fscl.report.page import environment

__all__ = ["PARTS", "parts_of", "write_page"]

TITLE = "Can a cosine of filter atoms stand in for CKA and CCA?"
PARTS: Mapping[
    str, Callable[[Mapping[str, Any]], Part]
] = {  # by the section whose results they show, as the page has them
    "agreement": agreement_part,
    "robustness": robustness_part,
    "grounding": grounding_part,
    "failures": failures_part,
    "transformers": transformers_part,
    "libraries": libraries_part,
}


def parts_of(results: Results, speed: Path | None = None) -> list[Part]:
    """The sections for whose units there are results, and before the grounding the costs that were measured.

    Args:
        results: all that was measured.
        speed: ``results.json`` of ``python -m benchmarks.speed``; None leaves the costs out.
    """
    parts = []
    for name, part in PARTS.items():
        if name == "grounding" and speed is not None:
            parts.append(cost_part(speed))
        if measured := results.of_section(name):
            parts.append(part(measured))
    return parts


@written_together()
def write_page(results: Results, parts: Sequence[Part], out: Path) -> Path:
    """Writes ``index.html``, ``README.md`` and ``figures/*.png`` into a folder; returns the HTML page."""
    pictures = [block for part in parts for block in part.blocks if isinstance(block, Picture)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        save_png(picture.figure, out / "figures" / f"{picture.slug}.png")
    values = {"title": TITLE, "facts": _facts(results), "parts": [opening(parts), *parts], "kind": _kind}
    html = environment(True, TEMPLATES)
    html.filters["rich"] = lambda text: Markup(_inline(str(escape(_signs(text))), ("<strong>", "</strong>"), "code"))
    html.globals["svg"] = lambda p: Markup(inline_svg(p.figure, p.slug, f"{p.title}. {p.caption}"))
    markdown = environment(False, TEMPLATES)
    markdown.filters["text"] = lambda text: re.sub(r"<(?=[A-Za-z/!?])", r"\<", _signs(text))
    write_text_atomically(out / "index.html", html.get_template("templates/page.html.j2").render(values))
    write_text_atomically(out / "README.md", markdown.get_template("templates/page.md.j2").render(values))
    return out / "index.html"


def _facts(results: Results) -> list[tuple[str, str]]:
    units = list(results.units.values())
    dates = sorted({unit.date for unit in units})
    missing = f" of {results.of}" if len(units) < results.of else ""
    hours = sum(unit.seconds for unit in units) / 3600
    return [
        ("mode", "quick: small populations, to try the code" if results.quick else "full"),
        ("made by", f"python -m benchmarks.similarity --data DIR{' --quick' if results.quick else ''}"),
        ("work", f"{len(units)}{missing} units, {hours:.1f} hours of one core"),
        ("machine", "; ".join(sorted({unit.machine for unit in units}))),
        ("date", dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"),
    ]


def _kind(block: object) -> str:
    return "table" if isinstance(block, Table) else "picture" if isinstance(block, Picture) else "text"


def _inline(text: str, strong: tuple[str, str], code: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", rf"{strong[0]}\1{strong[1]}", text)
    return re.sub(r"`(.+?)`", rf"<{code}>\1</{code}>", text)


def _signs(text: str) -> str:
    """Minus signs in front of numbers."""
    return re.sub(r"(?<![\w.\-`])-(?=\d)", "\N{MINUS SIGN}", text)
