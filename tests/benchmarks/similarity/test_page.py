"""The page says what its parts hold, in HTML that stands alone and in Markdown, whatever characters they hold."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.similarity.blocks import Goal, Part, Picture, Table, Tally
from benchmarks.similarity.measures import MEASURES
from benchmarks.similarity.page import write_page
from benchmarks.similarity.run import Results

NASTY = "<script>alert('x')</script> & \"c\" | a*b"
ROWS = [
    [NASTY, "0.93", "p < 0.05 | n > 3"],
    ["plain words", "–", "a_b, c_d | `code` | **bold**"],
    ["a <b>third</b> & last", "0", "&lt;"],
]
DONE = {
    "quick": False,
    "units": {
        "a-one": {"result": {}, "seconds": 3600.0, "date": "2026-01-03", "machine": "<i>some</i> processor"},
        "a-two": {"result": {}, "seconds": 5400.0, "date": "2026-01-02", "machine": "<i>some</i> processor"},
    },
}
RESULTS = Results.model_validate(DONE)
ATOMS, MOMENTS, TANGENT, RESPONSE, READINGS = (measure.title for measure in MEASURES)
VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect", "line", "polyline", "circle", "image"}


def drawing() -> Figure:
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [1, 0], "o", label="of <b> & c")
    axes.legend()
    return figure


def parts() -> list[Part]:
    first = Part("Of & <first>", f"**Bold** lead with `x < y`; {NASTY}", [
        "A paragraph: **3 < 5** & `a & b`.",
        Table(["name <n>", "score", "more|less"], ROWS, f"Caption of {NASTY}"),
        Table(["what"], [["a detail"]], "Of details.", folded="More <details>"),
        Picture("first-figure", drawing(), "Title <t>", "Caption & **all**."),
        Picture("second-figure", drawing(), "Another", "The same lines again."),
    ])  # fmt: skip
    goals = [
        Goal("Reach <b>", {ATOMS: Tally(1, 2), TANGENT: Tally(2, 2)}),
        Goal("Go on", {RESPONSE: Tally(0, 3, undecided=1)}),
    ]
    points = ["A **point** of `a < b`.", "And another."]
    return [first, Part("Of the second", "It has no blocks.", [], goals, points)]


class Read(HTMLParser):
    """Elements with their attributes, the text in them, and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "new"
    assert write_page(RESULTS, parts(), out) == out / "index.html"
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Read:
    return Read((folder / "index.html").read_text(encoding="utf-8"))


def test_what_is_given_is_text_not_html(page):
    assert not page.open, "all that was opened is closed"
    assert "script" not in page.texts
    assert not {"b", "i"} & page.texts.keys()
    assert any(title == "Of & <first>" for title in page.texts["h2"])
    assert [title for title in page.texts["h2"] if title.startswith("Of ")] == ["Of & <first>", "Of the second"]
    assert any("<i>some</i> processor" in text for text in page.texts["dd"])


def test_marks_of_emphasis_and_code_are_shown_as_such(page):
    assert {"3 < 5", "Bold", "bold", "all"} <= set(page.texts["strong"])
    assert {"x < y", "a & b", "code"} <= set(page.texts["code"])
    assert f"Bold lead with x < y; {NASTY}" in page.texts["p"]


def test_every_cell_is_shown_as_it_was_given(page):
    shown = [re.sub(r"\*\*|`", "", cell) for row in ROWS for cell in row]
    cells = page.texts["td"]
    start = cells.index(shown[0])
    assert cells[start : start + len(shown)] == shown
    assert {"name <n>", "score", "more|less"} <= set(page.texts["th"])


