"""Writes what README.md and docs/results/ show of the committed reports, between marks of the parts' names.

``uv run python benchmarks/leaderboards.py``; with ``--check`` it changes nothing, and exits with 1 where
a page says anything else than the reports.
"""

import argparse
import json
import re
import statistics
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from fscl.report.page import escape_markdown
from fscl.report.prediction import (
    Prediction,
    atom_strategies,
    correlation_with_time,
    predictions_over_seeds,
)
from fscl.report.provenance import budget
from fscl.report.summary import StrategyRuns, SummaryRow, group_runs, summary_rows
from fscl.report.table import COLUMNS
from fscl.runs.record import RunRecord
from fscl.runs.results import load_runs
from fscl.text import DASH, human_seconds, interval, signed, small_p

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
FROM_PAGES = "../../reports"  # from docs/results/
BENCHMARKS = ("split_cifar100", "split_fmnist", "split_digits", "rotated_fmnist", "split_digits_class")
MAIN = BENCHMARKS[0]  # of which the README has some rows, and papers have numbers
LEVEL = 0.05
# columns of the summary table
SHOWN = ("strategy", "seeds", "accuracy", "against_best", "p", "forgetting", "bytes_per_task", "bytes_in_all")
IN_README = ("strategy", "accuracy", "forgetting", "bytes_per_task", "bytes_in_all")
ROWS_IN_README = ("joint", "wsn", "packnet", "atom_swapping_first", "atom_swapping", "replay", "naive")
OVER_STREAMS = ("Question", "Learners, over streams", "p < 0.05", "p < 0.05, later tasks equally far apart")
OVER_LEARNERS = (
    "Question",
    "Stream",
    "Tasks",
    "Seeds",
    "Learners",
    "ρ, median [least, greatest]",
    "p < 0.05",
    "ρ, later, equally far apart",
    "p < 0.05",
)
BY_LEARNER = (
    "Stream",
    "Atoms of",
    "Strategy",
    "ρ, mean over seeds [95 %]",
    "p (Mantel, Holm)",
    "ρ, later, equally far apart [95 %]",
    "p (Mantel, Holm)",
    "Seeds where defined",
    "Tasks",
)


@cache
def runs_of(benchmark: str) -> list[RunRecord]:
    return load_runs([REPORTS / benchmark / "runs.json"])


@cache
def groups_of(benchmark: str) -> list[StrategyRuns]:
    return group_runs(runs_of(benchmark))


def leaderboard(benchmark: str) -> str:
    """The page of a benchmark: its runs in a table, what gives them again, and which of its tasks are alike."""
    runs = runs_of(benchmark)
    recipe, machines = runs[0].benchmark, Counter(run.machine["processor"] for run in runs)
    processor = " or ".join(f"an {name}" for name, _ in machines.most_common())
    lines = [
        f"# {recipe.title}",
        "",
        f"- **Stream**: {recipe.description}",
        f"- **Budget** of most learners: {_usual_budget(groups_of(benchmark))}",
        f"- **Settings**: {_tuned(benchmark)}",
        f"- **Machine**: {runs[0].machine['threads']} thread of {processor}",
        f"- **Time**: {human_seconds(sum(run.seconds.total for run in runs))} for all runs, added up",
        f"- **More**: the [report]({FROM_PAGES}/{benchmark}/README.md) has each learner's settings and budget, "
        "transfer, curves and every seed",
        "",
        *_table(_headings(SHOWN), [_cells(row, SHOWN) for row in summary_rows(groups_of(benchmark))], texts=1),
        "",
        "## Commands",
        "",
        "```",
        *_commands(benchmark, runs),
        "```",
        "",
        "## Which tasks are alike",
        "",
        *_heatmap(benchmark, runs),
    ]
    return "\n".join(lines)


def headline() -> str:
    """Some rows of the first benchmark, for the README."""
    rows = [_cells(row, IN_README) for row in summary_rows(groups_of(MAIN)) if row.strategy in ROWS_IN_README]
    return "\n".join(_table(_headings(IN_README), rows, texts=1))


def _headings(columns: Sequence[str]) -> list[str]:
    return [COLUMNS[name].heading for name in columns]


def _cells(row: SummaryRow, columns: Sequence[str]) -> list[str]:
    return [COLUMNS[name].cell(row) for name in columns]


