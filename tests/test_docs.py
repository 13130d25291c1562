"""The code and commands in the README and the documentation run as written."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import mypy.api
import pytest
import torch
import typer
from pydantic import ValidationError
from torch import nn

from fscl.cli.app import app
from fscl.runs.recipe import load_benchmark, load_strategy, with_overrides
from fscl.runs.run import run_one
from fscl.runs.schema import BenchmarkRecipe, StrategyRecipe
from fscl.runs.spec import RunSpec

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def of_a_user() -> dict[str, object]:
    """The names that the code in the README assumes to be defined."""

    def fit(model: nn.Module, task: tuple[torch.Tensor, torch.Tensor], parameters) -> None:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        nn.functional.cross_entropy(model(task[0]), task[1]).backward()
        optimizer.step()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    tasks = [(torch.randn(16, 1, 8, 8), torch.randint(2, (16,))) for _ in range(3)]
    return {"net": net, "tasks": tasks, "fit": fit}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a small run."""
    settings = ["training.epochs=1", "model.args.widths=[8, 8]"]
    pair = with_overrides(load_benchmark("split_digits"), load_strategy("atom_swapping"), settings)
    return run_one(RunSpec(*pair, 0), tmp_path_factory.mktemp("runs")).parents[2]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_python_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").symlink_to(ROOT / "reports")
    code = "\n\n".join(blocks(page, "python"))
    if '"runs' in code:
        (tmp_path / "runs").symlink_to(request.getfixturevalue("runs"))
    exec(compile(code, name(page), "exec"), of_a_user() if page.name == "README.md" else {})


# python code in docs/ with a block of text directly below, which is what it prints
PRINTS = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTING = {page: PRINTS.findall(page.read_text(encoding="utf-8")) for page in PAGES[1:]}


@pytest.mark.parametrize("page", [page for page, pairs in PRINTING.items() if pairs], ids=name)
def test_the_text_below_the_code_of_a_page_is_what_it_prints(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code, text in PRINTING[page]:
        capsys.readouterr()
        exec(compile(code, name(page), "exec"), {})
        assert capsys.readouterr().out == text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_line_of_a_page_is_valid(page: Path) -> None:
    shown = "\n".join(blocks(page, "", "sh")).replace("\\\n", " ")
    for call in re.findall(r"(?:^|&& uv run |\")fscl ([a-z]+[^\"#\n]*)", shown, re.MULTILINE):
        command, *arguments = shlex.split(call)
        known = typer.main.get_command(app).commands[command]
        with known.make_context(command, arguments) as context:  # raises where there is no such option
            for strategy in context.params.get("strategy") or []:
                assert strategy.endswith(".toml") or (ROOT / "strategies" / f"{strategy}.toml").exists(), strategy


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name)
def test_every_recipe_of_a_page_is_valid(page: Path) -> None:
    for text in blocks(page, "toml"):
        recipe = tomllib.loads(text)
        kind = StrategyRecipe if "class" in recipe else BenchmarkRecipe
        try:
            kind.model_validate(recipe)
        except ValidationError as error:
            pytest.fail(f"{name(page)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_a_page_links_exists(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    made = ("cli.md", "recipes.md")  # when the site is built
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not link.startswith(("http://", "https://")) and Path(link).name not in made:
            assert (page.parent / link).exists(), link


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    top = "\n".join(lines[:32])
    assert "pip install uv && uv run fscl run" in top
    assert "pip install uv && uv run pytest" in top
    for code in blocks(PAGES[0], "python"):
        statements = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
        assert len(statements) <= 15


@pytest.mark.slow
def test_the_first_command_of_the_readme_prints_the_table_that_it_shows(tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, "-c", "from fscl.cli.app import main; main()", "run", "--out", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    row = re.compile(r"^ (\S[A-Za-z -]+?) +(\d+) (\d+\.\d)", re.MULTILINE)
    measured = {name: (runs, float(accuracy)) for name, runs, accuracy in row.findall(printed)}
    for page in (ROOT / "README.md", ROOT / "docs" / "start.md"):
        (table,) = [text for text in blocks(page, "text") if "Strategy" in text]
        shown = {name: (runs, float(accuracy)) for name, runs, accuracy in row.findall(table)}
        assert list(shown) == list(measured)
        for name, (runs, accuracy) in shown.items():
            assert measured[name] == (runs, pytest.approx(accuracy, abs=0.5)), name


@pytest.mark.slow  # 20 s: mypy reads the types of torch
def test_the_avalanche_script_of_the_readme_passes_strict_type_checks(tmp_path, monkeypatch):
    (script,) = [text for text in blocks(ROOT / "README.md", "python") if "strategy.bank" in text]
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "typo.py").write_text(script.replace("bank.save(", "bank.sav("))
    (configuration,) = blocks(ROOT / "docs/guides/avalanche.md", "ini")
    (tmp_path / "mypy.ini").write_text(configuration)
    monkeypatch.chdir(tmp_path)  # not the checkout, whose own sources would be checked strictly, too
    out, errors, status = mypy.api.run(["--strict", "script.py"])
    assert status == 0, out + errors
    out, _, status = mypy.api.run(["--strict", "typo.py"])
    assert status == 1
    assert '"AtomBank | Any" has no attribute "sav"' in out
    assert out.count("error:") == 1
