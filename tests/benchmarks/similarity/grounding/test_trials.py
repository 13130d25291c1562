"""A goal is met, failed or undecided as the scores say."""

import math

import pytest

from benchmarks.similarity.grounding.results import RunScore, Score
from benchmarks.similarity.grounding.trials import LEAST, Trial, base_rate


def score(value: float = 0.6, low: float = 0.5, less: float = math.nan, less_high: float = math.nan) -> Score:
    return Score(score=value, low=low, high=0.9, less=less, less_low=-0.5, less_high=less_high)


def over_runs(each: list[float], p: list[float]) -> RunScore:
    return RunScore(**dict(score()), each=each, p=p)


@pytest.mark.parametrize(
    ("goal", "scored", "verdict"),
    [
        ("least", score(LEAST), "met"),
        ("least", score(LEAST - 0.01), "failed"),
        ("chance", score(low=0.31), "met"),
        ("chance", score(low=0.3), "failed"),
        ("chance", score(low=math.nan), "failed"),
        ("rival", score(less=0.0, less_high=0.2), "met"),
        ("rival", score(less=-0.1, less_high=0.1), "no difference told"),
        ("rival", score(less=-0.2, less_high=-0.1), "failed"),
        ("rival", score(), "unknown"),
        ("p", over_runs([0.4, 0.5], [0.01, 0.04]), "met"),
        ("p", over_runs([0.4, -0.5], [0.01, 0.01]), "failed in 1 of 2 runs"),
        ("p", over_runs([0.4], [0.2]), "failed"),
        ("p", over_runs([math.nan], [math.nan]), "failed"),
        ("least", score(math.nan), "unknown"),
    ],
)
def test_the_verdict_on_a_score(goal, scored, verdict):
    trial = Trial("a test", "a statistic", goal, {"atoms": scored}, chance=0.3)
    assert trial.verdict("atoms") == verdict
    assert trial.is_met("atoms") == (verdict == "met")


def test_a_measure_that_was_not_computed_is_unknown():
    trial = Trial("a test", "a statistic", "least", {})
    assert trial.verdict("atoms") == "unknown"
    assert math.isnan(trial.score("atoms"))


def test_the_base_rate_is_the_share_of_pairs_of_one_group(groups):
    pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
    assert base_rate(groups) == pytest.approx(sum(groups[i] == groups[j] for i, j in pairs) / len(pairs))
    assert math.isnan(base_rate(["a"]))