def _tuned(benchmark: str) -> str:
    if (tuning := _tuning(benchmark)) is None:
        return "as in the recipes; none were tuned on this benchmark"
    protocol = tuning["protocol"]
    percent = f"{100 * protocol['validation']:.0f} %"
    return (
        f"`fscl tune` chose them without test images: at most {protocol['trials']} trials a learner, one seed, the "
        f"first {protocol['tasks']} tasks, judged on {percent} of the training images, held out"
    )


def _tuning(benchmark: str) -> dict[str, Any] | None:
    file = REPORTS / benchmark / "tune.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _commands(benchmark: str, runs: list[RunRecord]) -> list[str]:
    """What chose the settings, and what gives these runs (on another machine but for the last digits)."""
    recipe, learners = runs[0].benchmark, groups_of(benchmark)
    data = [] if recipe.data["name"] == "digits" else ["--data DIR"]
    seeds = f"--seeds {max(len(learner.runs) for learner in learners)}"
    shown = []
    if tuning := _tuning(benchmark):
        options = [f"--{key} {value}" for key, value in tuning["protocol"].items() if key != "settings"]
        changes = [f"--set {setting}" for setting in tuning["protocol"]["settings"]]
        shown += _call("fscl tune", tuning["benchmark"], *data, *options, *changes, *_each(tuning["strategies"]))
    return shown + _call("fscl run", recipe.name, *data, seeds, *_each(learner.name for learner in learners))


def _each(strategies: Iterable[str]) -> list[str]:
    return [f"-s {name}" for name in sorted(strategies)]


def _call(*words: str) -> list[str]:
    """A command line over as many lines as it needs, none of which ends between an option and its value."""
    text = " ".join(word.replace(" ", "\0") for word in words)
    lines = textwrap.wrap(text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines).replace("\0", " ").splitlines()


def _heatmap(benchmark: str, runs: list[RunRecord]) -> list[str]:
    """Which tasks are alike, and how far that is their order; where each starts from the first, if there are such."""
    by_start = {group.runs[0].strategy.args["warm_start"]: group for group in atom_strategies(groups_of(benchmark))}
    chain, star = by_start["previous"], by_start.get("first")
    picture = f"{benchmark}-similarity" + (f"-{star.name}" if star else "")
    text = (
        f"Similarity of the tasks of one seed, from their atoms alone ({(star or chain).label}). Spearman's ρ of "
        "similarity and the number of tasks in between says how far similarity follows the order of the tasks: "
        f"near −1, it shows little more than that. Where each task starts from the atoms of the one before "
        f"({chain.label}), ρ is {_with_time(chain)}."
    )
    if star:
        text += f" Where each task starts from the atoms of the first ({star.label}), ρ is {_with_time(star)}."
    file = f"{FROM_PAGES}/{benchmark}/figures/{picture.replace('_', '-')}.png"
    return [f"![Task-to-task similarity on {runs[0].benchmark.title}]({file})", "", text]


def _with_time(group: StrategyRuns) -> str:
    rho, seeds = correlation_with_time(group.runs)
    return f"{signed(rho)} (mean over {seeds} seeds)"


def literature() -> str:
    """Published accuracies on the first benchmark beside those here, and whether they order the learners alike."""
    papers = tomllib.loads((REPORTS / MAIN / "literature.toml").read_text("utf-8"), parse_float=str)["papers"]
    ours = {row.strategy: row for row in summary_rows(groups_of(MAIN))}
    head = ["Strategy", "Here, 20 tasks", *(paper["heading"] for paper in papers)]
    rows = [
        [*_cells(row, ("strategy", "accuracy")), *(p["accuracy"].get(name, DASH) for p in papers)]
        for name, row in ours.items()
        if any(name in paper["accuracy"] for paper in papers)
    ]
    learners = {name: row for name, row in ours.items() if row.bound is None}
    agreements = (_agreement(learners, paper["accuracy"]) for paper in papers)
    order = ["Kendall's τ with the order of learners here", DASH, *agreements]
    sources = [f"- {paper['heading']}: {paper['source']}." for paper in papers]
    return "\n".join([*_table(head, [*rows, order], texts=1), "", *sources])


def _agreement(ours: Mapping[str, Any], theirs: Mapping[str, str]) -> str:
    both = [name for name in theirs if name in ours]
    if len(both) < 4:
        return f"{DASH} ({len(both)} learners)"
    test = kendalltau([ours[name].accuracy.mean for name in both], [float(theirs[name]) for name in both])
    return f"{signed(test.statistic)} ({len(both)} learners, p = {small_p(test.pvalue)})"


