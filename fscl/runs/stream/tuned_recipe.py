"""Writes tuned settings into a benchmark's file. The file's own text, order and comments stay."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.files import write_text_atomically
from fscl.runs.stream.tune import Protocol, Tuned

__all__ = ["changed_text", "write_recipe"]

MARK = "# fscl tune"
HEADER = re.compile(r"^([^\s#].*)\n(\[strategies\.)", re.MULTILINE)  # a table without an empty line above it


def write_recipe(source: Path, target: Path, protocol: Protocol, results: Sequence[Tuned]) -> None:
    """Writes a benchmark's file with the chosen settings of each strategy, and comments on how they were chosen.

    Args:
        source: the benchmark's TOML file.
        target: the file to write; it may be ``source``.
        protocol: how settings were chosen.
        results: the results of each strategy. If its own settings are best, only the comment is written.

    Raises:
        FsclError: the file cannot be written, or as :func:`changed_text`.
    """
    chosen = {result.strategy.name: {} if result.best is result.own else result.best.settings for result in results}
    text = changed_text(source, chosen, {result.strategy.name: _how(protocol, result) for result in results})
    write_text_atomically(target, text)


def changed_text(source: Path, chosen: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str]) -> str:
    """The text of a benchmark's file with changed settings of strategies.

    Args:
        source: the file.
        chosen: settings by strategy, such as ``{"ewc": {"args.ewc_lambda": 10.0}}``.
        comments: comments by strategy. Each goes above the strategy's tables and replaces that of an earlier search.

    Raises:
        FsclError: the file's table ``strategies`` has a form to which settings cannot be added.

    Example:
        >>> from fscl.runs.recipe import find_recipe
        >>> text = changed_text(
        ...     find_recipe("benchmarks", "split_digits"), {"mas": {"args.alpha": 0.2}}, {"mas": "by hand"}
        ... )
        >>> print("\\n".join(text.splitlines()[-3:]))
        # fscl tune mas: by hand
        [strategies.mas.args]
        alpha = 0.2
    """
    import tomlkit

    lines = source.read_text(encoding="utf-8").splitlines()
    former = tuple(f"{MARK} {strategy}: " for strategy in comments)
    text = "\n".join(line for line in lines if not line.startswith(former)) + "\n"
    document, expected = tomlkit.parse(text), tomllib.loads(text)
    for tables in (document, expected):
        for strategy, settings in chosen.items():
            strategy_table = _table(_table(tables, "strategies"), strategy)
            for key, value in settings.items():
                section, _, name = key.partition(".")
                _table(strategy_table, section)[name] = value
    text = HEADER.sub(r"\1\n\n\2", tomlkit.dumps(document))
    for strategy, comment in comments.items():
        text = _with_comment(text, strategy, f"{MARK} {strategy}: {comment}")
    if tomllib.loads(text) != expected:
        raise FsclError(
            f"{source}: settings cannot be added to its [strategies]; write each as a table [strategies.NAME.args]"
        )
    return text


def _table(parent: Any, name: str) -> Any:
    """The table of this name in the parent. It is made if it does not exist, in the parent's form."""
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


def _with_comment(text: str, strategy: str, comment: str) -> str:
    """The text with a comment above the first table of a strategy, or at the end if the strategy has no table."""
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*strategies\s*\.\s*([\"']?){re.escape(strategy)}\1\s*[.\]]")
    at = next((number for number, line in enumerate(lines) if header.match(line)), len(lines))
    return "\n".join([*lines[:at], comment, *lines[at:]]) + "\n"


def _how(protocol: Protocol, result: Tuned) -> str:
    """How the settings were chosen, for the comment above them."""
    best, own = (f"{100 * t.accuracy:.1f} %" if t.accuracy is not None else "failed" for t in (result.best, result.own))
    count = len(result.trials)
    tried = f"{count} settings" if result.whole else f"{count} of {result.candidates} settings"
    if result.best is result.own:
        outcome = f"its own are best of {tried}: {best}"
    else:
        outcome = f"best of {tried}: {best}, its own {own}"
    where = f"on {100 * protocol.validation:g} % held out of the first {protocol.tasks} tasks, seed {protocol.seed}"
    return " ".join([outcome, where, *(f"--set {setting}" for setting in protocol.settings)])
