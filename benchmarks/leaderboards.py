"""Writes the parts of README.md and docs/results/ that come from the committed reports.

Each part stands between two marks with its name, such as ``<!-- question -->`` and ``<!-- /question -->``.

    uv run python benchmarks/leaderboards.py

With ``--check`` no file is changed, and the exit code is 1 if a page differs from the reports.
"""

import argparse
import itertools
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

from benchmarks.federated import page as federation
from fscl.report.federation.provenance import federated_budget
from fscl.report.federation.summary import group_federations
from fscl.report.page import escape_markdown
from fscl.report.prediction import (
    Prediction,
    atom_strategies,
    correlation_with_time,
    predictions_over_seeds,
)
from fscl.report.provenance import budget
from fscl.report.runs import Runs, load_runs
from fscl.report.summary import StrategyRuns, SummaryRow, group_runs, summary_rows
from fscl.report.table import ANSWERS, COLUMNS
from fscl.runs.records.federated import FederatedRecord
from fscl.runs.records.record import RunRecord
from fscl.text import DASH, human_seconds, interval, signed, small_p

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
FROM_PAGES = "../../reports"  # path of the reports, seen from docs/results/
BENCHMARKS = ("split_cifar100", "split_fmnist", "split_digits", "rotated_fmnist", "split_digits_class")
FEDERATIONS = ("federated_fmnist", "federated_cifar100_pretrained")
MAIN = BENCHMARKS[0]  # the README shows some of its rows, and papers report accuracies on it
LEVEL = 0.05  # of significance
# columns of the summary table
SHOWN = ("strategy", "seeds", "accuracy", "against_best", "p", "forgetting", "bytes_per_task", "bytes_in_all")
IN_README = ("strategy", "accuracy", "forgetting", "bytes_per_task", "bytes_in_all")
ROWS_IN_README = ("joint", "wsn", "packnet", "atom_swapping_first", "atom_swapping", "replay", "naive")
STARTS = {"previous": "task before it", "first": "first task"}  # in words, by warm_start
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


@cache
def runs_of(benchmark: str) -> Runs:
    return load_runs([REPORTS / benchmark / "runs.json"])


@cache
def groups_of(benchmark: str) -> list[Any]:
    runs = runs_of(benchmark)
    return group_federations(runs) if isinstance(runs[0], FederatedRecord) else group_runs(runs)