@cache
def answers() -> dict[str, dict[str, list[Prediction]]]:
    """Whether similarity predicts, wherever that is defined: by question, and by the title of the stream."""
    by_question: dict[str, dict[str, list[Prediction]]] = {}
    for benchmark in BENCHMARKS:
        title = runs_of(benchmark)[0].benchmark.title
        for answer in predictions_over_seeds(groups_of(benchmark)):
            if answer.all_pairs.defined:
                by_stream = by_question.setdefault(answer.words, {})
                by_stream.setdefault(title, []).append(answer)
    return by_question


def question() -> str:
    """How many learners, over all streams, have an answer, and of how many it is significant."""
    rows = []
    for words, by_stream in answers().items():
        every = [answer for some in by_stream.values() for answer in some]
        counts = len(every), sum(a.p < LEVEL for a in every), sum(a.p_apart < LEVEL for a in every)
        rows.append((words, *map(str, counts)))
    return "\n".join(_table(OVER_STREAMS, rows, texts=1))


def question_by_stream() -> str:
    rows = []
    for words, by_stream in answers().items():
        for title, every in by_stream.items():
            apart = [a for a in every if a.apart.defined]
            counts = every[0].all_pairs.n_tasks, max(a.all_pairs.n_seeds for a in every), len(every)
            of_all = _many([a.all_pairs.statistic for a in every], [a.p for a in every])
            of_some = _many([a.apart.statistic for a in apart], [a.p_apart for a in apart])
            rows.append((words, title, *map(str, counts), *of_all, *of_some))
    return "\n".join(_table(OVER_LEARNERS, rows, texts=2))


def question_by_learner() -> str:
    """Of atom similarity and forgetting alone."""
    rows = [
        (title, answer.atoms, *answer.cells()[1:-1])
        for by_stream in answers().values()
        for title, every in by_stream.items()
        for answer in every
        if answer.question == "atoms"
    ]
    return "\n".join(_table(BY_LEARNER, rows, texts=3))


def quoted(report: str, begin: str) -> str:
    """The table, list or paragraph of a report's page that begins with some text."""
    page = (REPORTS / report / "README.md").read_text("utf-8")
    return page[page.index(f"\n{begin}") + 1 :].split("\n\n")[0]


def _many(values: Sequence[float], p_values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "undefined", "–"
    middle = f"{signed(statistics.median(values))} {interval(min(values), max(values))}"
    return middle, f"{sum(p < LEVEL for p in p_values)} of {len(values)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Markdown; the first ``texts`` columns are words, the others numbers."""
    lines = [head, [":--"] * texts + ["--:"] * (len(head) - texts), *([escape_markdown(c) for c in r] for r in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _usual_budget(groups: Sequence[StrategyRuns]) -> str:
    """What most learners were given; the report says what others were."""
    budgets = [budget(group.runs[0], brief=True) for group in groups]
    return max(dict.fromkeys(budgets), key=budgets.count)


PARTS: dict[str, Callable[[], str]] = {
    **{benchmark: partial(leaderboard, benchmark) for benchmark in BENCHMARKS},
    "leaderboards": headline,
    "literature": literature,
    "question": question,
    "question_by_stream": question_by_stream,
    "question_by_learner": question_by_learner,
    "agreement": partial(quoted, "similarity", "| method | one after another: linear CKA |"),
    "goals": partial(quoted, "similarity", "| goal | cosine of atoms"),
    "misleads": partial(quoted, "similarity", "- **Unrelated starts.**"),
    "speed": partial(quoted, "speed", "| network and learner |"),
}
MARKED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def pages() -> list[Path]:
    """The pages that show a part."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
    return [file for file in files if MARKED.search(file.read_text("utf-8"))]


def written(page: str) -> str:
    """A page with its parts as the reports have them today."""
    return MARKED.sub(lambda mark: f"<!-- {mark[1]} -->\n{PARTS[mark[1]]()}\n<!-- /{mark[1]} -->", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page differs")
    arguments = parser.parse_args()
    differs = False
    for file in pages():
        before = file.read_text(encoding="utf-8")
        if (after := written(before)) != before:
            print(file.relative_to(ROOT))
            differs = True
            if not arguments.check:
                file.write_text(after, encoding="utf-8")
    sys.exit(int(arguments.check and differs))


if __name__ == "__main__":
    main()
