"""Gives hostile inputs to fscl and counts the outcomes in a table, which is written to ``reports/hostile``.

    uv run python -m benchmarks.hostile --write reports/hostile

Each module of this folder that has ``trials`` is a kind of input: a fixed list of inputs, then random mutations.
"""

import argparse
import importlib
import json
import pkgutil
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import benchmarks.hostile
from benchmarks.hostile.trial import MEGABYTES, OUTCOMES, SECONDS, attempt
from fscl.files import write_text_atomically
from fscl.runs.environment import versions

SHOWN = 3  # messages of faults in each row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="random mutations of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=kinds(), help="only this kind; may be repeated")
    parser.add_argument("--write", type=Path, help="folder for the table and results.json")
    options = parser.parse_args()
    rows = [row for kind in options.only or kinds() for row in rows_of(kind, options.seed, options.count)]
    table = as_table(rows)
    print(table)
    faults = sum(row["outcomes"].get(outcome, 0) for row in rows for outcome in OUTCOMES[2:])
    print(f"{sum(sum(row['outcomes'].values()) for row in rows)} inputs, {faults} neither right nor refused")
    if options.write:
        results = {"count": options.count, "seed": options.seed, "versions": versions(), "rows": rows}
        write_text_atomically(options.write / "results.json", json.dumps(results, indent=1))
        write_text_atomically(options.write / "README.md", as_page(results, table))
    raise SystemExit(faults > 0)


def kinds() -> list[str]:
    """The names of the modules of this folder that have trials."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.hostile.__path__))
    return [name for name in names if name not in ("__main__", "mutations", "trial")]


def rows_of(kind: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Tries all inputs of a kind. Returns a row for each group of inputs, with the number of trials by outcome."""
    module = importlib.import_module(f"benchmarks.hostile.{kind}")
    outcomes: dict[str, Counter[str]] = {}
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for trial in module.trials(Path(folder), random.Random(seed), count):
            outcome = attempt(trial)
            outcomes.setdefault(trial.group, Counter())[outcome.kind] += 1
            if outcome.kind in OUTCOMES[2:]:
                texts.setdefault(trial.group, []).append(f"{outcome.kind}: {outcome.text}")
    return [
        {"kind": kind, "what": group, "outcomes": dict(counts), "texts": texts.get(group, [])[:SHOWN]}
        for group, counts in outcomes.items()
    ]


def as_table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| kind | input | tried | {' | '.join(OUTCOMES)} |", f"| --- | --- | --- {'| --- ' * len(OUTCOMES)}|"]
    for row in rows:
        counts = row["outcomes"]
        cells = [
            row["kind"],
            row["what"],
            sum(counts.values()),
            *(counts.get(outcome, 0) or "" for outcome in OUTCOMES),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += [f"|  | *{text.replace('|', '/')[:200]}* |  {'| ' * len(OUTCOMES)}|" for text in row["texts"]]
    return "\n".join(lines)


def as_page(results: dict[str, Any], table: str) -> str:
    total = sum(sum(row["outcomes"].values()) for row in results["rows"])
    made_by = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    options = f"--count {results['count']} --seed {results['seed']} --write reports/hostile"
    command = f"uv run python -m benchmarks.hostile {options}"
    return f"""# Hostile inputs

{total} damaged, odd or malicious inputs were given to fscl. Each input ran in a process of its own, with at most
{SECONDS} s and {MEGABYTES} MB. *Right*: the answer equals the answer of an independent oracle. *Refused*: an error of
one line names what is wrong. Every other outcome is a fault: *crash* (any other error), *hang* (no answer in time),
*memory* (too much memory), and *wrong* (another answer, without an error).

{table}

Made by `{command}`, with {made_by}.
"""


if __name__ == "__main__":
    main()
