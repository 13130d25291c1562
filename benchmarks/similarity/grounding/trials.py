"""The tests that the page reports: each similarity on one population, against a goal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.similarity.grounding.results import Damage, Grounding, Groups, RunScore, Score, Transfer
from benchmarks.similarity.lab import DATA

__all__ = ["LEAST", "STREAMS", "Trial", "base_rate", "trials"]

LEAST = 0.75
STREAMS = {
    "circle": "rotations around the circle",
    "fan": "rotations within a fan",
    "windows": "class sets that overlap",
    "superclasses": "superclasses",
}
TRUTHS = {"angle": "angle between", "line": "angle, 180° as 0°", "shared": "shared classes"}
AIMS = {
    "rival": "not below CKA",
    "least": f"at least {LEAST}",
    "p": "rho > 0, p < 0.05, in every run",
    "chance": "interval above chance",
}


@dataclass(frozen=True)
class Trial:
    """A test of all similarities on one population, and its goal."""

    name: str
    statistic: str
    goal: str  # a key of AIMS
    scores: Mapping[str, Score]
    chance: float = math.nan

    @property
    def aim(self) -> str:
        return AIMS[self.goal]

    def score(self, measure: str) -> float:
        """NaN if it is not defined, or was not computed."""
        return self.scores[measure].score if measure in self.scores else math.nan

    def is_met(self, measure: str) -> bool:
        return self.verdict(measure) == "met"

    def verdict(self, measure: str) -> str:
        """``met``, ``failed``, ``no difference told`` (below CKA by less than the interval), or ``unknown``."""
        score = self.scores.get(measure)
        if score is None or math.isnan(score.score):
            return "unknown"
        if self.goal == "least":
            return "met" if score.score >= LEAST else "failed"
        if self.goal == "chance":
            return "met" if score.low > self.chance else "failed"
        if self.goal == "p":
            return _over_runs(score)
        if math.isnan(score.less):
            return "unknown"
        if score.less >= 0:
            return "met"
        return "failed" if score.less_high < 0 else "no difference told"


def _over_runs(score: Score) -> str:
    assert isinstance(score, RunScore)
    runs = len(score.p)
    lost = runs - sum(p < 0.05 and r > 0 for p, r in zip(score.p, score.each, strict=True))
    if not lost:
        return "met"
    return f"failed in {lost} of {runs} runs" if runs > 1 else "failed"


def trials(results: Sequence[Grounding]) -> list[Trial]:
    """All tests of which there are results, in the order in which the page has them."""
    return [trial for result in results for trial in _trials(result)]


def _trials(result: Grounding) -> list[Trial]:
    images = DATA[result.images]
    if isinstance(result, Groups):
        name = f"{'label noise' if result.kind == 'noise' else 'seeds'}, {images}"
        base = base_rate(result.groups)
        of_groups = [Trial(name, "AUPRC, same group", "rival", result.scores.separation, base)]
        if result.kind == "seeds":
            of_groups.append(Trial(name, "nearest of own task", "chance", result.scores.nearest, base))
        return of_groups
    if isinstance(result, Damage):
        return [
            Trial(f"damage, {where}, {images}", "rho with lost accuracy", "least", result.scores[where], 0.0)
            for where in ("all layers", "any one layer")
        ]
    assert isinstance(result, Transfer)
    stream, scores = STREAMS[result.kind], result.scores
    of_stream = [Trial(stream, f"rho, {TRUTHS[truth]}", "p", known, 0.0) for truth, known in result.known().items()]
    if scores.separation is not None and scores.nearest is not None:
        name, base = f"{stream}, {images}", base_rate(result.groups)
        of_stream.append(Trial(name, "AUPRC, same group", "chance", scores.separation, base))
        of_stream.append(Trial(name, "nearest of own pair", "chance", scores.nearest, base))
    return [
        *of_stream,
        Trial(stream, "rho, transfer", "p", scores.transfer, 0.0),
        Trial(stream, "rho, transfer less task's mean", "p", scores.transfer_less, 0.0),
    ]


def base_rate(groups: Sequence[str]) -> float:
    """The share of pairs that are of one group: the AUPRC of chance, and how often a random network is of one's group.

    >>> base_rate(["a", "a", "b", "b"])
    0.3333333333333333
    """
    sizes = np.unique(groups, return_counts=True)[1]
    pairs = len(groups) * (len(groups) - 1)
    return float((sizes * (sizes - 1)).sum() / pairs) if pairs else math.nan