def test_points_goals_and_details_are_there(folder, page):
    assert page.texts["li"] == ["A point of a < b.", "And another."]
    assert "More <details>" in page.texts["summary"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = [cells_of(line) for line in text.splitlines() if line.startswith("|")]
    header = next(cells for cells in lines if cells[0] == "goal")
    cells = {"Reach <b>": {ATOMS: "1 of 2", TANGENT: "2 of 2"}, "Go on": {RESPONSE: "0 of 3, 1 undecided"}}
    for goal, reached in cells.items():
        row = next(cells for cells in lines if cells[0].replace("\\<", "<") == goal)
        known = dict(zip(header[1:], row[1:], strict=True))
        assert {title: known.pop(title) for title in reached} == reached
        assert set(known.values()) == {"–"}, "of the other ways nothing is known"
        start = page.texts["td"].index(goal)
        assert page.texts["td"][start + 1 : start + len(row)] == row[1:]
    for line in ("- A **point** of `a < b`.", "- And another.", "| a detail |"):
        assert line in text.splitlines()


def test_the_page_needs_nothing_from_elsewhere(folder, page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            target = attributes.get(name) or ""
            assert tag == "a" or target.startswith(("#", "data:")) or not target, (tag, target)
    styles = " ".join(page.texts["style"])
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)", styles)


def test_figures_are_drawn_in_the_page_without_getting_in_each_others_way(page):
    drawn = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert [attributes["aria-label"] for attributes in drawn] == [
        "Title <t>. Caption & **all**.",
        "Another. The same lines again.",
    ]
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    for _, attributes in page.elements:
        for value in attributes.values():
            for target in re.findall(r"^#(.+)|url\(#(.+?)\)", value or ""):
                assert "".join(target) in ids or re.fullmatch(r"[0-9a-f]{6}", "".join(target)), target


def cells_of(line: str) -> list[str]:
    """Cells of a row of a table in Markdown."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_holds_every_row_and_figure(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    header = next(k for k, line in enumerate(lines) if line.startswith("| name \\<n> |"))
    assert cells_of(lines[header]) == ["name \\<n>", "score", "more|less"]
    assert all(re.fullmatch(r":?-+:?", cell) for cell in cells_of(lines[header + 1]))
    escaped = [[re.sub(r"<(?=[a-z/])", r"\\<", cell) for cell in row] for row in ROWS]
    assert [cells_of(line) for line in lines[header + 2 : header + 5]] == escaped
    assert lines[header - 1] == lines[header + 5] == "", "a table stands between blank lines"
    figures = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert figures == ["figures/first-figure.png", "figures/second-figure.png"]
    for name in figures:
        with Image.open(folder / name) as image:
            assert image.size > (100, 50)
    assert [line for line in lines if line.startswith("## Of")] == ["## Of & \\<first>", "## Of the second"]
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)\b)[A-Za-z/!]", text), "markup may come of text"


def test_both_say_how_the_results_came_about(folder, page):
    text = (folder / "README.md").read_text(encoding="utf-8")
    for fact in ("full", "2 units, 2.5 hours of one core", "2026-01-02 to 2026-01-03"):
        assert f": {fact}" in text
        assert fact in page.texts["dd"]


def test_a_page_of_some_of_the_units_says_so(tmp_path):
    file = write_page(Results.model_validate(DONE | {"of": 35}), parts(), tmp_path)
    assert "2 of 35 units, 2.5 hours of one core" in Read(file.read_text(encoding="utf-8")).texts["dd"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_page_says_so(tmp_path, quick):
    results = Results(quick=quick, units={"a-one": RESULTS.units["a-one"]})
    file = write_page(results, parts()[1:], tmp_path)
    facts = Read(file.read_text(encoding="utf-8")).texts["dd"]
    assert any(fact.startswith("quick") for fact in facts) == quick
    assert any(fact.endswith("--quick") for fact in facts) == quick
    assert "2026-01-03" in facts


def test_the_same_results_make_the_same_page(folder, tmp_path):
    write_page(RESULTS, parts(), tmp_path)
    write_page(RESULTS, parts(), tmp_path)  # over what is there
    for name in ("index.html", "README.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"index.html", "README.md", "figures"}


def test_minus_signs_are_shown_as_such_and_hyphens_stay(tmp_path):
    table = Table(["what", "score"], [["ten-1", "-0.50 [-1.00, 0.25]"], ["2026-01-02", "1e-05"], ["c", "`-1`"]])
    file = write_page(RESULTS, [Part("Signs", "From -1 to 1.", [table])], tmp_path)
    page = Read(file.read_text(encoding="utf-8"))
    assert page.texts["td"][-6:] == ["ten-1", "−0.50 [−1.00, 0.25]", "2026-01-02", "1e-05", "c", "-1"]
    assert "From −1 to 1." in page.texts["p"]
    assert "| ten-1 | −0.50 [−1.00, 0.25] |" in (tmp_path / "README.md").read_text(encoding="utf-8")
