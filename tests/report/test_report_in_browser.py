"""A report in a browser: tables sort, the learner under the pointer stands out, and it fits wide and narrow screens."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fscl.files import write_text_atomically
from fscl.plots.figures import inline_svg
from fscl.report.page import write_report
from fscl.report.runs import load_runs
from fscl.runs.results import read_record

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright's Python package")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs the system's Chromium", allow_module_level=True)

ROOT = Path(__file__).parents[2]
LEARNERS = ("naive", "si", "packnet", "atom_swapping", "from_scratch", "joint")  # the last two have no forgetting
WIDE, PHONE = 1280, 390


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [run for run in load_runs([ROOT / "reports" / "split_digits"]) if run.strategy.name in LEARNERS]
    runs = [run for run in runs if run.seed == 0]
    assert len(runs) == len(LEARNERS)

    def svg(figure: Any, slug: str, alt: str) -> str:
        drawn = re.search("over-time|accuracy-(naive|si|from)", slug)
        return inline_svg(figure, slug, alt) if drawn else '<svg style="--width: 900px" viewBox="0 0 9 1"></svg>'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fscl.report.page.save_png", lambda figure, file: write_text_atomically(file, "not drawn"))
        patch.setattr("fscl.report.page.inline_svg", svg)
        return write_report(runs, tmp_path_factory.mktemp("report")).html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": WIDE, "height": 900}, color_scheme="light")
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(page_file.as_uri())
    yield page
    page.close()
    assert not problems


def column(page: Any, heading: str) -> list[str]:
    """The texts of a column of the summary, from top to bottom."""
    return page.evaluate(
        """heading => {
            const table = document.querySelector("table.sortable");
            const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.startsWith(heading));
            return [...table.tBodies[0].rows].map(row => row.cells[place].firstChild.textContent.trim());
        }""",
        heading,
    )


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-").replace("+", "")) for text in texts if text != "–"]


def check_width(page: Any) -> None:
    """Nothing but scroll areas is wider than the screen."""
    for width, scheme in itertools.product((WIDE, PHONE), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        outside = page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter(element =>
                !element.closest(".scroll > *, details:not([open]), script")
                && element.getBoundingClientRect().right > innerWidth + 1
            ).map(element => element.outerHTML.slice(0, 80))"""
        )
        assert outside == [], (width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)


def check_links(page: Any) -> None:
    """Each link within the page leads somewhere."""
    dead = page.evaluate(
        """() => [...document.querySelectorAll('a[href^="#"]')].map(link => link.getAttribute("href")).filter(
            href => !document.getElementById(href.slice(1)))"""
    )
    assert dead == []


def test_only_scroll_areas_are_wider_than_the_screen(opened: Any) -> None:
    check_width(opened)


