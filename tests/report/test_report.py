"""Reports of made-up runs: what they show, what they leave out, and that they need no other file."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from rich.console import Console
from scipy.stats import spearmanr, ttest_rel

from fscl.errors import FsclError
from fscl.files import written_together
from fscl.report.findings import findings
from fscl.report.page import ReportPaths, write_report
from fscl.report.prediction import correlation_with_time, predictions
from fscl.report.runs import load_runs
from fscl.report.sections import build_section
from fscl.report.summary import SummaryRow, group_runs, summary_rows
from fscl.report.table import COLUMNS
from fscl.report.terminal import rich_table
from fscl.runs.recipe import load_strategy
from fscl.runs.records.parts import Similarity
from fscl.runs.results import KEPT

NASTY = "<script>alert('x')</script>|a*b & \"c\""
MakeRun = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("undrawn")


def run_data(
    strategy: str = "fine_tuning", seed: int = 0, tasks: int = 8, /, *, forgets: float = 0.03, **changes: Any
) -> dict[str, Any]:
    """A run.json whose forgetting and transfer follow its similarity, with noise."""
    rng = np.random.default_rng([seed, tasks, len(strategy)])
    place = np.random.default_rng([seed, tasks]).normal(size=(tasks, 3))
    apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
    per_layer = np.exp(-apart[None] * np.array([0.05, 0.1, 0.2])[:, None, None])
    lag = np.clip(np.arange(tasks)[:, None] - np.arange(tasks), 0, None)
    accuracy = np.clip(0.85 - forgets * lag * (0.5 + apart) + rng.normal(0, 0.01, (tasks, tasks)) * (forgets > 0), 0, 1)
    names = ["apple", "aquarium_fish", "sweet_pepper", "pickup_truck", "television"]
    data: dict[str, Any] = {
        "format": 1,
        "status": "finished",
        "benchmark": {
            "name": "split_made_up",
            "title": "Split Made-Up",
            "description": "A stream of made-up tasks.",
            "training": {"epochs": 15, "batch_size": 64},
        },
        "strategy": {"name": strategy, "title": strategy.replace("_", " ").capitalize()},
        "recipe_hash": f"{strategy}0123456789abcdef",
        "seed": seed,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "machine": {"device": "cpu", "processor": "AMD EPYC", "threads": 1},
        "tasks": [
            {"name": ", ".join(f"{n}{i}" for n in names), "classes": [f"{n}{i}" for n in names]} for i in range(tasks)
        ],
        "accuracy": [[float(v) if i <= t else None for i, v in enumerate(row)] for t, row in enumerate(accuracy)],
        "transfer": (0.3 + 0.5 * np.exp(-apart) + rng.normal(0, 0.02, (tasks, tasks))).tolist(),
        "untrained": [0.25] * tasks,
        "start": [0.25] + [0.375] * (tasks - 1),
        "seconds": {"train": [42.0] * tasks, "evaluate": [1.0] * tasks},
        "memory": {"per_task": {"atoms": 1728, "normalisation": 5632, "head": 10240}, "shared": {"other": 1e6}},
        "similarity": {
            "metric": "cosine",
            "aggregate": "product",
            "layers": [f"features.{i}" for i in range(3)],
            "matrix": per_layer.tolist(),
        },
        "provenance": "atoms" if strategy.startswith("atom_") else "filters",
    }
    return {**data, **changes}


def similarity(values: Any) -> dict[str, Any]:
    """The similarity of a run whose network has one layer, for its record."""
    return {"metric": "cosine", "aggregate": "mean", "layers": ["c"], "matrix": [np.asarray(values, float).tolist()]}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(*args: Any, folder: str = "runs", **changes: Any) -> Path:
        data = run_data(*args, **changes)
        place = tmp_path / folder / data["benchmark"]["name"] / f"{data['strategy']['name']}-{data['recipe_hash'][-4:]}"
        file = place / f"seed_{data['seed']}" / "run.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(data))
        return tmp_path / folder

    return make


def report(folder: Path) -> tuple[ReportPaths, str, str]:
    paths = write_report(load_runs([folder]), folder.parent / "report")
    return paths, paths.html.read_text(), paths.markdown.read_text()


def texts(folder: Path) -> tuple[str, str]:
    """The HTML and the Markdown page."""
    return report(folder)[1:]


def table(folders: list[Path]) -> list[SummaryRow]:
    return summary_rows(group_runs(load_runs(folders)))


def cells(row: SummaryRow) -> list[str]:
    return [column.cell(row) for column in COLUMNS.values()]


class Page(HTMLParser):
    """The tags, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_shows_the_numbers_of_its_runs(make_run: MakeRun) -> None:
    flat = [[0.5, None], [0.25, 1.0]]
    for seed, last in enumerate((0.5, 0.75)):
        folder = make_run("fine_tuning", seed, 2, accuracy=[flat[0], [0.25, last]])
    (row,) = table([folder])
    assert row.seeds == (0, 1)
    assert row.accuracy is not None
    assert row.accuracy.mean == pytest.approx((0.375 + 0.5) / 2)
    assert row.accuracy.std == pytest.approx(np.std([0.375, 0.5], ddof=1))
    assert row.backward_transfer is not None
    assert row.backward_transfer.mean == pytest.approx(-0.25)
    assert row.forward_transfer is not None
    assert row.forward_transfer.mean == pytest.approx(0.125)
    incremental, learning = "46.88 ± 4.42", "56.25 ± 8.84"  # means of (0.5, ACC) and of (0.5, last)
    cells = (
        "43.75 ± 8.84",
        incremental,
        learning,
        "−25.00 ± 0.00",
        "25.00 ± 0.00",
        "+12.50 ± 0.00",
        "17.6 kB",
        "1.0 MB",
    )
    html, markdown = texts(folder)
    text = " ".join(Page(html).text.split())
    for cell in (*cells, "1 min 24 s", "15 epochs a task, batches of 64", "AMD EPYC", "torch 2.15.0", "n = 2"):
        assert cell in text.replace("± ", " ± ").replace("  ", " ")
        assert cell in markdown
    wide, narrow = (terminal([row], width) for width in (160, 80))
    assert "1 min " in wide
    assert all(cell in wide for cell in cells)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    for part in ("43.8", "±8.8", "46.9", "56.2", "−25.0", "25.0", "+12.5", "1.0 MB", "1 min"):
        assert part in narrow, part


