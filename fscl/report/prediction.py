"""Does similarity predict forgetting and transfer? Correlates task-by-task matrices of finished runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fscl.accuracy import drop_matrix, forgetting_matrix
from fscl.errors import FsclError
from fscl.report.summary import StrategyRuns
from fscl.runs.records.record import RunRecord
from fscl.similarity.aggregates import aggregate_layers

if TYPE_CHECKING:
    from fscl.similarity.pooled import PooledCorrelation

__all__ = [
    "QUESTIONS",
    "Asked",
    "Prediction",
    "PredictionRow",
    "atom_strategies",
    "correlation_with_time",
    "predictions",
    "predictions_over_seeds",
    "whole_similarity",
]

Array = NDArray[np.float64]
Question = Literal["atoms", "drop", "own", "transfer"]
QUESTIONS: dict[Question, str] = {
    "atoms": "Atom similarity and forgetting",
    "drop": "Atom similarity and the drop at each task",
    "own": "Own similarity and forgetting",
    "transfer": "Own similarity and transfer",
}
ASKED_OF_ATOMS: tuple[Question, ...] = ("atoms", "drop")  # uses the similarity of a reference strategy's atoms
ASKED_OF_ITSELF: tuple[Question, ...] = ("own", "transfer")  # uses the similarity of a learner's own filters
PREFERRED = "atom_swapping"
MOSTLY_ONE = "most accuracies on former tasks are equal: accuracy right after learning varies, not forgetting"


@dataclass(frozen=True, eq=False)
class Asked:
    """A question.

    Attributes:
        question: the kind of question.
        atoms: label of the strategy whose atoms give the similarity; "" for the learner's own filters.
        words: the question in words.
    """

    question: Question
    atoms: str
    words: str

    @property
    def head(self) -> tuple[Question, str, str]:
        return self.question, self.atoms, self.words


@dataclass(frozen=True, eq=False)
class PredictionRow(Asked):
    """The answer to one question for one strategy and seed. Undefined: ``rho`` is NaN and ``note`` says why."""

    label: str
    seed: int
    rho: float
    low: float
    high: float
    tau: float
    p_value: float
    n_tasks: int
    note: str
    x: Array
    y: Array

    @property
    def defined(self) -> bool:
        return math.isfinite(self.rho)


@dataclass(frozen=True, eq=False)
class Prediction(Asked):
    """The answer to one question for one strategy, over its seeds.

    Attributes:
        label: the strategy's label.
        all_pairs: the correlation over all pairs of tasks.
        apart: the correlation among later tasks that are equally far apart in the stream. It leaves out the first task,
            which alone trains all that is shared: tasks that start from it are similar to it at any distance.
        p, p_apart: p-values of both, adjusted by Holm over all rows of the benchmark.
        seeds: number of seeds.
        note: why the answer is undefined for some seeds.
    """

    label: str
    all_pairs: PooledCorrelation
    apart: PooledCorrelation
    p: float
    p_apart: float
    seeds: int
    note: str


def whole_similarity(run: RunRecord) -> Array | None:
    """The similarity of all layers as one (T, T) matrix, aggregated as the run says; None if the run kept none."""
    if run.similarity is None or not len(run.similarity.layers):
        return None
    return aggregate_layers(run.similarity.matrix, run.similarity.aggregate)


def correlation_with_time(runs: Sequence[RunRecord]) -> tuple[float, int]:
    """Spearman's rho of similarity and the number of tasks in between, as a mean over seeds; and the number of seeds.

    Near -1, similarity follows the order in which tasks were learned. The result is (NaN, 0) if rho is undefined.
    """
    from scipy.stats import spearmanr

    correlations = []
    for run in runs:
        matrix = whole_similarity(run)
        if matrix is None:
            continue
        rows, columns = np.tril_indices(len(matrix), -1)
        if len(set(rows - columns)) > 1 and np.ptp(matrix[rows, columns]) > 0:
            correlations.append(float(spearmanr(matrix[rows, columns], rows - columns).statistic))
    return (float(np.mean(correlations)) if correlations else math.nan), len(correlations)


def atom_strategies(groups: Sequence[StrategyRuns]) -> list[StrategyRuns]:
    """The strategies of a benchmark whose similarities come from atoms, ``atom_swapping`` first.

    A strategy that uses the atoms of another strategy, as an ensemble does, is left out.
    """
    with_atoms = [g for g in groups if any(r.provenance == "atoms" and r.similarity is not None for r in g.runs)]
    distinct: list[StrategyRuns] = []
    for group in sorted(with_atoms, key=lambda g: g.name != PREFERRED):
        if not any(_same_similarity(group, earlier) for earlier in distinct):
            distinct.append(group)
    return distinct


def _same_similarity(first: StrategyRuns, second: StrategyRuns) -> bool:
    of_first, of_second = ({run.seed: whole_similarity(run) for run in group.runs} for group in (first, second))
    shared = [(a, of_second[seed]) for seed, a in of_first.items() if seed in of_second]
    return bool(shared) and all(a is not None and b is not None and np.array_equal(a, b) for a, b in shared)


def _same_answer(question: Question, first: StrategyRuns, second: StrategyRuns) -> bool:
    """Whether two strategies have equal similarities and outcomes, as an ensemble and its atoms have for transfer."""
    by_seed = {run.seed: run for run in second.runs}
    shared = [(run, by_seed[run.seed]) for run in first.runs if run.seed in by_seed]
    if question == "transfer" and any(not len(run.transfer) for pair in shared for run in pair):
        return False
    same = (np.array_equal(_outcome(question, a), _outcome(question, b), equal_nan=True) for a, b in shared)
    return all(same) and _same_similarity(first, second)


def predictions(groups: Sequence[StrategyRuns]) -> tuple[list[PredictionRow], list[Prediction]]:
    """The answers to all questions for the strategies of one benchmark: for each seed, and over the seeds.

    The questions about atoms use the atoms of each of :func:`atom_strategies`, and ask about all other strategies,
    also those without a similarity of their own. Bounds are left out: they learn each task apart, or all at once.
    """
    rows = [
        _row(asked, group.label, run, pair)
        for asked, group, pairs, twin in _questions(groups)
        if twin is None
        for run, pair in zip(group.runs, pairs, strict=True)
    ]
    return rows, predictions_over_seeds(groups)


def predictions_over_seeds(groups: Sequence[StrategyRuns]) -> list[Prediction]:
    """Only the answers over seeds of :func:`predictions`. This takes half the time: single seeds are not tested."""
    answers = [
        _pooled(asked, group, pairs)
        if twin is None  # a twin is not counted twice
        else _undefined(asked, group, f"it has the features of {twin}, so the answer is the same")
        for asked, group, pairs, twin in _questions(groups)
    ]
    adjusted = _holm([answer.all_pairs.p_value for answer in answers])
    adjusted_apart = _holm([answer.apart.p_value for answer in answers])
    return [
        replace(answer, p=p, p_apart=p_apart)
        for answer, p, p_apart in zip(answers, adjusted, adjusted_apart, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Pair:
    """The similarity of one seed and the outcome that it may predict. ``note`` says why a correlation is undefined."""

    similarity: Array | None = None
    outcome: Array | None = None
    note: str = ""


def _questions(groups: Sequence[StrategyRuns]) -> Iterator[tuple[Asked, StrategyRuns, list[_Pair], str | None]]:
    """Yields each question and strategy, a pair for each seed, and the label of its twin or None.

    A twin is an earlier strategy with the same pairs.
    """
    references = atom_strategies(groups)
    learners = [group for group in groups if group.square and not group.bound]
    for number, reference in enumerate(references):
        by_seed = {run.seed: run for run in reference.runs}
        for question in ASKED_OF_ATOMS:
            words = QUESTIONS[question] + (f" ({reference.label})" if number else "")
            asked = Asked(question, reference.label, words)
            for group in (group for group in learners if group not in references):
                yield asked, group, [_pair(asked, run, by_seed.get(run.seed)) for run in group.runs], None
    for question in ASKED_OF_ITSELF:
        asked = Asked(question, "", QUESTIONS[question])
        with_similarity = [group for group in learners if any(run.similarity is not None for run in group.runs)]
        for place, group in enumerate(with_similarity):
            twin = next((g.label for g in with_similarity[:place] if _same_answer(question, group, g)), None)
            yield asked, group, [_pair(asked, run, run) for run in group.runs], twin


def _pair(asked: Asked, run: RunRecord, reference: RunRecord | None) -> _Pair:
    """The outcome of a run and the similarity of its reference, the run with the atoms or the run itself."""
    count, question = len(run.tasks), asked.question
    if reference is None:
        return _Pair(note=f"no finished run of {asked.atoms} has seed {run.seed}")
    if reference.task_names != run.task_names:
        return _Pair(note=f"{asked.atoms} learned other tasks with seed {run.seed}")
    similarity = whole_similarity(reference)
    if similarity is None:
        return _Pair(note="the run kept no similarity")
    if question == "transfer" and run.transfer.shape != (count, count):
        return _Pair(note="the run kept no transfer matrix")

    from fscl.similarity.pooled import pooled_mantel

    outcome, pairs = _outcome(question, run), _pairs(question)
    try:  # one permutation is enough, because only `defined` and `note` are used
        correlation = pooled_mantel([(similarity, outcome)], pairs=pairs, names=_names(question), n_resamples=1)
    except FsclError as error:
        return _Pair(note=str(error))
    if correlation.defined and question != "transfer" and _mostly_one(run.accuracy[_entries(question, count)]):
        return _Pair(note=MOSTLY_ONE)
    return _Pair(similarity, outcome, correlation.note)


def _row(asked: Asked, label: str, run: RunRecord, pair: _Pair) -> PredictionRow:
    count, question = len(run.tasks), asked.question
    head = (*asked.head, label, run.seed)
    if pair.note:
        nan, none = math.nan, np.empty(0)
        return PredictionRow(*head, nan, nan, nan, nan, nan, count, pair.note, none, none)

    from scipy.stats import kendalltau

    from fscl.similarity.correlation import mantel

    assert pair.similarity is not None
    assert pair.outcome is not None
    names, index = _names(question), _entries(question, count)
    correlation = mantel(pair.similarity, pair.outcome, method="spearman", pairs=_pairs(question), names=names)
    x, y = pair.similarity[index], pair.outcome[index]
    # a row has one p-value, that of rho, so tau needs no permutations
    tau = float(kendalltau(x, y).statistic)
    numbers = (correlation.statistic, correlation.low, correlation.high, tau, correlation.p_value)
    return PredictionRow(*head, *numbers, count, correlation.note, x, y)


def _mostly_one(values: Array) -> bool:
    """Whether more than half of the values are the same number."""
    return bool(2 * np.unique(values, return_counts=True)[1].max() > len(values))


def _outcome(question: Question, run: RunRecord) -> Array:
    if question == "transfer":
        return run.transfer.T
    return drop_matrix(run.accuracy) if question == "drop" else forgetting_matrix(run.accuracy)


def _pairs(question: Question) -> str:
    return "all" if question == "transfer" else "lower"


def _entries(question: Question, count: int) -> tuple[NDArray[np.intp], ...]:
    """The entries of a (count, count) matrix that are compared."""
    if _pairs(question) == "lower":
        return np.tril_indices(count, -1)
    return np.nonzero(~np.eye(count, dtype=bool))


def _names(question: Question) -> tuple[str, str]:
    return "similarity", {"transfer": "transfer", "drop": "the drop"}.get(question, "forgetting")


def _undefined(asked: Asked, group: StrategyRuns, reason: str) -> Prediction:
    from fscl.similarity.pooled import PooledCorrelation

    nan, seeds = math.nan, len(group.runs)
    none = PooledCorrelation(nan, nan, nan, nan, 0, len(group.runs[0].tasks), (nan,) * seeds, reason)
    return Prediction(*asked.head, group.label, none, none, nan, nan, seeds, reason)


def _pooled(asked: Asked, group: StrategyRuns, pairs: Sequence[_Pair]) -> Prediction:
    from fscl.similarity.pooled import pooled_mantel

    matrices = [(p.similarity, p.outcome) for p in pairs if p.similarity is not None and p.outcome is not None]
    notes = "; ".join(dict.fromkeys(pair.note for pair in pairs if pair.note))
    count = len(group.runs[0].tasks)
    if not matrices or count < 2:
        return _undefined(asked, group, notes)
    test = partial(
        pooled_mantel, pairs=_pairs(asked.question), same_tasks=group.same_order, names=_names(asked.question)
    )
    # Transfer to a later task and to an earlier one differ, so its distances keep their sign.
    distance = np.subtract.outer(np.arange(1, count), np.arange(1, count))
    strata = distance if asked.question == "transfer" else np.abs(distance)
    later = [(similarity[1:, 1:], outcome[1:, 1:]) for similarity, outcome in matrices]
    all_pairs, apart = test(matrices), test(later, strata=strata)
    return Prediction(*asked.head, group.label, all_pairs, apart, math.nan, math.nan, len(pairs), notes)


def _holm(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    from fscl.similarity.correlation import holm

    return [float(p) for p in holm(p_values)]
