"""What the README shows runs as written, and the command lines of all pages are valid."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fscl.suite.recipe import BenchmarkRecipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_the_avalanche_example_runs_and_saves_a_bank_that_can_be_drawn(tmp_path):
    from fscl import AtomBank

    code = block("python")
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 15
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=250)
    bank = AtomBank.load(tmp_path / "bank.safetensors")
    assert len(bank) == 5
    assert (bank.similarity().diagonal() == 1).all()


def test_the_image_folder_recipe_is_valid():
    lines = [line for line in block("toml").splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 11
    recipe = BenchmarkRecipe.model_validate(tomllib.loads("\n".join(lines)))
    assert recipe.data.name == "flowers"


def test_both_commands_are_near_the_top():
    top = "\n".join(README.splitlines()[:16])
    assert "pip install uv && uv run fscl run" in top
    assert "pip install uv && uv run pytest" in top


@pytest.mark.parametrize("command", ["list", "run", "report", "heatmap", "similarity", "evidence", "tune"])
def test_every_command_shown_exists(command):
    from typer.testing import CliRunner

    from fscl.suite.cli import app

    assert f"fscl {command}" in README
    assert CliRunner().invoke(app, [command, "--help"], env=os.environ | {"COLUMNS": "100"}).exit_code == 0


def test_every_command_line_shown_is_one_that_fscl_takes():
    import typer

    from fscl.suite.cli import app

    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(text for language, text in blocks if not language).replace("\\\n", " ")
    calls = re.findall(r"(?:^|&& uv run |\")fscl ([a-z]+[^\"#\n]*)", lines, re.MULTILINE)
    shown = [shlex.split(call) for call in calls]
    assert len(shown) > 12
    for name, *arguments in shown:
        command = typer.main.get_command(app).commands[name]
        with command.make_context(name, arguments) as context:  # raises where there is no such option
            for strategy in context.params.get("strategy") or []:
                assert (ROOT / "strategies" / f"{strategy}.toml").exists(), strategy
