"""Writes the README's leaderboards from the runs that the committed reports keep.

``uv run python benchmarks/leaderboards.py``; with ``--check`` it changes nothing, and exits with 1 where
the README says anything else than the reports' runs.
"""

import argparse
import sys
from pathlib import Path

from fscl.suite.report import escape_markdown
from fscl.suite.results import RunResult, load_runs
from fscl.suite.sections import budget
from fscl.suite.summary import COLUMNS, group_runs, summary_rows

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- leaderboards -->", "<!-- /leaderboards -->"
SHOWN = (
    "Strategy",
    "Seeds",
    "Accuracy (%)",
    "Against the best (points)",
    "p (paired, Holm)",
    "Incremental accuracy (%)",
    "Forgetting (points)",
    "Stored per task",
    "Stored in all",
    "Training per run",
)
REPORTS = ("split_cifar100", "split_fmnist", "split_digits", "rotated_fmnist")  # the first one is unfolded


def leaderboards(reports: Path) -> str:
    """The part of the README between its two marks, from the runs below a folder of reports."""
    parts = []
    for position, name in enumerate(REPORTS):
        if not (reports / name / "runs.json").exists():
            continue
        lines = _leaderboard(name, load_runs([reports / name / "runs.json"]))
        title, text = lines[0], "\n".join(lines[1:])
        parts.append(
            f"**{title}**, {text}" if position == 0 else f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
        )
    return "\n\n".join(parts)


def _leaderboard(name: str, runs: list[RunResult]) -> list[str]:
    keep = [COLUMNS.index(column) for column in SHOWN]
    rows = [[row.cells()[i] for i in keep] for row in summary_rows(runs)]
    recipe, first = runs[0].benchmark, group_runs(runs)[0].runs[0]
    machine = f"{first.machine['threads']} thread of an {first.machine['processor']}"
    lines = [
        recipe["title"],
        f"{recipe['description']}; {_usual_budget(runs)}; {machine} ([report](reports/{name}/README.md)):",
        "",
        f"| {' | '.join(SHOWN)} |",
        f"| :-- |{' --: |' * (len(SHOWN) - 1)}",
    ]
    return lines + ["| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in rows]


def _usual_budget(runs: list[RunResult]) -> str:
    """What most learners were given; the report says what others were."""
    budgets = [budget(group.runs[0], brief=True) for group in group_runs(runs)]
    return max(dict.fromkeys(budgets), key=budgets.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the README differs")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    head, rest = before.split(BEGIN)
    after = f"{head}{BEGIN}\n{leaderboards(ROOT / 'reports')}\n{END}{rest.split(END)[1]}"
    if arguments.check:
        sys.exit(int(after != before))
    readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