def test_the_page_of_a_federation_fits_sorts_and_leads_to_its_heatmaps(
    browser: Any, federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fscl.report.page.save_png", lambda figure, file: write_text_atomically(file, "not drawn"))
    data = [federation(method, seed) for method in ("atoms", "fedavg", "local") for seed in range(2)]
    file = write_report([read_record("made up", one) for one in data], tmp_path).html
    page = browser.new_page(viewport={"width": WIDE, "height": 900})
    page.goto(file.as_uri())
    check_width(page)
    check_links(page)
    link = page.get_by_role("rowheader", name="Atoms").first.get_by_role("link").get_attribute("href")
    assert page.locator(f"{link} svg").count() == 1
    page.get_by_role("columnheader", name="Sent in all").get_by_role("button").click()
    exact = page.evaluate(
        """() => [...document.querySelector("table.sortable").tBodies[0].rows].map(row => row.cells[7].title)"""
    )
    assert exact == ["4000 bytes"] * 3
    drawn = page.evaluate("[...new Set([...document.querySelectorAll('[data-learner]')].map(e => e.dataset.learner))]")
    assert sorted(drawn) == ["Atoms", "Fedavg", "Local"]
    page.close()


def test_letters_of_figures_can_be_read_on_a_phone_and_names_of_learners_stay_in_view(opened: Any) -> None:
    opened.set_viewport_size({"width": PHONE, "height": 900})
    sizes = opened.evaluate(
        """() => [...document.querySelectorAll("figure svg text")].filter(text => text.checkVisibility()).map(text => {
            const { a, b } = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
        })"""
    )
    assert len(sizes) > 50
    assert min(sizes) > 7.5
    scroll = opened.locator(".scroll:has(table)").first
    assert scroll.evaluate("area => { area.scrollLeft = 200; return area.scrollLeft }") == 200
    left = scroll.locator("tbody th").first.evaluate("cell => cell.getBoundingClientRect().left")
    assert left == pytest.approx(scroll.evaluate("area => area.getBoundingClientRect().left"), abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_line_and_text_of_a_figure_has_contrast_to_the_page(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    contrasts = opened.evaluate(
        """() => {
            const shade = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const luminance = colour => {
                shade.fillStyle = colour; shade.fillRect(0, 0, 1, 1);
                const linear = [...shade.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
                    c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
                return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
            };
            const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            const page = luminance(getComputedStyle(document.body).backgroundColor);
            const svg = document.querySelector("figure svg");
            return [
                [...svg.querySelectorAll("[data-learner] > path:not(.hit)")].map(
                    line => contrast(page, luminance(getComputedStyle(line).stroke))),
                [...svg.querySelectorAll("text")].map(text => contrast(page, luminance(getComputedStyle(text).fill))),
            ];
        }"""
    )
    lines, letters = contrasts
    assert len(lines) >= len(LEARNERS)
    assert min(lines) > 2
    assert min(letters) > 7


def test_tables_sort_by_value_with_undefined_values_last(opened: Any) -> None:
    heading = opened.get_by_role("columnheader", name="Forgetting").first
    assert heading.get_attribute("aria-sort") == "none"
    for order, reverse in (("descending", True), ("ascending", False)):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        shown = column(opened, "Forgetting")
        assert numbers(shown) == sorted(numbers(shown), reverse=reverse)
        assert shown[-2:] == ["–", "–"], "of the upper bounds"
    assert numbers(shown)[-1] > 1, "a text would sort otherwise"
    sizes = opened.get_by_role("columnheader", name="Stored in all").first
    sizes.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "none"
    exact = opened.evaluate(
        """() => [...document.querySelector("table.sortable").tBodies[0].rows].map(row => row.cells[11].title)"""
    )
    assert all(title.endswith(" bytes") for title in exact)
    bytes_kept = [float(title.split()[0]) for title in exact]
    assert bytes_kept == sorted(bytes_kept, reverse=True)
    assert len(set(bytes_kept)) > 2


def test_tables_sort_by_the_keyboard(opened: Any) -> None:
    opened.get_by_role("columnheader", name="Strategy").first.get_by_role("button").focus()
    opened.keyboard.press("Enter")
    assert column(opened, "Strategy") == sorted(column(opened, "Strategy"), key=str.lower)
    opened.keyboard.press("Tab")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Space")
    assert opened.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    assert numbers(column(opened, "Accuracy")) == sorted(numbers(column(opened, "Accuracy")), reverse=True)


def test_answers_sort_within_their_question(opened: Any) -> None:
    table = opened.locator("table:has(tr.group)").first
    questions = table.locator("tr.group").all_inner_texts()
    table.get_by_role("columnheader", name="Strategy").get_by_role("button").click()
    assert table.locator("tbody > tr:first-child").all_inner_texts() == questions
    assert len(questions) > 1


def test_the_learner_under_the_pointer_or_with_the_focus_stands_out(opened: Any) -> None:
    def standing_out() -> set[str]:
        opened.wait_for_timeout(200)  # for the transition
        opacity = opened.evaluate(
            """() => {
                const curves = document.querySelector("figure svg").querySelectorAll("[data-learner]");
                return Object.fromEntries([...curves].map(
                    element => [element.dataset.learner, Number(getComputedStyle(element).opacity)]));
            }"""
        )
        assert len(opacity) == len(LEARNERS)
        rows = set(opened.locator("table.sortable >> nth=0").locator("tr.pointed th").all_inner_texts())
        assert rows <= {label for label, value in opacity.items() if value == 1}
        return {label for label, value in opacity.items() if value > 0.3}

    assert len(standing_out()) == len(LEARNERS)
    opened.get_by_role("link", name="PackNet").first.focus()
    assert standing_out() == {"PackNet"}
    opened.get_by_role("rowheader", name="SI").first.hover()
    assert standing_out() == {"SI"}
    curve = opened.locator("svg [data-learner='Fine-tuning'] > .hit").first
    curve.scroll_into_view_if_needed()
    x, y = curve.evaluate(
        """line => {
            const at = line.getPointAtLength(0.97 * line.getTotalLength()).matrixTransform(line.getScreenCTM());
            return [at.x, at.y];
        }"""
    )
    opened.mouse.move(x, y)
    assert standing_out() == {"Fine-tuning"}
    opened.mouse.move(5, 5)
    assert len(standing_out()) == len(LEARNERS)


def test_a_learner_leads_to_its_heatmap_and_contents_to_every_part(opened: Any) -> None:
    check_links(opened)
    folded = opened.locator("details figure").first  # of the fifth learner
    assert not folded.is_visible()
    opened.locator(f"a[href='#{folded.get_attribute('id')}']").first.click()
    folded.wait_for(state="visible")
    levels = opened.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
