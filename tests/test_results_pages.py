"""What README.md and docs/results/ show of the committed reports is what these say."""

from pathlib import Path

import pytest

from benchmarks.leaderboards import BENCHMARKS, MARKED, PARTS, ROOT, pages

RESULTS = ROOT / "docs" / "results"
SHOWN = [(page, mark) for page in pages() for mark in MARKED.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "mark"), SHOWN, ids=[f"{page.stem}-{mark}" for page, mark in SHOWN])
def test_a_part_of_a_page_is_what_the_committed_reports_say(page: Path, mark: str) -> None:
    """`uv run python benchmarks/leaderboards.py` makes it so."""
    text = page.read_text(encoding="utf-8")
    assert text.split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0] == PARTS[mark]()


def test_each_part_is_shown_once() -> None:
    assert sorted(mark for _, mark in SHOWN) == sorted(PARTS)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_benchmark_with_runs_has_a_page_of_its_own(benchmark: str) -> None:
    assert (RESULTS / f"{benchmark}.md", benchmark) in SHOWN


def test_every_report_with_runs_is_shown() -> None:
    assert {file.parent.name for file in (ROOT / "reports").glob("*/runs.json")} == set(BENCHMARKS)


def test_the_index_lists_every_page() -> None:
    index = (RESULTS / "index.md").read_text(encoding="utf-8")
    listed = index.split("```{toctree}")[1].split("```")[0].split("\n\n")[1].split()
    assert sorted([*listed, "index"]) == sorted(page.stem for page in RESULTS.glob("*.md"))
