"""Writes the README's leaderboards, and whether similarity predicts, from the runs that the committed reports keep.

``uv run python benchmarks/leaderboards.py``; with ``--check`` it changes nothing, and exits with 1 where
the README says anything else than the reports' runs.
"""

import argparse
import json
import statistics
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from fscl.suite.prediction import (
    Prediction,
    atom_strategies,
    correlation_with_time,
    predictions,
    signed,
)
from fscl.suite.provenance import budget
from fscl.suite.report import escape_markdown
from fscl.suite.results import RunResult, load_runs
from fscl.suite.summary import COLUMNS, DASH, StrategyRuns, group_runs, human_seconds, summary_rows

ROOT = Path(__file__).resolve().parent.parent
LEVEL = 0.05
SHOWN = (
    "Strategy",
    "Seeds",
    "Accuracy (%)",
    "Against the best (points)",
    "p (is the best)",
    "Forgetting (points)",
    "Stored per task",
    "Stored in all",
)
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
REPORTS = ("split_cifar100", "split_fmnist", "split_digits", "rotated_fmnist", "split_digits_class")  # first: unfolded

Runs = Mapping[str, list[RunResult]]


def committed_runs(reports: Path) -> Runs:
    """The runs that the reports below a folder keep, by benchmark."""
    files = {name: reports / name / "runs.json" for name in REPORTS}
    return {name: load_runs([file]) for name, file in files.items() if file.exists()}


def parts(reports: Path) -> dict[str, str]:
    """What the README says between marks, by mark."""
    kept = committed_runs(reports)
    return {
        "leaderboards": leaderboards(kept, reports),
        "literature": literature(kept, published(reports)),
        "question": question(kept),
    }


def leaderboards(kept: Runs, reports: Path) -> str:
    """A table for each benchmark; the first with a picture of which of its tasks are alike, the others folded."""
    texts = []
    for name, runs in kept.items():
        lines = _leaderboard(name, runs, reports)
        title, text = lines[0], "\n".join(lines[1:])
        if name == REPORTS[0]:
            texts += [
                f"**{title}**: {text}",
                *_heatmap(name, runs),
            ]
        else:
            texts.append(f"<details><summary>{title}</summary>\n\n{text}\n\n</details>")
    return "\n\n".join(texts)


def _leaderboard(name: str, runs: list[RunResult], reports: Path) -> list[str]:
    keep = [COLUMNS.index(column) for column in SHOWN]
    rows = [[row.cells()[i] for i in keep] for row in summary_rows(runs)]
    recipe, machines = runs[0].benchmark, Counter(run.machine["processor"] for run in runs)
    processor = " or ".join(f"an {name}" for name, _ in machines.most_common())
    threads = f"{runs[0].machine['threads']} thread of {processor}"
    return [
        recipe["title"],
        f"{recipe['description']}; {_usual_budget(runs)}; {threads} ([report](reports/{name}/README.md)):",
        "",
        *_table(SHOWN, rows, texts=1),
        "",
        *_commands(name, runs, reports),
    ]


def _commands(name: str, runs: list[RunResult], reports: Path) -> list[str]:
    """What chose the settings, what gives these runs (on another machine but for the last digits), and the time."""
    recipe, learners = runs[0].benchmark, group_runs(runs)
    data = [] if recipe["data"]["name"] == "digits" else ["--data DIR"]
    seeds = f"--seeds {max(len(learner.runs) for learner in learners)}"
    shown = []
    if (tuning := reports / name / "tune.json").exists():
        tuned = json.loads(tuning.read_text("utf-8"))
        options = [f"--{key} {value}" for key, value in tuned["protocol"].items() if key != "settings"]
        changes = [f"--set {setting}" for setting in tuned["protocol"]["settings"]]
        shown += _call("fscl tune", tuned["benchmark"], *data, *options, *changes, *_each(tuned["strategies"]))
    shown += _call("fscl run", recipe["name"], *data, seeds, *_each(learner.name for learner in learners))
    took = human_seconds(sum(run.seconds for run in runs))
    return ["```", *shown, "```", "", f"The runs took {took}, added up."]


def _each(strategies: Iterable[str]) -> list[str]:
    return [f"-s {name}" for name in sorted(strategies)]


def _call(*words: str) -> list[str]:
    """A command line over as many lines as it needs, none of which ends between an option and its value."""
    text = " ".join(word.replace(" ", "\0") for word in words)
    lines = textwrap.wrap(text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines).replace("\0", " ").splitlines()


def _heatmap(name: str, runs: list[RunResult]) -> list[str]:
    """Which tasks are alike, and how far that is their order; where each starts from the first, if there are such."""
    by_start = {group.runs[0].strategy["args"]["warm_start"]: group for group in atom_strategies(group_runs(runs))}
    chain, star = by_start["previous"], by_start.get("first")
    picture = f"{name}-similarity" + (f"-{star.name}" if star else "")
    shown = star or chain
    text = (
        f"Similarity of the tasks of one seed, from their atoms alone ({shown.label}). Spearman's ρ of similarity and "
        f"the number of tasks in between is {_with_time(chain)} where each starts from the atoms of the one before "
        f"({chain.label}): near −1, similarity shows little more than the order of the tasks."
    )
    if star:
        text += f" Where each starts from the first ({star.label}), it is {_with_time(star)}."
    file = f"reports/{name}/figures/{picture.replace('_', '-')}.png"
    return [f"![Task-to-task similarity on {runs[0].benchmark['title']}]({file})", text]