def leaderboard(benchmark: str) -> str:
    """The page of a benchmark: the table of its runs, the commands that repeat them, and its main picture."""
    runs = runs_of(benchmark)
    recipe, machines = runs[0].benchmark, Counter(run.machine["processor"] for run in runs)
    processor = " or ".join(f"an {name}" for name, _ in machines.most_common())
    federated = isinstance(runs[0], FederatedRecord)
    kind, learner = ("Federation", "method") if federated else ("Stream", "learner")
    if federated:
        head, rows = federation.table(groups_of(benchmark))
        pictures = federation.pictures(benchmark, recipe.title, FROM_PAGES)
    else:
        head, rows = _headings(SHOWN), [_cells(row, SHOWN) for row in summary_rows(groups_of(benchmark))]
        pictures = _heatmap(benchmark, runs)
    lines = [
        f"# {recipe.title}",
        "",
        f"- **{kind}**: {recipe.description}",
        f"- **Budget** of most {learner}s: {_usual_budget(benchmark)}",
        f"- **Settings**: {_tuned(benchmark)}",
        f"- **Machine**: {runs[0].machine['threads']} thread of {processor}",
        f"- **Time**: {human_seconds(sum(sum(run.step_seconds) for run in runs))} for all runs, added up",
        f"- **More**: the [report]({FROM_PAGES}/{benchmark}/README.md) has each {learner}'s settings and budget, "
        f"{'bytes by part' if federated else 'transfer'}, curves and every seed",
        "",
        *_table(head, rows, texts=1),
        "",
        "## Commands",
        "",
        "```",
        *_commands(benchmark, runs),
        "```",
        "",
        *pictures,
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
        return "as in the recipes, without `fscl tune`"
    protocol = tuning["protocol"]
    percent = f"{100 * protocol['validation']:.0f} %"
    return (
        f"`fscl tune` chose them without test images, in at most {protocol['trials']} trials per learner. A trial has "
        f"one seed, learns the first {protocol['tasks']} tasks, and is judged on {percent} of the training images, "
        "which are held out"
    )


def _tuning(benchmark: str) -> dict[str, Any] | None:
    file = REPORTS / benchmark / "tune.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _commands(benchmark: str, runs: list[RunRecord]) -> list[str]:
    """The commands that chose the settings and made the runs. On another machine the last digits may differ."""
    recipe, learners = runs[0].benchmark, groups_of(benchmark)
    data = [] if recipe.data["name"] == "digits" else ["--data DIR"]
    seeds = f"--seeds {max(len(learner.runs) for learner in learners)}"
    commands = []
    if tuning := _tuning(benchmark):
        options = [f"--{key} {value}" for key, value in tuning["protocol"].items() if key != "settings"]
        changes = [f"--set {setting}" for setting in tuning["protocol"]["settings"]]
        commands += _call("fscl tune", tuning["benchmark"], *data, *options, *changes, *_each(tuning["strategies"]))
    return commands + _call("fscl run", recipe.name, *data, seeds, *_each(learner.name for learner in learners))


def _each(strategies: Iterable[str]) -> list[str]:
    return [f"-s {name}" for name in sorted(strategies)]


def _call(*words: str) -> list[str]:
    """A command line, wrapped so that an option and its value stay on one line."""
    text = " ".join(word.replace(" ", "\0") for word in words)
    lines = textwrap.wrap(text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines).replace("\0", " ").splitlines()


def _heatmap(benchmark: str, runs: list[RunRecord]) -> list[str]:
    """The heatmap of task similarity, and how far the similarity follows the order of the tasks.

    If a strategy starts each task from the atoms of the first task, the heatmap shows this strategy.
    """
    strategies = atom_strategies(groups_of(benchmark))
    start = {group.name: group.runs[0].strategy.args["warm_start"] for group in strategies}
    shown = next((group for group in strategies if start[group.name] == "first"), strategies[0])
    picture = f"{benchmark}-similarity" + (f"-{shown.name}" if shown is not strategies[0] else "")
    text = (
        f"Similarity of the tasks of one seed, computed from their atoms alone ({shown.label}). Spearman's ρ of "
        "similarity and the number of tasks in between shows how far similarity follows the order of the tasks. If ρ "
        "is near −1, similarity shows little more than this order."
    )
    for group in strategies:
        text += (
            f" If each task starts from the atoms of the {STARTS[start[group.name]]} ({group.label}), ρ is "
            f"{_with_time(group)}."
        )
    file = f"{FROM_PAGES}/{benchmark}/figures/{picture.replace('_', '-')}.png"
    picture = f"![Task-to-task similarity on {runs[0].benchmark.title}]({file})"
    return ["## Which tasks are alike", "", picture, "", text]


def _with_time(group: StrategyRuns) -> str:
    rho, seeds = correlation_with_time(group.runs)
    return f"{signed(rho)} (mean over {seeds} seeds)"


def literature() -> str:
    """Published accuracies on the main benchmark beside the accuracies here, and how far they rank learners alike."""
    papers = tomllib.loads((REPORTS / MAIN / "literature.toml").read_text("utf-8"), parse_float=str)["papers"]
    summary = {row.strategy: row for row in summary_rows(groups_of(MAIN))}
    head = ["Strategy", "Here, 20 tasks", *(paper["heading"] for paper in papers)]
    rows = [
        [*_cells(row, ("strategy", "accuracy")), *(p["accuracy"].get(name, DASH) for p in papers)]
        for name, row in summary.items()
        if any(name in paper["accuracy"] for paper in papers)
    ]
    learners = {name: row for name, row in summary.items() if row.bound is None}
    agreements = (_agreement(learners, paper["accuracy"]) for paper in papers)
    order = ["Kendall's τ with the ranking of learners here", DASH, *agreements]
    sources = [f"- {paper['heading']}: {paper['source']}." for paper in papers]
    return "\n".join([*_table(head, [*rows, order], texts=1), "", *sources])


def _agreement(learners: Mapping[str, Any], published: Mapping[str, str]) -> str:
    names = [name for name in published if name in learners]
    if len(names) < 4:
        return f"{DASH} ({len(names)} learners)"
    test = kendalltau([learners[name].accuracy.mean for name in names], [float(published[name]) for name in names])
    return f"{signed(test.statistic)} ({len(names)} learners, p = {small_p(test.pvalue)})"


@cache
def answers() -> dict[str, dict[str, list[Prediction]]]:
    """All defined answers to whether similarity predicts, by question and by the title of the stream."""
    by_question: dict[str, dict[str, list[Prediction]]] = {}
    for benchmark in BENCHMARKS:
        title = runs_of(benchmark)[0].benchmark.title
        for answer in predictions_over_seeds(groups_of(benchmark)):
            if answer.all_pairs.defined:
                by_stream = by_question.setdefault(answer.words, {})
                by_stream.setdefault(title, []).append(answer)
    return by_question


def question() -> str:
    """For each question: the number of learners with an answer, over all streams, and of significant answers."""
    rows = []
    for words, by_stream in answers().items():
        all_answers = list(itertools.chain(*by_stream.values()))
        significant = sum(a.p < LEVEL for a in all_answers), sum(a.p_apart < LEVEL for a in all_answers)
        counts = len(all_answers), *significant
        rows.append((words, *map(str, counts)))
    return "\n".join(_table(OVER_STREAMS, rows, texts=1))


def question_by_stream() -> str:
    """For each question and stream: the correlations over learners, and how many are significant."""
    rows = []
    for words, by_stream in answers().items():
        for title, of_stream in by_stream.items():
            apart = [a for a in of_stream if a.apart.defined]
            counts = of_stream[0].all_pairs.n_tasks, max(a.all_pairs.n_seeds for a in of_stream), len(of_stream)
            all_pairs = _over_learners([a.all_pairs.statistic for a in of_stream], [a.p for a in of_stream])
            equally_apart = _over_learners([a.apart.statistic for a in apart], [a.p_apart for a in apart])
            rows.append((words, title, *map(str, counts), *all_pairs, *equally_apart))
    return "\n".join(_table(OVER_LEARNERS, rows, texts=2))


def question_by_learner() -> str:
    """For each stream and learner: the correlation of atom similarity and forgetting."""
    rows = [
        (title, answer.atoms, *(column.cell(answer) for column in ANSWERS[1:-1]))
        for by_stream in answers().values()
        for title, of_stream in by_stream.items()
        for answer in of_stream
        if answer.question == "atoms"
    ]
    return "\n".join(_table(["Stream", "Atoms of", *(column.heading for column in ANSWERS[1:-1])], rows, texts=3))


def quoted(report: str, begin: str) -> str:
    """The table, list or paragraph of a report's page that begins with the text ``begin``."""
    page = (REPORTS / report / "README.md").read_text("utf-8")
    return page[page.index(f"\n{begin}") + 1 :].split("\n\n")[0]


def _over_learners(values: Sequence[float], p_values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "undefined", DASH
    median = f"{signed(statistics.median(values))} {interval(min(values), max(values))}"
    return median, f"{sum(p < LEVEL for p in p_values)} of {len(values)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """A Markdown table. The first ``texts`` columns are aligned as text, the other columns as numbers."""
    lines = [head, [":--"] * texts + ["--:"] * (len(head) - texts), *([escape_markdown(c) for c in r] for r in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _usual_budget(benchmark: str) -> str:
    """The budget that most learners had."""
    firsts = [group.runs[0] for group in groups_of(benchmark)]
    budgets = [federated_budget(run) if isinstance(run, FederatedRecord) else budget(run, brief=True) for run in firsts]
    return max(dict.fromkeys(budgets), key=budgets.count)


PARTS: dict[str, Callable[[], str]] = {
    **{benchmark: partial(leaderboard, benchmark) for benchmark in (*BENCHMARKS, *FEDERATIONS)},
    "leaderboards": headline,
    "literature": literature,
    "question": question,
    "question_by_stream": question_by_stream,
    "question_by_learner": question_by_learner,
    "agreement": partial(quoted, "similarity", "| method | one after another: linear CKA |"),
    "goals": partial(quoted, "similarity", "| goal | cosine of atoms"),
    "transformers": partial(quoted, "similarity", "| method | needs | each from one start: linear CKA |"),
    "misleads": partial(quoted, "similarity", "- **Unrelated starts.**"),
    "ensembles": partial(quoted, "federated_ensembles", "- Atoms and head in clusters"),
    "speed": partial(quoted, "speed", "| network and learner |"),
}
MARKED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def pages() -> list[Path]:
    """The pages with a generated part."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
    return [file for file in files if MARKED.search(file.read_text("utf-8"))]


def written(page: str) -> str:
    """The text of a page with its parts written anew from the reports."""
    return MARKED.sub(lambda mark: f"<!-- {mark[1]} -->\n{PARTS[mark[1]]()}\n<!-- /{mark[1]} -->", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page differs")
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
