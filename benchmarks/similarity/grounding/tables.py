"""Tables of the grounding tests."""

import math
from collections.abc import Sequence

from benchmarks.similarity.blocks import Table
from benchmarks.similarity.formats import interval
from benchmarks.similarity.grounding.results import RunScore, Score, Transfer
from benchmarks.similarity.grounding.trials import STREAMS, Trial
from benchmarks.similarity.measures import COMPARED, OURS, SHORT, VARIANTS
from fscl.text import decimal

__all__ = ["advice", "all_tests", "goals", "variants"]

ADVICE = {"top": ("best partner found, %", 100), "rank": ("rank, of {}", 1), "regret": ("points lost to the best", 100)}


def all_tests(trials: Sequence[Trial]) -> Table:
    """The score of each similarity in each test, with its interval."""
    rows = [
        [trial.name, trial.statistic, *(_cell(trial.scores.get(key)) for key in COMPARED), decimal(trial.chance)]
        for trial in trials
    ]
    return Table(["test", "score", *SHORT.values(), "chance"], rows)


def goals(trials: Sequence[Trial]) -> Table:
    """The verdict on each similarity in each test, and how far ours are from CKA."""
    rows = []
    for trial in trials:
        cells = [trial.name, trial.statistic, trial.aim]
        for key in COMPARED:
            verdict = "–" if trial.goal == "rival" and key not in OURS else trial.verdict(key)
            cells.append(f"**{verdict}**" if verdict.startswith("failed") else verdict)
        for key in OURS:
            score = trial.scores.get(key)
            cells.append(interval(score.less, score.less_low, score.less_high, "+.2f") if score else "undefined")
        rows.append(cells)
    return Table(["test", "score", "goal", *SHORT.values(), *(f"{SHORT[key]} less CKA" for key in OURS)], rows)


def advice(results: Sequence[Transfer]) -> Table:
    """How good a partner the most similar task is."""
    rows = []
    for result in results:
        tasks = len(result.groups)
        for key, (title, scale) in ADVICE.items():
            scores, chance = getattr(result.scores, key), getattr(result.scores.chance, key)
            cells = [_scaled(scores.get(measure), scale) for measure in COMPARED]
            name = f"{STREAMS[result.kind]} ({tasks} tasks)"
            rows.append([name, title.format(tasks - 1), *cells, f"{scale * chance:.1f}"])
    return Table(["tasks", "score", *SHORT.values(), "chance"], rows)


def variants(trials: Sequence[Trial]) -> Table:
    """The scores of other choices."""
    titles = {key: title for key, title in VARIANTS.items() if any(key in trial.scores for trial in trials)}
    rows = [[trial.name, trial.statistic, *(decimal(trial.score(key)) for key in titles)] for trial in trials]
    return Table(["test", "score", *titles.values()], rows)


def _cell(score: Score | None) -> str:
    """A score with its interval, and the largest p of its runs."""
    if score is None:
        return "–"
    text = interval(score.score, score.low, score.high)
    worst = max(score.p, default=math.nan) if isinstance(score, RunScore) else math.nan
    return text if math.isnan(worst) else f"{text}, p ≤ {worst:.2g}"


def _scaled(score: Score | None, scale: float) -> str:
    return interval(scale * score.score, scale * score.low, scale * score.high, ".1f") if score else "undefined"
