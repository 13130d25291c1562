"""The documentation site: `uv run --group docs sphinx-build -W docs site`. Its reference is made from the code."""

import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from fscl import __version__
from fscl.cli.app import app
from fscl.runs import schema

project = "fscl"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"fscl {__version__}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings = ["myst.header"]  # reports begin a part at any level

REFERENCE = Path(__file__).parent / "reference"


def command_line() -> str:
    """Every command with its options, as `--help` has them."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="fscl", title="The command line")
    return text.replace("# `fscl`", "# The command line", 1)


def recipe_keys() -> str:
    """Every key that a recipe may have, with what it takes and what it is by default."""
    parts = ["# Recipe keys", inspect.cleandoc(RECIPES)]
    for title, recipe in (("Benchmarks", schema.BenchmarkRecipe), ("Strategies", schema.StrategyRecipe)):
        parts += [f"## {title}", inspect.getdoc(recipe) or ""]
        parts += [*_section(recipe, "")]
    return "\n\n".join(parts)


RECIPES = """
A recipe is a TOML file: a stream in `benchmarks/`, a learner in `strategies/`, or a file of your own. An unknown key is
refused, and the keys that exist are named. `--set KEY=VALUE` changes any of them for one command.
"""


def _section(recipe: type[BaseModel], prefix: str) -> list[str]:
    rows = ["| key | what it says | takes | by default |", "| :-- | :-- | :-- | :-- |"]
    below: list[str] = []
    for name, field in recipe.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            below += [f"### `[{key}]`", inspect.getdoc(kind) or "", *_section(kind, f"{key}.")]
            continue
        default = (
            "required" if field.is_required() else f"`{field.default!r}`" if field.default not in ("", None) else ""
        )
        rows.append(f"| `{key}` | {' '.join((field.description or '').split())} | {_kind(kind)} | {default} |")
    return ["\n".join(rows), *below] if len(rows) > 2 else below


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin in (types.UnionType, typing.Union):
        kinds = [_kind(each) for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin in (list, dict):
        held = _kind(arguments[-1])
        return f"list of {held}" if origin is list else f"table of {held}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return " and ".join(f"`{name}`" for name in annotation.model_fields)
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _reports_to_download(app: Any, page: str, source: list[str]) -> None:
    """Reports lie outside the site: links to them, which are for readers of the repository, give the file."""
    source[0] = re.sub(r"(?<!!)\[([^]]*)\]\(((?:\.\./)+reports/[^)]+)\)", r"{download}`\1 <\2>`", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _reports_to_download)


for page, make in (("cli.md", command_line), ("recipes.md", recipe_keys)):
    (REFERENCE / page).write_text(make(), encoding="utf-8")
