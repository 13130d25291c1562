"""Writes a report of runs: one self-contained HTML page and one Markdown page with the same content."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

import fscl
from fscl.errors import FsclError
from fscl.files import remove_stale, write_text_atomically, written_together
from fscl.plain import read_json
from fscl.plots.figures import inline_svg, save_png
from fscl.report.federation.section import FederationSection, build_federation
from fscl.report.findings import answer, opening
from fscl.report.provenance import SETTINGS
from fscl.report.sections import Picture, Section, build_section, slugged
from fscl.report.table import ANSWERS, ANSWERS_BY_SEED, COLUMNS
from fscl.report.tables import TABLES
from fscl.runs.records.record import Record
from fscl.runs.results import KEPT, federations_of, runs_text, streams_of, write_runs

__all__ = ["ReportPaths", "environment", "escape_markdown", "write_report"]

PACKAGE = Path(fscl.__file__).parent
KEPT_HOLDS = "all of it, as fscl.load_runs and fscl report read it"
SOURCES = (".py", ".j2", ".css", ".js")
AnySection = Section | FederationSection
DRAWN = ".drawn.json"  # what a report was drawn from, and hashes of its files


@dataclass(frozen=True)
class ReportPaths:
    """The files that :func:`write_report` wrote."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]


def write_report(runs: Sequence[Record], folder: str | Path, title: str | None = None) -> ReportPaths:
    """Writes ``index.html`` (images inside, opens offline) and ``README.md`` with ``figures/*.png`` into ``folder``.

    There is one section for each benchmark. The tables of ``fscl.report.tables`` that concern the runs are beside the
    pages as CSV. The records of the runs are kept in ``runs.json``, so the report can be made again without the run
    folders. A report that would not change is not written again. All files are written under temporary names and then
    renamed, so an earlier report stays whole until the new one is complete.

    Raises:
        FsclError: there is no run.
    """
    if not runs:
        raise FsclError("no runs to report; give a folder that `fscl run --out` wrote")
    folder = Path(folder)
    html, markdown, kept = folder / "index.html", folder / "README.md", folder / KEPT
    shown_tables = {f"{name}.csv": table for name, table in TABLES.items() if table.concerns(runs)}
    tables = tuple(folder / name for name in shown_tables)
    stamp = _stamp(runs, title)
    if (figures := _drawn_figures(folder, stamp)) is not None:
        for place in (folder, folder / "figures"):
            remove_stale(place)
        return ReportPaths(html, markdown, figures, tables)
    sections = [*_of_streams(runs), *_of_federations(runs)]
    heading = title or " and ".join(section.title for section in sections)
    pictures = [picture for section in sections for picture in section.pictures]
    slugs = _unique([picture.slug for picture in pictures])
    slug_of = {id(picture): slug for picture, slug in zip(pictures, slugs, strict=True)}

    anchors = {
        id(section): slug for section, slug in zip(sections, _unique([slugged(s.name) for s in sections]), strict=True)
    }
    files = [folder / "figures" / f"{slug}.png" for slug in slugs]

    def svg(picture: Picture) -> Markup:
        return Markup(inline_svg(picture.figure, slug_of[id(picture)], f"{picture.title}. {picture.caption}"))

    def png(picture: Picture) -> str:
        return f"figures/{slug_of[id(picture)]}.png"

    def anchor(item: Picture | AnySection, topic: str = "") -> str:
        """The id of an element of the page. The slug of a picture has no two hyphens in a row, and no underscore."""
        if isinstance(item, Picture):
            return slug_of[id(item)]
        return f"{anchors[id(item)]}--{topic}" if topic else f"{anchors[id(item)]}_"

    def heatmap(section: AnySection, learner: str) -> str:
        picture = section.picture_of(learner)
        return anchor(picture) if picture else ""

    values = {
        "title": heading,
        "sections": sections,
        "kinds": {section.kind for section in sections},
        "columns": tuple(COLUMNS.values()),
        "settings": SETTINGS,
        "answers": ANSWERS,
        "answers_by_seed": ANSWERS_BY_SEED,
        "opening": opening,
        "answer": answer,
        "files": [
            *((name, table.holds) for name, table in shown_tables.items()),
            (KEPT, KEPT_HOLDS),
            *([("figures/", "the figures as PNG files")] if pictures else []),
        ],
        "tables": shown_tables,
        "svg": svg,
        "png": png,
        "anchor": anchor,
        "heatmap": heatmap,
    }
    with written_together() as drafted:
        for picture, file in zip(pictures, files, strict=True):
            save_png(picture.figure, file)
        write_text_atomically(html, _template("report.html.j2").render(values))
        write_runs(runs, kept)
        for table, file in zip(shown_tables.values(), tables, strict=True):
            write_text_atomically(file, table.csv(runs))
        write_text_atomically(markdown, _template("report.md.j2").render(values))
        # last, and of what this process wrote: a report is drawn again if a crash, or a process that draws another
        # report here at the same time, left other files in its place
        hashes = {f.relative_to(folder).as_posix(): _hash(drafted(f)) for f in (*files, html, kept, *tables, markdown)}
        write_text_atomically(folder / DRAWN, json.dumps({"stamp": stamp, "files": hashes}))
    return ReportPaths(html, markdown, tuple(files), tables)


