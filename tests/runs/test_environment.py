"""The version of fscl in a record changes with the code that decides numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fscl.runs.environment import CODE, code


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("continual/training/trainer.py", "steps = 2", True),
        ("continual/training/more/er.py", "more = 1", True),
        ("networks.py", "width = 2", True),
        ("plots/charts.py", "colour = 2", False),
        ("continual/notes.txt", "not code", False),
    ],
)
def test_the_code_digest_changes_only_with_code_that_decides_numbers(
    tmp_path: Path, file: str, text: str, told: bool
) -> None:
    digests = []
    for name in ("one", "other"):
        (tmp_path / name / "continual" / "training" / "more").mkdir(parents=True)
        (tmp_path / name / "plots").mkdir()
        for module in (room for room in CODE if room.endswith(".py")):
            (tmp_path / name / module).write_text("")
        (tmp_path / name / "continual" / "training" / "trainer.py").write_text("steps = 1")
        if name == "other":
            (tmp_path / name / file).write_text(text)
        digests.append(code(tmp_path / name))
    assert (digests[0] != digests[1]) == told
