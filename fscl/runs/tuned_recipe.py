"""A benchmark's file with the settings that were found: its own words, order and comments stay."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.runs.tune import Protocol, Tuned

__all__ = ["changed_text", "write_recipe"]

MARK = "# fscl tune"
HEADER = re.compile(r"^([^\s#].*)\n(\[strategies\.)", re.MULTILINE)  # close below other words


def write_recipe(source: Path, target: Path, protocol: Protocol, found: Sequence[Tuned]) -> None:
    """Writes the settings found as what the benchmark says of each strategy, and how they were found above them.

    Args:
        source: the benchmark's TOML file.
        target: where it is written; may be the same.
        protocol: how settings were chosen.
        found: the strategies and their best trials. Where these are their own settings, only that is said.

    Raises:
        FsclError: the file cannot be written, or as :func:`changed_text`.
    """
    chosen = {one.strategy.name: {} if one.best is one.own else one.best.settings for one in found}
    text = changed_text(source, chosen, {one.strategy.name: _how(protocol, one) for one in found})
    write_text_atomically(target, text)


def changed_text(source: Path, chosen: Mapping[str, Mapping[str, Any]], said: Mapping[str, str]) -> str:
    """A benchmark's file with other settings of strategies.

    Args:
        source: the file.
        chosen: by strategy, such as ``{"ewc": {"args.ewc_lambda": 10.0}}``.
        said: by strategy, a comment above its tables, in place of the one that an earlier search has left.

    Raises:
        FsclError: what the file says of strategies is in a form that cannot be added to.

    Example:
        >>> from fscl.runs.recipe import find_recipe
        >>> found = changed_text(
        ...     find_recipe("benchmarks", "split_digits"), {"mas": {"args.alpha": 0.2}}, {"mas": "by hand"}
        ... )
        >>> print("\\n".join(found.splitlines()[-3:]))
        # fscl tune mas: by hand
        [strategies.mas.args]
        alpha = 0.2
    """
    import tomlkit

    lines = source.read_text(encoding="utf-8").splitlines()
    former = tuple(f"{MARK} {strategy}: " for strategy in said)
    text = "\n".join(line for line in lines if not line.startswith(former)) + "\n"
    document, expected = tomlkit.parse(text), tomllib.loads(text)
    for tables in (document, expected):
        for strategy, settings in chosen.items():
            mine = _table(_table(tables, "strategies"), strategy)
            for key, value in settings.items():
                section, _, name = key.partition(".")
                _table(mine, section)[name] = value
    text = HEADER.sub(r"\1\n\n\2", tomlkit.dumps(document))
    for strategy, words in said.items():
        text = _above(text, strategy, f"{MARK} {strategy}: {words}")
    if tomllib.loads(text) != expected:
        raise FsclError(f"{source}: its [strategies] cannot be added to; write each as a table [strategies.NAME.args]")
    return text


def _table(parent: Any, name: str) -> Any:
    import tomlkit
    from tomlkit.container import Container
    from tomlkit.items import InlineTable, Table

    if name not in parent:
        if isinstance(parent, InlineTable):
            parent[name] = tomlkit.inline_table()
        elif isinstance(parent, Table | Container):
            parent[name] = tomlkit.table()
        else:
            parent[name] = {}
    return parent[name]


def _above(text: str, strategy: str, comment: str) -> str:
    """A comment above the first table of a strategy, or in the end if it has no table of its own."""
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*strategies\s*\.\s*([\"']?){re.escape(strategy)}\1\s*[.\]]")
    at = next((number for number, line in enumerate(lines) if header.match(line)), len(lines))
    return "\n".join([*lines[:at], comment, *lines[at:]]) + "\n"


def _how(protocol: Protocol, one: Tuned) -> str:
    best, own = (f"{100 * t.accuracy:.1f} %" if t.accuracy is not None else "failed" for t in (one.best, one.own))
    tried = f"{len(one.trials)} settings" if one.whole else f"{len(one.trials)} of {one.candidates} settings"
    said = f"its own are best of {tried}: {best}" if one.best is one.own else f"best of {tried}: {best}, its own {own}"
    where = f"on {100 * protocol.validation:g} % held out of the first {protocol.tasks} tasks, seed {protocol.seed}"
    return " ".join([said, where, *(f"--set {setting}" for setting in protocol.settings)])
