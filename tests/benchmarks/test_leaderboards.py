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


def test_answers_have_the_same_headings_on_a_page_as_in_a_report() -> None:
    head = leaderboards.question_by_learner().splitlines()[0].strip("| ").split(" | ")
    in_report = leaderboards.quoted("split_digits", "| Question | Strategy |").splitlines()[0].strip("| ").split(" | ")
    assert head[2:] == [cell.replace("\\", "") for cell in in_report[1:-1]]  # all but question and note
