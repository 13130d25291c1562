"""The pages of committed runs: what they say of strategies that no committed report has."""

from dataclasses import replace

import pytest

from benchmarks import leaderboards
from fscl.report.prediction import atom_strategies


def test_every_strategy_with_atoms_is_on_the_page_also_if_two_start_their_tasks_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain, star = atom_strategies(leaderboards.groups_of("split_digits"))
    third = replace(chain, name="atom_other", label="Other atoms")
    monkeypatch.setattr(leaderboards, "atom_strategies", lambda groups: [chain, third, star])
    page = leaderboards.leaderboard("split_digits")
    assert "the task before it (Atom swapping), ρ is" in page
    assert "the task before it (Other atoms), ρ is" in page
    assert "the first task (Atom swapping from task 1), ρ is" in page
    assert "figures/split-digits-similarity-atom-swapping-first.png" in page