def terminal(rows: list[SummaryRow], width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(rich_table(rows, width=width))
    return console.export_text()


def test_differences_to_the_best_learner_are_paired_by_seed(make_run: MakeRun) -> None:
    final = {"naive": (0.5, 0.56, 0.54), "ewc": (0.6, 0.65, 0.66), "from_scratch": (0.9, 0.92, 0.91), "lwf": (0.55,)}
    for name, accuracies in final.items():
        for seed, value in enumerate(accuracies):
            strategy = {"name": name, "title": name, "bound": "upper" if name == "from_scratch" else None}
            folder = make_run(name, seed, 2, strategy=strategy, accuracy=[[value, None], [value, value]])
    rows = {row.strategy: row for row in table([folder])}
    assert list(rows) == ["from_scratch", "ewc", "lwf", "naive"]
    assert rows["ewc"].against_best is None, "the best learner; a bound is no learner"
    for name in ("from_scratch", "naive"):
        found = rows[name].against_best
        assert found is not None
        assert found.n == 3
        interval = ttest_rel(final[name], final["ewc"]).confidence_interval()
        assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert rows["naive"].against_best is not None
    below = ttest_rel(final["naive"], final["ewc"], alternative="less").pvalue
    assert rows["naive"].against_best.p_value == pytest.approx(2 * below), "of lwf there is but one seed"
    assert cells(rows["from_scratch"])[4] == "–", "a bound is not asked whether it is the best learner"
    assert cells(rows["naive"])[3] == "−10.33 [−14.13, −6.54]"
    assert cells(rows["lwf"])[3:5] == ["−5.00", "–"], "one seed in common has no test"


def test_a_report_can_be_made_again_from_its_runs_json(make_run: MakeRun, tmp_path: Path) -> None:
    started = {"started": "2026-01-01T00:00:00+00:00"}
    make_run("atom_swapping", 0, 5, forgets=0, **started)
    folder = make_run("fine_tuning", 0, 5, **started)
    paths, _, markdown = report(folder)
    again = write_report(load_runs([paths.html.parent]), tmp_path / "again")
    assert again.markdown.read_text() == markdown
    both = load_runs([folder, paths.html.parent / "runs.json"])
    assert [run.strategy.name for run in both] == ["atom_swapping", "fine_tuning"], "one run is read once"
    # a report below runs is not taken for runs: they may have been made again since
    write_report(load_runs([folder]), folder / "report")
    make_run("ewc", 0, 5)
    assert len(load_runs([folder])) == 3
    assert len(load_runs([folder / "report"])) == 2
    (folder / "report" / "runs.json").write_text('{"format": 1}')
    with pytest.raises(FsclError, match=r"runs\.json: key .runs. is missing or not a list"):
        load_runs([folder / "report"])


def test_a_run_that_went_on_after_its_report_is_read_from_its_folder(make_run: MakeRun, tmp_path: Path) -> None:
    started = {"started": "2026-01-01T00:00:00+00:00"}
    folder = make_run("ewc", 0, 3, status="failed", accuracy=[[0.5, None, None]], **started)
    write_report(load_runs([folder]), folder)
    old = write_report(load_runs([folder]), tmp_path / "old").html.parent
    shutil.rmtree(next(folder.rglob("seed_0")))
    make_run("ewc", 0, 3, **started)
    for paths in ([folder], [old, folder], [folder, old]):
        (run,) = load_runs(paths)
        assert run.finished
    shutil.rmtree(next(folder.rglob("seed_0")))
    make_run("ewc", 0, 3, started="2026-01-02T00:00:00+00:00")
    (run,) = load_runs([folder])
    assert run.started is not None
    assert run.started.startswith("2026-01-02"), "made anew in the folder of its report"


def test_runs_tested_on_other_images_or_tasks_are_not_compared(make_run: MakeRun) -> None:
    for seed in (0, 1):
        make_run("naive", seed, 3)
    make_run("ewc", 100, 3, validation=0.1, recipe_hash="a" * 64)
    folder = make_run("lwf", 100, 3, validation=0.1, first=3, recipe_hash="b" * 64)
    rows = table([folder])
    assert {(row.strategy, row.benchmark.partition(", ")[2]) for row in rows} == {
        ("naive", ""),
        ("ewc", "10 % of the training images held out"),
        ("lwf", "first 3 tasks, 10 % of the training images held out"),
    }
    assert all(row.against_best is None for row in rows)
    html, markdown = texts(folder)
    assert "held out" in Page(html).text
    assert markdown.count("### Summary") == 3


def test_each_question_correlates_its_own_matrices(make_run: MakeRun) -> None:
    rng, count = np.random.default_rng(3), 6
    for name in ("atom_swapping", "naive"):
        folder = make_run(name, 0, count)
    lower = np.tril_indices(count, -1)
    off = ~np.eye(count, dtype=bool)
    runs = []
    for run in load_runs([folder]):
        half = rng.random((count, count)) / 2
        matrix = half + half.T
        np.fill_diagonal(matrix, 1)
        similarity = Similarity(metric="cosine", aggregate="mean", layers=["one"], matrix=matrix[None])
        provenance = "atoms" if run.strategy.name == "atom_swapping" else "filters"
        accuracy = np.where(np.triu(np.ones((count, count)), 1), np.nan, rng.random((count, count)))
        transfer = rng.random((count, count))
        changes = {"similarity": similarity, "provenance": provenance, "accuracy": accuracy, "transfer": transfer}
        runs.append(run.model_copy(update=changes))
    atoms, naive = runs
    assert atoms.similarity is not None
    assert naive.similarity is not None
    of_atoms, own = atoms.similarity.matrix[0], naive.similarity.matrix[0]
    accuracy = naive.accuracy
    forgotten = np.array([accuracy[i:t, i].max() - accuracy[t, i] for t, i in zip(*lower, strict=True)])
    dropped = (accuracy[:-1] - accuracy[1:])[lower[0] - 1, lower[1]]
    expected = {
        "atoms": spearmanr(of_atoms[lower], forgotten).statistic,
        "drop": spearmanr(of_atoms[lower], dropped).statistic,
        "own": spearmanr(own[lower], forgotten).statistic,
        "transfer": spearmanr(own[off], naive.transfer.T[off]).statistic,
    }
    rows, _ = predictions(group_runs(runs))
    found = {row.question: row.rho for row in rows if row.label == naive.strategy.title}
    assert found == pytest.approx(expected)


@pytest.mark.usefixtures("drawn")
def test_the_html_page_loads_nothing_from_outside(make_run: MakeRun) -> None:
    make_run("atom_swapping", 0, forgets=0)
    paths, html, _ = report(make_run("fine_tuning", 0))
    page = Page(html)
    assert not re.search(r"https?:|url\((?!#)|@import", html)
    inside = [link for link in page.links if link.startswith(("#", "data:"))]
    beside = set(page.links) - set(inside)
    results = {paths.html.parent / KEPT, paths.html.parent / "figures", *paths.tables, *paths.figures}
    assert {paths.html.parent / link for link in beside} == results, "only links to files of the report"
    assert {link[1:] for link in inside if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == html.count('<script id="behaviour">') == 1
    assert page.tags.count("svg") == len(paths.figures)
    assert "prefers-color-scheme: dark" in html
    assert paths.html.stat().st_size < 3e6


def test_heatmaps_of_learners_come_before_those_of_bounds(make_run: MakeRun) -> None:
    made = {"strategy": {"name": "whole", "title": "Whole", "bound": "upper"}}
    make_run("whole", 0, 4, forgets=0.0, **made)
    html, markdown = texts(make_run("fine_tuning", 0, 4))
    assert markdown.index("| Whole |") < markdown.index("| Fine tuning |")  # the best comes first
    for page in (html, markdown):
        assert "Accuracy, task by task" in page
        assert re.findall(r"figures/split-made-up-accuracy-(\w+)", page) == ["fine", "whole"]


def test_heatmaps_of_learners_that_forget_most_come_first(make_run: MakeRun) -> None:
    for name, forgets in (("keeps", 0.0), ("forgets_much", 0.06), ("forgets_little", 0.02)):
        folder = make_run(name, 0, 6, forgets=forgets)
    for page in texts(folder):
        shown = re.findall(r"figures/split-made-up-accuracy-([\w-]+)\.png", page)
        assert shown == ["forgets-much", "forgets-little", "keeps"]


def test_findings_count_who_is_best_who_forgets_and_what_similarity_predicts(make_run: MakeRun) -> None:
    for seed in range(3):
        make_run("atom_swapping", seed, 9, forgets=0)
        make_run("fine_tuning", seed, 9)
        folder = make_run("joint", seed, 9, forgets=0, strategy={"name": "joint", "title": "Joint", "bound": "upper"})
    groups = group_runs(load_runs([folder]))
    rows, answers = summary_rows(groups), predictions(groups)[1]
    found = findings(rows, answers)
    assert found.learners == 2, "a bound is no learner"
    assert found.best is not None
    assert found.best.label == "Atom swapping"
    assert [row.label for row in found.least] == ["Atom swapping"]
    assert [row.label for row in found.most] == ["Fine tuning"]
    assert not found.rivals
    for answered in found.answered:
        of_question = [a for a in answers if a.words == answered.words]
        assert answered.asked == sum(np.isfinite(a.all_pairs.statistic) for a in of_question)
        assert answered.related == tuple(a.all_pairs.statistic for a in of_question if a.p < 0.05)
        assert answered.related_apart == tuple(a.apart.statistic for a in of_question if a.p_apart < 0.05)
    transfer = next(answered for answered in found.answered if "transfer" in answered.words)
    assert len(transfer.related) == transfer.asked == 2, "transfer was made to follow similarity"
    html, markdown = texts(folder)
    assert "Atom swapping is the most accurate of 2 learners: 85.00 ± 0.00 % (n = 3)." in Page(html).text
    assert "Own similarity and transfer: 2 of 2" in Page(html).text
    assert "Own similarity and transfer: 2 of 2" in markdown


def test_findings_on_one_learner_or_a_tie_say_so(make_run: MakeRun) -> None:
    folder = make_run("atom_swapping", 0, 3, forgets=0)
    html, _ = texts(folder)
    assert "Atom swapping is the only learner: 85.00 % (n = 1). Atom swapping forgets 0.00 points." in html
    make_run("ewc", 0, 3, forgets=0)
    html, _ = texts(folder)
    assert "Atom swapping and Ewc forget 0.00 points." in html.replace("Ewc and Atom swapping", "Atom swapping and Ewc")


def test_a_cell_has_its_exact_value(make_run: MakeRun) -> None:
    folder = make_run("fine_tuning", 0, 2, accuracy=[[0.5, None], [1 / 3, 1.0]])
    html, _ = texts(folder)
    (row,) = table([folder])
    accuracy = COLUMNS["accuracy"]
    assert accuracy.exact(row) == pytest.approx(200 / 3)
    assert accuracy.exact_text(row) == "66.6666666667 %"
    assert f'data-value="{accuracy.exact(row)}" title="66.6666666667 %">66.67</td>' in html
    assert COLUMNS["against_best"].exact(row) is None
    assert COLUMNS["strategy"].exact(row) is None


@pytest.mark.usefixtures("drawn")
def test_markdown_figures_are_small_pngs_that_exist(make_run: MakeRun) -> None:
    make_run("atom_swapping", 0, 20, forgets=0)
    paths, _, markdown = report(make_run("fine_tuning", 0, 20))
    shown = re.findall(r"!\[.*?\]\((.+?)\)", markdown)
    assert sorted(shown) == sorted(f"figures/{file.name}" for file in paths.figures)
    for file in paths.figures:
        with Image.open(file) as image:
            assert image.format == "PNG"
            image.verify()
        assert file.stat().st_size < 300_000
    assert not list(paths.html.parent.rglob("*.part"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("written", [0, 1, 4])
@pytest.mark.parametrize("again", [False, True])
def test_a_disk_that_fills_up_leaves_the_old_report_or_none(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, again: bool
) -> None:
    runs = make_run("fine_tuning", 0, 20)
    if again:
        report(runs)
        make_run("atom_swapping", 0, 20, forgets=0)
    before, flushed = contents(tmp_path / "report"), iter(range(written))

    def flush(_: int) -> None:
        if next(flushed, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", flush)
    with pytest.raises(FsclError, match=r"cannot write .*: the disk is full"):
        report(runs)
    assert contents(tmp_path / "report") == before


def test_files_of_a_killed_report_are_removed_by_the_next_report(make_run: MakeRun, tmp_path: Path) -> None:
    runs = make_run("fine_tuning", 0, 20)
    report(runs)
    before = sorted(contents(tmp_path / "report"))
    for name in ("figures/.split-digits-memory.s7xjzz6o.tmp.png", ".index.abcd1234.tmp.html", ".runs.0_x.tmp.json"):
        (tmp_path / "report" / name).write_bytes(b"half")
    report(runs)
    assert sorted(contents(tmp_path / "report")) == before


def test_markup_in_names_is_shown_as_text(make_run: MakeRun) -> None:
    tasks = [{"name": f"{NASTY} {i}", "classes": [NASTY]} for i in range(4)]
    benchmark = {"name": "split_<i>", "title": NASTY, "description": f"About {NASTY} $x$ _y_"}
    folder = make_run("own", 0, 4, tasks=tasks, benchmark=benchmark, strategy={"name": "a/../b|c", "title": NASTY})
    paths, html, markdown = report(folder)
    page = Page(html)
    assert page.tags.count("script") == html.count('<script id="behaviour">') == 1, "that of the page itself"
    assert "i" not in page.tags
    assert NASTY in page.text
    assert "<script>" not in html + markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table[:3]}
    assert len(widths) == 1, "a pipe in a name must not make another column"
    assert all(file.parent.name == "figures" for file in paths.figures)


def test_known_correlations_are_found_and_constant_forgetting_is_undefined(make_run: MakeRun) -> None:
    for seed in (0, 1):
        make_run("atom_swapping", seed, 9, forgets=0)
        folder = make_run("fine_tuning", seed, 9)
    html, markdown = texts(folder)
    for text in (html, markdown):
        assert "undefined" in text
        assert "forgetting is constant" in text
        assert "Atom similarity and forgetting" in text
    rows = [line.split(" | ") for line in markdown.splitlines()]

    def first(question: str, column: int) -> float:
        row = next(row for row in rows if row[0] == f"| {question}" and row[1] == "Fine tuning")
        return float(row[column].split(" ")[0].replace("−", "-").replace("\\", ""))

    assert first("Own similarity and transfer", 2) > 0.9, "transfer was made to follow similarity"
    assert first("Own similarity and transfer", 4) > 0.9, "at equal distance as well"
    assert first("Atom similarity and forgetting", 2) < 0, "what is unlike is forgotten more"
    atoms = [row for row in rows if row[0].startswith("| Atom similarity")]
    assert all("Atom swapping" not in row[1] for row in atoms), "the atoms are not asked about themselves"


def test_questions_are_answered_for_the_atoms_of_each_strategy(make_run: MakeRun) -> None:
    """The forgetting of a third strategy falls with the similarity of one strategy and rises with that of the other."""
    rng = np.random.default_rng(3)
    for seed in range(3):
        lost = np.tril(rng.random((8, 8)), -1)
        stack = 0.5 * (1 - lost - lost.T)
        alike, unlike = (similarity(np.where(np.eye(8), 1, m)) for m in (stack, 0.5 - stack))
        make_run("atom_swapping", seed, 8, forgets=0, similarity=alike)
        make_run("atom_swapping_first", seed, 8, forgets=0, similarity=unlike)
        accuracy = [[float(0.9 - 0.5 * lost[t, i]) if i <= t else None for i in range(8)] for t in range(8)]
        folder = make_run("fine_tuning", seed, 8, accuracy=accuracy, similarity=None, transfer=[])
    rows, answers = predictions(group_runs(load_runs([folder])))
    found = {answer.atoms: answer for answer in answers if answer.question == "atoms"}
    assert {answer.label for answer in found.values()} == {"Fine tuning"}, "neither kind of atoms is asked of the other"
    assert found["Atom swapping"].all_pairs.statistic < -0.5
    assert found["Atom swapping first"].all_pairs.statistic > 0.5
    assert len({row.words for row in rows if row.question == "atoms"}) == 2, "one is not taken for the other"
    html, markdown = texts(folder)
    for text in (html, markdown):
        assert "Atom similarity and forgetting (Atom swapping first)" in text.replace("\\", "")


def test_a_correlation_due_to_the_first_task_vanishes_among_later_tasks(make_run: MakeRun) -> None:
    """All tasks are similar to the first task, and the first task is forgotten most. All else is noise."""
    p_values, found = [], []
    for trial in range(8):
        rng = np.random.default_rng([11, trial])
        for seed in range(3):
            noise = rng.random((9, 9)) / 10
            near = np.zeros((9, 9))
            near[0, :] = near[:, 0] = 0.4
            matrix = np.where(np.eye(9), 1, 0.3 + near + noise + noise.T)
            make_run("atom_swapping", seed, 9, forgets=0, similarity=similarity(matrix), folder=f"runs{trial}")
            lost = 0.1 * rng.random((9, 9)) + np.where(np.arange(9) == 0, 0.4, 0)
            accuracy = [[float(0.9 - lost[t, i] * (t > i)) if i <= t else None for i in range(9)] for t in range(9)]
            more = {"similarity": None, "transfer": [], "accuracy": accuracy, "folder": f"runs{trial}"}
            folder = make_run("fine_tuning", seed, 9, **more)
        (answer,) = (a for a in predictions(group_runs(load_runs([folder])))[1] if a.question == "atoms")
        found.append(answer.all_pairs.statistic)
        p_values.append(answer.apart.p_value)
    assert min(found) > 0.3
    assert np.median(p_values) > 0.1
    assert sum(p < 0.05 for p in p_values) <= 2


def test_equal_similarities_of_two_strategies_are_shown_once(make_run: MakeRun) -> None:
    """An ensemble has the atoms of atom swapping and needs no heatmap of its own."""
    mine, other = similarity(np.eye(4) * 0.4 + 0.6), similarity(np.eye(4) * 0.7 + 0.3)
    make_run("atom_swapping", 0, 4, similarity=mine)
    make_run("atom_ensemble", 0, 4, similarity=mine)
    folder = make_run("atom_swapping_first", 0, 4, similarity=other)
    paths, html, markdown = report(folder)
    names = [path.stem for path in paths.figures if "similarity" in path.stem and "layer" not in path.stem]
    assert len(names) == 2
    assert [name.endswith("atom-swapping-first") for name in names] == [False, True]
    for text in (html, markdown):
        assert text.count("Whole network: Atom swapping") > text.count("Whole network: Atom swapping first") > 0
        assert "Whole network: Atom ensemble" not in text


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_forgetting_is_undefined_if_most_former_accuracies_are_equal(make_run: MakeRun, kept: float) -> None:
    """Only the accuracy right after learning varies. It is ordered in time, as is the similarity of the atoms."""
    for seed in range(3):
        folder = make_run("atom_swapping", seed, 6, forgets=0)
        lost: list[list[float | None]] = [
            [None if i > t else (0.9 + 0.01 * i if i == t else kept) for i in range(6)] for t in range(6)
        ]
        make_run("fine_tuning", seed, 6, accuracy=lost)
        lost[5] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.95]  # 10 of 15 are still the same
        make_run("lwf", seed, 6, accuracy=lost)
        lost[4] = [0.2, 0.25, 0.35, 0.45, 0.94, None]  # 6 of 15 are
        make_run("ewc", seed, 6, accuracy=lost)
    rows, answers = predictions(group_runs(load_runs([folder])))
    by = {(answer.label, answer.question): answer for answer in answers}
    for question in ("atoms", "drop", "own"):
        for label in ("Fine tuning", "Lwf"):
            assert not by[label, question].all_pairs.defined
            assert not by[label, question].apart.defined
            assert "not forgetting" in by[label, question].note
        assert by["Ewc", question].all_pairs.defined
    assert by["Fine tuning", "transfer"].all_pairs.defined, "transfer is not asked of what is left"
    assert sum("not forgetting" in row.note for row in rows) == 2 * 3 * 3


def test_a_learner_with_the_features_of_another_is_not_counted_twice(make_run: MakeRun) -> None:
    for seed in range(2):
        make_run("atom_swapping", seed, 6, forgets=0)
        make_run("atom_ensemble", seed, 6, forgets=0)
        folder = make_run("ewc", seed, 6)
    data = [json.loads(file.read_text()) for file in sorted(folder.rglob("run.json"))]
    of = {(d["strategy"]["name"], d["seed"]): d for d in data}
    assert of["atom_swapping", 0]["transfer"] == of["atom_ensemble", 0]["transfer"]
    answers = {a.label: a for a in predictions(group_runs(load_runs([folder])))[1] if a.question == "transfer"}
    assert sorted(label for label, answer in answers.items() if answer.all_pairs.defined)[1:] == ["Ewc"]
    (twin,) = (answer for answer in answers.values() if not answer.all_pairs.defined)
    assert "it has the features of Atom" in twin.note


def test_a_learner_has_one_colour_in_all_figures(make_run: MakeRun) -> None:
    bound = {"name": "joint", "title": "Joint", "bound": "upper"}
    make_run("joint", 0, 4, forgets=0, strategy=bound)
    make_run("atom_swapping", 0, 4, forgets=0)  # comes before those that forget, and is missing from the scatter
    for name in ("a", "bb", "ccc", "dddd"):
        folder = make_run(name, 0, 4)
    section = build_section("split_made_up", load_runs([folder]))
    over_time, memory = (picture.figure.axes[0] for picture in section.overview)
    seen = {str(line.get_label()): to_rgb(line.get_color()) for line in over_time.lines}
    assert len(set(seen.values())) == len(seen) == 6
    assert [to_rgb(line.get_color()) for line in memory.lines[:6]] == list(seen.values())
    panels = section.answers[1].figure.axes
    drawn = {a.get_title(): to_rgb(a.collections[0].get_facecolor()[0][:3]) for a in panels if a.get_title()}
    assert len(drawn) == 4
    for name, colour in drawn.items():
        assert colour == pytest.approx(seen[name])


def test_a_correlation_due_to_distance_in_the_stream_vanishes_at_equal_distance(make_run: MakeRun) -> None:
    """Forgetting and similarity follow only the distance. How often p is wrong is tested in tests/similarity."""
    apart = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    for seed in range(3):
        rng = np.random.default_rng([7, seed])
        noise = rng.normal(0, 0.002, (12, 12))
        stack = np.exp(-0.1 * apart)[None] + (noise + noise.T) * (apart > 0)
        kept = {"metric": "cosine", "aggregate": "product", "layers": ["a"], "matrix": stack.tolist()}
        accuracy = 0.9 - 0.03 * apart + rng.normal(0, 0.003, (12, 12))
        rows = [[float(v) if i <= t else None for i, v in enumerate(row)] for t, row in enumerate(accuracy)]
        make_run("atom_swapping", seed, 12, forgets=0, similarity=kept)
        folder = make_run("fine_tuning", seed, 12, accuracy=rows, similarity=None, transfer=[])
    _, answers = predictions(group_runs(load_runs([folder])))
    (answer,) = [a for a in answers if (a.question, a.label) == ("atoms", "Fine tuning")]
    assert answer.all_pairs.statistic < -0.9
    assert answer.p < 0.01
    assert abs(answer.apart.statistic) < 0.2
    assert answer.p_apart > 0.05


def test_a_seed_without_a_run_of_the_atoms_is_undefined_with_the_reason(make_run: MakeRun) -> None:
    make_run("atom_swapping", 0, forgets=0)
    make_run("fine_tuning", 0)
    html, _ = texts(make_run("fine_tuning", 5))
    assert "no finished run of Atom swapping has seed 5" in html


def test_unfinished_runs_are_listed_and_not_counted(make_run: MakeRun) -> None:
    make_run("fine_tuning", 0, 4)
    data = run_data("fine_tuning", 1, 4)
    half = {"status": "running", "accuracy": data["accuracy"][:2], "transfer": [], "similarity": None}
    folder = make_run("fine_tuning", 1, 4, **half)
    (row,) = table([folder])
    assert row.seeds == (0,)
    html, markdown = texts(folder)
    for text in (html, markdown):
        assert "Fine tuning, seed 1: running, 2 of 4 tasks" in text


def test_a_report_of_only_unfinished_runs_says_that_there_is_nothing_to_average(make_run: MakeRun) -> None:
    paths, html, _ = report(make_run("fine_tuning", 0, 3, status="failed", accuracy=[]))
    assert "nothing to average" in html
    assert not paths.figures


def test_two_recipes_of_one_strategy_are_two_rows(make_run: MakeRun) -> None:
    make_run("ewc", 0, recipe_hash="aaaaaaa1111")
    folder = make_run("ewc", 0, recipe_hash="bbbbbbb2222")
    assert sorted(row.label for row in table([folder])) == ["Ewc (aaaaaaa)", "Ewc (bbbbbbb)"]
    paths, html, _ = report(folder)
    assert "Ewc (aaaaaaa)" in html
    assert "Ewc (bbbbbbb)" in html
    assert len(set(paths.figures)) == len(paths.figures)


def test_two_strategies_with_one_title_are_told_apart(make_run: MakeRun) -> None:
    make_run("ewc", 0, strategy={"name": "ewc", "title": "EWC"})
    folder = make_run("ewc", 0, strategy={"name": "my_ewc", "title": "EWC"}, recipe_hash="f" * 9)
    assert {row.label for row in table([folder])} == {"EWC [ewc]", "EWC [my_ewc]"}


@pytest.mark.parametrize("tasks", [1, 2, 20])
def test_a_report_of_one_strategy_works_for_any_number_of_tasks(make_run: MakeRun, tasks: int) -> None:
    html, _ = texts(make_run("atom_swapping", 0, tasks, forgets=0))
    assert "85.00" in html


def test_a_report_works_without_similarity_transfer_and_memory(make_run: MakeRun) -> None:
    bare = {"similarity": None, "transfer": [], "untrained": [], "start": [], "memory": {}, "provenance": None}
    folder = make_run("fine_tuning", 0, 5, **bare)
    (row,) = table([folder])
    assert row.forward_transfer is None
    html, _ = texts(folder)
    assert "Which tasks are alike" not in html


def test_joint_training_has_only_a_final_accuracy(make_run: MakeRun) -> None:
    recipe = load_strategy("joint").model_dump(by_alias=True)
    folder = make_run("joint", 0, 4, strategy=recipe, accuracy=[[0.5, 0.75, 1.0, 0.75]] * 4, similarity=None)
    (row,) = table([folder])
    assert cells(row)[2:10] == ["75.00", *"–––––––"]
    report(make_run("fine_tuning", 0, 4))


def test_the_budget_of_joint_training_has_no_later_tasks(make_run: MakeRun) -> None:
    recipe = load_strategy("joint").model_dump(by_alias=True)
    benchmark = run_data()["benchmark"] | {"training": {"epochs": 17, "epochs_next": 15, "lr_next": 0.1}}
    folder = make_run("joint", 0, 4, strategy=recipe, accuracy=[[0.5] * 4], similarity=None, benchmark=benchmark)
    _, markdown = texts(folder)
    assert "17 epochs of all tasks at once" in markdown
    assert "later one" not in markdown
    assert "second task" not in markdown


def test_runs_of_another_machine_are_named(make_run: MakeRun) -> None:
    elsewhere = {"device": "cpu", "processor": "Xeon", "threads": 2}
    for seed, machine in enumerate((run_data()["machine"], elsewhere, {})):
        make_run("fine_tuning", seed)
        folder = make_run("ewc", seed, machine=machine)
    _, markdown = texts(folder)
    (line,) = [line for line in markdown.splitlines() if line.startswith("- **Machine**")]
    assert "AMD EPYC, cpu, 1 thread (4 of 6 runs)" in line
    assert "Xeon, cpu, 2 threads (1 of 6 runs: Ewc)" in line
    assert "not recorded (1 of 6 runs: Ewc)" in line
    assert line.endswith("cannot be compared.")


def test_seeds_with_other_tasks_are_not_averaged_task_by_task(make_run: MakeRun) -> None:
    make_run("fine_tuning", 0, 3)
    folder = make_run("fine_tuning", 1, 3, tasks=[{"name": f"other {i}", "classes": ["o"]} for i in range(3)])
    html, _ = texts(folder)
    assert "seed 0. The other seeds learned other tasks." in html
    assert "other 2" not in html


def test_a_report_is_drawn_again_only_if_it_would_change(make_run: MakeRun) -> None:
    folder = make_run("atom_swapping", 0, 4, forgets=0)
    written = write_report(load_runs([folder]), folder / "report")
    files = [written.html, written.markdown, folder / "report" / KEPT, *written.figures]
    assert len(written.figures) > 2

    def times() -> list[int]:
        assert write_report(load_runs([folder]), folder / "report") == written
        return [file.stat().st_mtime_ns for file in files]

    before = times()
    assert times() == before, "nothing changed"
    written.figures[1].unlink()
    after = times()
    assert all(new > old for new, old in zip(after, before, strict=True)), "a figure was missing"
    for file in files:  # damaged, or changed by hand
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        write_report(load_runs([folder]), folder / "report")
        assert file.read_bytes() == whole, file
    write_report(load_runs([folder]), folder / "report", title="Another title")
    assert "Another title" in written.html.read_text(encoding="utf-8")
    make_run("atom_swapping", 1, 4, forgets=0)
    written = write_report(load_runs([folder]), folder / "report")
    assert "seed 1" in written.html.read_text(encoding="utf-8") or "(n = 2)" in written.html.read_text(encoding="utf-8")


def test_a_report_among_whose_files_another_process_put_its_own_is_drawn_again(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run("atom_swapping", 0, 4, forgets=0)
    page = folder / "report" / "index.html"

    @contextlib.contextmanager
    def with_another_process() -> Iterator[Any]:
        with written_together() as drafted:
            yield drafted
        page.write_text("the page of another report")  # between two files of this one

    with monkeypatch.context() as patch:
        patch.setattr("fscl.report.page.written_together", with_another_process)
        write_report(load_runs([folder]), folder / "report")
    write_report(load_runs([folder]), folder / "report")
    assert "Atom swapping" in page.read_text(encoding="utf-8")


def test_several_benchmarks_have_a_section_each(make_run: MakeRun) -> None:
    make_run("ewc", 0, 3)
    folder = make_run("ewc", 0, 3, benchmark={"name": "another", "title": "Another stream"})
    html, markdown = texts(folder)
    assert re.findall(r"<h2>(.+?)</h2>", html) == ["Another stream", "Split Made-Up", "Notes", "Files"]
    assert "## Another stream" in markdown


@pytest.mark.usefixtures("drawn")
def test_writing_a_report_again_gives_the_same_page(make_run: MakeRun) -> None:
    folder = make_run("atom_swapping", 0, 4, forgets=0)
    first = report(folder)
    assert report(folder) == first


def test_an_error_in_a_record_names_its_file(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(FsclError, match=r"nowhere: no such file or folder"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(FsclError, match=r"no run\.json found"):
        load_runs([tmp_path])
    file = make_run("ewc", 0, format=9, folder="other")
    with pytest.raises(FsclError, match=r"run\.json: format is 9; this version of fscl reads format 1"):
        load_runs([file])
    with pytest.raises(FsclError, match=r"run\.json: accuracy has shape \(1, 2\); it must be \(any, 3\)"):
        load_runs([make_run("ewc", 0, 3, accuracy=[[0.5, 0.5]], folder="wrong")])
    with pytest.raises(FsclError, match=r"status is 'done'; it must be 'running', 'finished' or 'failed'"):
        load_runs([make_run("ewc", 0, status="done", folder="status")])
    broken = tmp_path / "broken" / "run.json"
    broken.parent.mkdir()
    broken.write_text('{"format": 1, "status": "fin')
    with pytest.raises(FsclError, match=r"broken/run\.json: cannot be read as JSON"):
        load_runs([broken.parent])
    broken.write_text('{"format": 1, "status": "finished", "benchmark": {}}')
    with pytest.raises(FsclError, match=r"broken/run\.json: key 'benchmark.name' is missing"):
        load_runs([broken.parent])


def test_a_run_given_twice_counts_once_and_a_copy_with_the_same_seed_is_refused(make_run: MakeRun) -> None:
    first = make_run("ewc", 0, 3)
    assert len(load_runs([first, next(first.rglob("run.json"))])) == 1
    copy = make_run("ewc", 0, 3, folder="copy")
    with pytest.raises(FsclError, match="seed 0 of ewc on split_made_up occurs twice"):
        table([first, copy])


def test_the_correlation_of_similarity_with_the_order_of_tasks_has_known_values(make_run: MakeRun) -> None:
    apart = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    for seed, values in enumerate((0.9**apart, np.where(apart, 0.1 * apart, 1.0), np.where(apart, 0.3, 1.0))):
        folder = make_run("atom_swapping", seed, 5, similarity=similarity(values))
    fades, grows, equal = load_runs([folder])
    assert correlation_with_time([fades]) == (pytest.approx(-1), 1)
    assert correlation_with_time([grows, equal]) == (pytest.approx(1), 1)
    assert correlation_with_time([fades, grows]) == (pytest.approx(0), 2)
    assert np.isnan(correlation_with_time([equal])[0])
