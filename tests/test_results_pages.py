"""Results in README.md and docs/results/ agree with the committed reports."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.leaderboards import BENCHMARKS, FEDERATIONS, MARKED, PARTS, ROOT, pages, question_by_learner, quoted
from fscl.report.page import escape_markdown
from fscl.report.runs import load_runs
from fscl.report.summary import group_runs, summary_rows
from fscl.report.table import COLUMNS
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.spec import RunSpec

RESULTS = ROOT / "docs" / "results"
SHOWN = [(page, mark) for page in pages() for mark in MARKED.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "mark"), SHOWN, ids=[f"{page.stem}-{mark}" for page, mark in SHOWN])
def test_a_generated_part_of_a_page_agrees_with_the_committed_reports(page: Path, mark: str) -> None:
    """If this fails, run `uv run python benchmarks/leaderboards.py`."""
    text = page.read_text(encoding="utf-8")
    assert text.split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0] == PARTS[mark]()


def test_sentences_on_agreement_give_the_numbers_of_the_tables() -> None:
    def medians(mark: str) -> list[float]:
        lines = PARTS[mark]().splitlines()
        (row,) = [line for line in lines if line.startswith("| cosine of atoms, over depth |")]
        return [float(number) for number in re.findall(r"\| ([\d.]+) \[", row)]

    cka, cca = medians("agreement")[::2], medians("agreement")[1::2]
    ranges = [f"{min(values):.2f} to {max(values):.2f}" for values in (cca, cka)]
    fine_tuned, snapshots = ([f"{value:.2f}" for value in medians("transformers")[i : i + 2]] for i in (0, 2))
    evidence = " ".join((RESULTS / "evidence.md").read_text(encoding="utf-8").split())
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "mean CCA (median correlation {}), and less well with linear CKA ({}).".format(*ranges) in evidence
    assert "agree with both yardsticks ({} / {}).".format(*snapshots) in evidence
    assert "agree with mean CCA ({1}), but less with linear CKA ({0}).".format(*fine_tuned) in evidence
    assert "mean CCA at {} and with linear CKA at {} (".format(*ranges) in readme
    assert "fine-tuned to different tasks it is {1} and {0}.".format(*fine_tuned) in readme


def test_each_generated_part_is_on_one_page() -> None:
    assert sorted(mark for _, mark in SHOWN) == sorted(PARTS)


@pytest.mark.parametrize("benchmark", [*BENCHMARKS, *FEDERATIONS])
def test_every_benchmark_with_runs_has_a_page(benchmark: str) -> None:
    assert (RESULTS / f"{benchmark}.md", benchmark) in SHOWN


def test_every_report_with_runs_is_on_a_results_page() -> None:
    assert {file.parent.name for file in (ROOT / "reports").glob("*/runs.json")} == {*BENCHMARKS, *FEDERATIONS}


def test_the_index_of_results_lists_every_page() -> None:
    index = (RESULTS / "index.md").read_text(encoding="utf-8")
    listed = index.split("```{toctree}")[1].split("```")[0].split("\n\n")[1].split()
    assert sorted([*listed, "index"]) == sorted(page.stem for page in RESULTS.glob("*.md"))


@pytest.mark.parametrize(
    ("name", "learners", "seeds"),
    [("split_digits", 21, 5), ("split_fmnist", 21, 3), ("split_cifar100", 10, 3), ("rotated_fmnist", 5, 3)],
)
def test_committed_runs_were_made_with_the_present_recipes(name: str, learners: int, seeds: int) -> None:
    """If they were not, the command beside each table would give other numbers."""
    found = defaultdict(set)
    for run in load_runs([ROOT / "reports" / name]):
        pair = with_overrides(load_benchmark(run.benchmark.name), load_strategy(run.strategy.name))
        assert RunSpec(*pair, run.seed).hash == run.recipe_hash, run.strategy.name
        found[run.strategy.name].add(run.seed)
    assert len(found) >= learners
    assert {frozenset(runs) for runs in found.values()} == {frozenset(range(seeds))}


@pytest.mark.parametrize("name", ["split_cifar100", "rotated_fmnist", "split_digits_class"])
def test_recipes_have_the_settings_found_by_tuning(name: str) -> None:
    tuned = json.loads((ROOT / "reports" / name / "tune.json").read_text(encoding="utf-8"))
    for strategy, found in tuned["strategies"].items():
        benchmark, learner = with_overrides(load_benchmark(name), load_strategy(strategy))
        training = benchmark.training.model_dump()
        now = {"args": learner.args, "training": training | {"lr_next": training["lr_next"] or training["lr"]}}
        for key, value in found["best"].items():
            part, _, setting = key.partition(".")
            assert now[part][setting] == value, (strategy, key)


def test_committed_reports_agree_with_their_committed_runs():
    kept = sorted((ROOT / "reports").glob("*/runs.json"))
    assert len(kept) >= 2
    for file in kept:
        report = (file.parent / "README.md").read_text(encoding="utf-8").splitlines()
        for row in summary_rows(group_runs(load_runs([file]))):
            assert "| " + " | ".join(escape_markdown(column.cell(row)) for column in COLUMNS.values()) + " |" in report


def test_answers_have_the_same_headings_on_a_page_as_in_a_report() -> None:
    head = question_by_learner().splitlines()[0].strip("| ").split(" | ")
    in_report = quoted("split_digits", "| Question | Strategy |").splitlines()[0].strip("| ").split(" | ")
    assert head[2:] == [cell.replace("\\", "") for cell in in_report[1:-1]]  # all but question and note