def _with_time(group: StrategyRuns) -> str:
    rho, seeds = correlation_with_time(group.runs)
    return f"{signed(rho)} (mean over {seeds} seeds)"


def published(reports: Path) -> list[dict[str, Any]]:
    """What papers report on the first benchmark, with their digits."""
    papers: list[dict[str, Any]] = tomllib.loads(
        (reports / REPORTS[0] / "literature.toml").read_text("utf-8"), parse_float=str
    )["papers"]
    return papers


def literature(kept: Runs, papers: Sequence[Mapping[str, Any]]) -> str:
    """Published accuracies on the first benchmark beside those here, and whether they order the learners alike."""
    ours = {row.strategy: row for row in summary_rows(kept.get(REPORTS[0], [])) if row.accuracy}
    if not ours:
        return ""
    head = ["Strategy", "Here, 20 tasks", *(paper["heading"] for paper in papers)]
    rows = [
        [
            row.label,
            row.cells()[COLUMNS.index("Accuracy (%)")],
            *(p["accuracy"].get(name, DASH) for p in papers),
        ]
        for name, row in ours.items()
        if any(name in paper["accuracy"] for paper in papers)
    ]
    learners = {name: row for name, row in ours.items() if row.bound is None}
    agreements = (_agreement(learners, paper["accuracy"]) for paper in papers)
    order = ["Kendall's τ with the order of learners here", DASH, *agreements]
    sources = [f"- {paper['heading']}: {paper['source']}." for paper in papers]
    return "\n".join([*_table(head, [*rows, order], texts=1), "", *sources])


def question(kept: Runs) -> str:
    """What the runs answer to whether similarity predicts forgetting and transfer: a table, and its parts."""
    streams = {
        runs[0].benchmark["title"]: [a for a in predictions(group_runs(runs))[1] if a.found.defined]
        for runs in kept.values()
    }
    every = [answer for answers in streams.values() for answer in answers]
    questions = list(dict.fromkeys(answer.words for answer in every))
    rows, each = [], []
    for words in questions:
        for title, answers in streams.items():
            if asked := [a for a in answers if a.words == words]:
                apart = [a for a in asked if a.apart.defined]
                counts = (asked[0].found.n_tasks, max(a.found.n_seeds for a in asked), len(asked))
                of_all = _many([a.found.statistic for a in asked], [a.p for a in asked])
                of_some = _many([a.apart.statistic for a in apart], [a.p_apart for a in apart])
                rows.append((words, title, *map(str, counts), *of_all, *of_some))
                each += [(title, a.atoms, *a.cells()[1:-1]) for a in asked if a.question == "atoms"]
    over = [_told(words, [a for a in every if a.words == words]) for words in questions]
    return "\n".join(
        [
            *_table(OVER_STREAMS, over, texts=1),
            "",
            "<details><summary>Stream by stream</summary>",
            "",
            *_table(OVER_LEARNERS, rows, texts=2),
            "",
            "</details>",
            "<details><summary>Atom similarity and forgetting, learner by learner</summary>",
            "",
            *_table(BY_LEARNER, each, texts=3),
            "",
            "</details>",
        ]
    )


def _agreement(ours: Mapping[str, Any], theirs: Mapping[str, str]) -> str:
    both = [name for name in theirs if name in ours]
    if len(both) < 4:
        return f"{DASH} ({len(both)} learners)"
    tau = kendalltau([ours[name].accuracy.mean for name in both], [float(theirs[name]) for name in both]).statistic
    return f"{signed(tau)} ({len(both)} learners)"


def _told(question: str, answers: Sequence[Prediction]) -> tuple[str, str, str, str]:
    every, apart = sum(a.p < LEVEL for a in answers), sum(a.p_apart < LEVEL for a in answers)
    return question, str(len(answers)), str(every), str(apart)


def _many(values: Sequence[float], p_values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "undefined", "–"
    middle, low, high = (signed(v) for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]", f"{sum(p < LEVEL for p in p_values)} of {len(values)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Markdown; the first ``texts`` columns are words, the others numbers."""
    lines = [head, [":--"] * texts + ["--:"] * (len(head) - texts), *([escape_markdown(c) for c in r] for r in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _usual_budget(runs: list[RunResult]) -> str:
    """What most learners were given; the report says what others were."""
    budgets = [budget(group.runs[0], brief=True) for group in group_runs(runs)]
    return max(dict.fromkeys(budgets), key=budgets.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the README differs")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    before = after = readme.read_text(encoding="utf-8")
    for mark, text in parts(ROOT / "reports").items():
        begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        head, rest = after.split(begin)
        after = f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    if arguments.check:
        sys.exit(int(after != before))
    readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
