"""Run folders -> one self-contained HTML page and one Markdown page that say the same."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fscl.errors import FsclError
from fscl.files import write_text_atomically, written_together
from fscl.plots.figures import inline_svg, save_png
from fscl.report.sections import Picture, Section, build_section
from fscl.report.table import COLUMNS
from fscl.runs.record import RunRecord
from fscl.runs.results import KEPT, write_runs

__all__ = ["ReportPaths", "environment", "escape_markdown", "write_report"]


@dataclass(frozen=True)
class ReportPaths:
    """What :func:`write_report` wrote."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]


def write_report(runs: Sequence[RunRecord], folder: str | Path, title: str | None = None) -> ReportPaths:
    """Write ``index.html`` (images inside, opens offline) and ``README.md`` with ``figures/*.png`` into ``folder``.

    One section for each benchmark. The runs themselves are kept in ``runs.json``, from which the report can be made
    again without the run folders. All files are written under temporary names and then renamed, so a report that is
    there already stays whole until its successor is. Raises :class:`FsclError` if no run is given.
    """
    if not runs:
        raise FsclError("no runs to report; give a folder that `fscl run --out` wrote")
    names = list(dict.fromkeys(run.stream for run in runs))
    sections = [build_section(name, [run for run in runs if run.stream == name]) for name in names]
    heading = title or " and ".join(section.title for section in sections)
    pictures = [picture for section in sections for picture in _pictures(section)]
    slugs = _unique([picture.slug for picture in pictures])
    slug_of = {id(picture): slug for picture, slug in zip(pictures, slugs, strict=True)}

    folder = Path(folder)
    files = [folder / "figures" / f"{slug}.png" for slug in slugs]

    def svg(picture: Picture) -> Markup:
        return Markup(inline_svg(picture.figure, slug_of[id(picture)], f"{picture.title}. {picture.caption}"))

    def png(picture: Picture) -> str:
        return f"figures/{slug_of[id(picture)]}.png"

    values = {"title": heading, "sections": sections, "columns": COLUMNS.values(), "svg": svg, "png": png}
    html, markdown = folder / "index.html", folder / "README.md"
    with written_together():
        for picture, file in zip(pictures, files, strict=True):
            save_png(picture.figure, file)
        write_text_atomically(html, environment(html=True).get_template("report.html.j2").render(values))
        write_runs(runs, folder / KEPT)
        write_text_atomically(markdown, environment(html=False).get_template("report.md.j2").render(values))
    return ReportPaths(html, markdown, tuple(files))


def escape_markdown(text: object) -> str:
    """Text as Markdown shows it literally, also inside a table cell.

    >>> print(escape_markdown("a|b <i> *c*"))
    a\\|b &lt;i&gt; \\*c\\*
    """
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", flat)


def environment(html: bool, *more: BaseLoader) -> Environment:
    """Our templates, and those of further loaders, for HTML or for Markdown."""
    made = Environment(
        loader=ChoiceLoader([*more, PackageLoader("fscl.report")]),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["md"] = escape_markdown
    return made


def _pictures(section: Section) -> list[Picture]:
    return [*section.overview, *section.accuracy, *section.similarity, *section.answers]


def _unique(slugs: Sequence[str]) -> list[str]:
    """Names of different characters can end as the same file name; the second one gets a number."""
    made: list[str] = []
    for slug in slugs:
        free = (name for n in itertools.count(2) if (name := f"{slug}-{n}") not in made and name not in slugs)
        made.append(slug if slug not in made else next(free))
    return made
