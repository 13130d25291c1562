"""What a benchmark's runs say in short: who is most accurate, who forgets least and most, what similarity predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fscl.report.prediction import Prediction
from fscl.report.summary import SummaryRow
from fscl.report.table import COLUMNS, Column, OverSeeds
from fscl.similarity.estimate import Estimate
from fscl.text import signed

__all__ = ["Answered", "Findings", "accuracy_sentences", "answer", "findings", "opening", "tested_and_rivals"]


class Labelled(Protocol):
    @property
    def label(self) -> str: ...


class _Ranked(OverSeeds, Labelled, Protocol):
    """A row of a summary that is compared with the best one."""

    @property
    def accuracy(self) -> Estimate | None: ...

    @property
    def p_value(self) -> float | None: ...


Ranked = TypeVar("Ranked", bound=_Ranked)

LEVEL = 0.05  # of p-values
LISTED = 4  # learners are named up to this number


@dataclass(frozen=True)
class Answered:
    """How many learners have a significant rank correlation, for one question on similarity.

    Attributes:
        words: the question.
        asked: number of learners whose correlation is defined, over all pairs of tasks.
        related: correlations of the learners with p < 0.05 among them.
        asked_apart, related_apart: the same among later tasks that are equally far apart in the stream.
    """

    words: str
    asked: int
    related: tuple[float, ...]
    asked_apart: int
    related_apart: tuple[float, ...]


@dataclass(frozen=True)
class Findings:
    """The results of one benchmark that a reader looks for first. Bounds are no learners and are left out.

    Attributes:
        learners: number of learners.
        best: the learner with the highest final accuracy; None if there is no learner.
        rivals: the learners that may be the best as well, because p >= 0.05.
        tested: number of other learners that have a p-value.
        least, most: the learners that forget least and most, more than one on a tie; empty if forgetting is undefined.
        answered: an entry for each question whose correlation is defined for a learner.
    """

    learners: int
    best: SummaryRow | None
    rivals: tuple[SummaryRow, ...]
    tested: int
    least: tuple[SummaryRow, ...]
    most: tuple[SummaryRow, ...]
    answered: tuple[Answered, ...]


def findings(rows: Sequence[SummaryRow], answers: Sequence[Prediction]) -> Findings:
    """The findings of one benchmark, from its summary (best accuracy first) and its answers over seeds."""
    learners = [row for row in rows if row.bound is None]
    tested, rivals = tested_and_rivals(learners)
    forgotten = {row: round(row.forgetting.mean, 12) for row in learners if row.forgetting is not None}
    low, high = (end(forgotten.values(), default=math.nan) for end in (min, max))
    return Findings(
        learners=len(learners),
        best=next(iter(learners), None),
        rivals=rivals,
        tested=tested,
        least=tuple(row for row, value in forgotten.items() if value == low),
        most=tuple(row for row, value in forgotten.items() if value == high and high > low),
        answered=tuple(_answered(words, answers) for words in dict.fromkeys(a.words for a in answers if _defined(a))),
    )


def tested_and_rivals(learners: Sequence[Ranked]) -> tuple[int, tuple[Ranked, ...]]:
    """The number of learners with a p-value of being the best, and those that may be the best: p >= 0.05."""
    tested = [row for row in learners if row.p_value is not None and math.isfinite(row.p_value)]
    return len(tested), tuple(row for row in tested if (row.p_value or 0) >= LEVEL)


def _defined(answer: Prediction) -> bool:
    return answer.all_pairs.defined


def _answered(words: str, answers: Sequence[Prediction]) -> Answered:
    asked = [answer for answer in answers if answer.words == words]
    pairs = [(answer.all_pairs.statistic, answer.p) for answer in asked if answer.all_pairs.defined]
    apart = [(answer.apart.statistic, answer.p_apart) for answer in asked if answer.apart.defined]
    related, related_apart = (tuple(rho for rho, p in tests if p < LEVEL) for tests in (pairs, apart))
    return Answered(words, len(pairs), related, len(apart), related_apart)


def opening(found: Findings) -> str:
    """Sentences on accuracy, on forgetting, and on whether similarity predicts anything. They open a page."""
    return " ".join(text for text in (_accuracy(found), _forgetting(found), _similarity(found)) if text)


def _similarity(found: Findings) -> str:
    if not found.answered:
        return ""
    return (
        f"Learners for which similarity predicts the outcome (p < {LEVEL} after Holm's adjustment), over all pairs of "
        "tasks and among later tasks equally far apart in the stream:"
    )


def _accuracy(found: Findings) -> str:
    return accuracy_sentences(found.learners, found.best, found.rivals, found.tested, COLUMNS["accuracy"], "learner")


def accuracy_sentences(
    count: int, best: Ranked | None, rivals: Sequence[Ranked], tested: int, accuracy: Column[Ranked], kind: str
) -> str:
    """Sentences on the most accurate learner, and on those that may be as accurate.

    Args:
        count: number of learners.
        best: the best of them.
        rivals: those that may be the best as well.
        tested: number of others with a p-value.
        accuracy: the column of the accuracy.
        kind: the word for one of them.
    """
    if best is None or best.accuracy is None:
        return ""
    among = f"the most accurate of {count} {kind}s" if count > 1 else f"the only {kind}"
    spread = f" {text}" if (text := accuracy.spread(best)) else ""
    text = f"{best.label} is {among}: {accuracy.number(best)}{spread} % (n = {best.accuracy.n})."
    if count == 1:
        return text
    if rivals:
        be = "is" if len(rivals) == 1 else "are"
        return f"{text} {_names(rivals, f'{kind}s')} {be} not clearly worse (p ≥ {LEVEL})."
    if tested == count - 1:
        return f"{text} Every other {kind} is worse (p < {LEVEL})."
    return text


def _forgetting(found: Findings) -> str:
    if not found.least:
        return ""
    forgetting = COLUMNS["forgetting"]

    def clause(rows: Sequence[SummaryRow], degree: str) -> str:
        verb = "forgets" if len(rows) == 1 else "forget"
        spread = f" {text}" if (text := forgetting.spread(rows[0])) and len(rows) == 1 else ""
        return f"{_names(rows, 'learners')} {verb} {degree} ({forgetting.number(rows[0])}{spread} points)"

    if not found.most:
        return f"{_names(found.least, 'learners')} {'forgets' if len(found.least) == 1 else 'forget'} " + (
            f"{forgetting.number(found.least[0])} points."
        )
    return f"{clause(found.least, 'least')}, {clause(found.most, 'most')}."


def answer(answered: Answered) -> str:
    """The answer to one question on similarity, for a list."""
    text = f"{answered.words}: {_share(answered.related, answered.asked)}"
    if answered.asked_apart:
        text += f"; equally far apart: {_share(answered.related_apart, answered.asked_apart)}"
    return text


def _share(related: Sequence[float], asked: int) -> str:
    share = f"{len(related) or 'none'} of {asked}"
    ends = dict.fromkeys((signed(min(related)), signed(max(related)))) if related else ()
    return f"{share} (ρ {' to '.join(ends)})" if ends else share


def _names(rows: Sequence[Labelled], kind: str) -> str:
    labels = [row.label for row in rows]
    if len(labels) > LISTED:
        return f"{len(labels)} {kind}"
    return " and ".join([", ".join(labels[:-1]), labels[-1]]) if len(labels) > 1 else labels[0]