def _stamp(runs: Sequence[Record], title: str | None) -> str:
    """A hash of everything that decides what a report shows: runs, title, the code, and the versions of libraries."""
    digest = hashlib.sha256(f"{title}\n{runs_text(runs)}".encode())
    for package in ("matplotlib", "seaborn", "numpy", "scipy"):
        digest.update(f"{package} {version(package)}\n".encode())
    for file in sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES and path.is_file()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _drawn_figures(folder: Path, stamp: str) -> tuple[Path, ...] | None:
    """The figures of the existing report if it has this stamp and all its files are whole; None if it must be drawn."""
    try:
        drawn = read_json(folder / DRAWN)
        hashes = {folder / name: digest for name, digest in drawn["files"].items()}
        if drawn["stamp"] != stamp or any(_hash(file) != digest for file, digest in hashes.items()):
            return None
    except (FsclError, OSError, LookupError, TypeError, AttributeError):  # not there, or changed by another hand
        return None
    return tuple(file for file in hashes if file.suffix == ".png")


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def escape_markdown(text: object) -> str:
    """The text escaped, so that Markdown shows it literally, also inside a table cell.

    >>> print(escape_markdown("a|b <i> *c*"))
    a\\|b &lt;i&gt; \\*c\\*
    """
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", flat)


def environment(html: bool, *more: BaseLoader) -> Environment:
    """A Jinja environment for HTML or for Markdown, with the templates of this package and of further loaders."""
    templates = Environment(
        loader=ChoiceLoader([*more, PackageLoader("fscl.report")]),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["md"] = escape_markdown
    return templates


@functools.cache
def _template(name: str) -> Template:
    """A template of this package. To compile all takes a fifth of a report's time without its figures."""
    return environment(html=".html" in name).get_template(name)


def _of_streams(runs: Sequence[Record]) -> list[AnySection]:
    streams = streams_of(runs)
    names = dict.fromkeys(run.stream for run in streams)
    return [build_section(name, [run for run in streams if run.stream == name]) for name in names]


def _of_federations(runs: Sequence[Record]) -> list[AnySection]:
    federations = federations_of(runs)
    names = dict.fromkeys(run.stream for run in federations)
    return [build_federation(name, [run for run in federations if run.stream == name]) for name in names]


def _unique(slugs: Sequence[str]) -> list[str]:
    """File names without repeats. Different names can give the same slug, and then later ones get a number."""
    unique: list[str] = []
    for slug in slugs:
        free = (name for n in itertools.count(2) if (name := f"{slug}-{n}") not in unique and name not in slugs)
        unique.append(slug if slug not in unique else next(free))
    return unique
