"""Does similarity predict forgetting and transfer? Task-by-task matrices of finished runs, set against each other."""

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
from fscl.runs.record import RunRecord
from fscl.text import DASH, interval, signed, small_p

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
ASKED_OF_ATOMS: tuple[Question, ...] = ("atoms", "drop")
ASKED_OF_ITSELF: tuple[Question, ...] = ("own", "transfer")  # of a learner's own filters
PREFERRED = "atom_swapping"
ALL_ALIKE = "accuracy on former tasks is mostly the same: what varies is accuracy right after learning, not forgetting"


@dataclass(frozen=True, eq=False)
class Asked:
    """A question. ``atoms`` is the label of the strategy whose atoms are asked, "" where it is the learner's own
    filters; ``words`` are the question in full.
    """

    question: Question
    atoms: str
    words: str

    @property
    def head(self) -> tuple[Question, str, str]:
        return self.question, self.atoms, self.words


@dataclass(frozen=True, eq=False)
class PredictionRow(Asked):
    """One question, strategy and seed. Undefined when ``rho`` is NaN; ``note`` then says why."""

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

    def cells(self) -> tuple[str, ...]:
        """Question, strategy, seed, rho, interval, tau, p, tasks, note."""
        head = (self.words, self.label, str(self.seed))
        if not self.defined:
            return (*head, "undefined", DASH, DASH, DASH, str(self.n_tasks), self.note)
        numbers = (signed(self.rho), interval(self.low, self.high) or DASH, signed(self.tau), small_p(self.p_value))
        return (*head, *numbers, str(self.n_tasks), self.note)


@dataclass(frozen=True, eq=False)
class Prediction(Asked):
    """One question and strategy over its seeds: as it is, and among later tasks equally far apart in the stream.

    These leave out the first task, which alone trains all that is shared: what starts from it is like it, and the time
    in between does not explain that. ``p`` and ``p_apart`` are adjusted by Holm, each over all rows of the benchmark.
    """

    label: str
    found: PooledCorrelation
    apart: PooledCorrelation
    p: float
    p_apart: float
    seeds: int
    note: str

    def cells(self) -> tuple[str, ...]:
        """Question, strategy, rho and p, the same at equal distance, seeds where defined, tasks, note."""
        head = (self.words, self.label)
        seeds = f"{self.found.n_seeds} of {self.seeds}"
        numbers = (*_shown(self.found, self.p), *_shown(self.apart, self.p_apart))
        return (*head, *numbers, seeds, str(self.found.n_tasks), self.note)


def whole_similarity(run: RunRecord) -> Array | None:
    """The layers' similarities as one (T, T) matrix, aggregated the way the run says; None if it kept none."""
    if run.similarity is None or not len(run.similarity.layers):
        return None
    import torch  # slow to import: only where a similarity is there

    from fscl.similarity.subspace import aggregate_layers

    return aggregate_layers(torch.as_tensor(run.similarity.matrix), run.similarity.aggregate).numpy()


def correlation_with_time(runs: Sequence[RunRecord]) -> tuple[float, int]:
    """Spearman's rho of similarity and of the number of tasks in between, mean over seeds; and of how many.

    Near -1, similarity tells when a task was learned as much as what it is. NaN, of 0 seeds, where it is undefined.
    """
    from scipy.stats import spearmanr

    found = []
    for run in runs:
        matrix = whole_similarity(run)
        if matrix is None:
            continue
        rows, columns = np.tril_indices(len(matrix), -1)
        if len(set(rows - columns)) > 1 and np.ptp(matrix[rows, columns]) > 0:
            found.append(float(spearmanr(matrix[rows, columns], rows - columns).statistic))
    return (float(np.mean(found)) if found else math.nan), len(found)


def atom_strategies(groups: Sequence[StrategyRuns]) -> list[StrategyRuns]:
    """The strategies of a benchmark whose similarities come from atoms, ``atom_swapping`` first.

    One whose atoms are those of another, as an ensemble's, is left out.
    """
    having = [g for g in groups if any(r.provenance == "atoms" and r.similarity is not None for r in g.runs)]
    found: list[StrategyRuns] = []
    for group in sorted(having, key=lambda g: g.name != PREFERRED):
        if not any(_same_similarity(group, other) for other in found):
            found.append(group)
    return found


def _same_similarity(one: StrategyRuns, other: StrategyRuns) -> bool:
    ours, theirs = ({run.seed: whole_similarity(run) for run in group.runs} for group in (one, other))
    shared = [(a, theirs[seed]) for seed, a in ours.items() if seed in theirs]
    return bool(shared) and all(a is not None and b is not None and np.array_equal(a, b) for a, b in shared)


def _same_pairs(question: Question, one: StrategyRuns, other: StrategyRuns) -> bool:
    """Whether both say the same, as an ensemble and its atoms do of transfer."""
    theirs = {run.seed: run for run in other.runs}
    shared = [(run, theirs[run.seed]) for run in one.runs if run.seed in theirs]
    if question == "transfer" and any(not len(run.transfer) for pair in shared for run in pair):
        return False
    same = (np.array_equal(_outcome(question, a), _outcome(question, b), equal_nan=True) for a, b in shared)
    return all(same) and _same_similarity(one, other)


def predictions(groups: Sequence[StrategyRuns]) -> tuple[list[PredictionRow], list[Prediction]]:
    """All questions for the strategies of one benchmark: a row for each seed, and the answer over the seeds.

    What is asked of atoms is asked of those of each of :func:`atom_strategies`, about all others. Strategies without
    any similarity of their own still take part in that. Bounds do not: they learn tasks apart, or all at once.
    """
    rows = [
        _row(asked, group.label, run, given)
        for asked, group, pairs, twin in _questions(groups)
        if twin is None
        for run, given in zip(group.runs, pairs, strict=True)
    ]
    return rows, predictions_over_seeds(groups)


def predictions_over_seeds(groups: Sequence[StrategyRuns]) -> list[Prediction]:
    """The answers of :func:`predictions` alone, in half the time: no seed is tested by itself."""
    answers = [
        _pooled(asked, group, pairs)
        if twin is None  # else it is not counted twice
        else _nothing(asked, group, f"its features are those of {twin}, and so is the answer")
        for asked, group, pairs, twin in _questions(groups)
    ]
    p, p_apart = (_holm([getattr(a, kind).p_value for a in answers]) for kind in ("found", "apart"))
    return [replace(a, p=one, p_apart=two) for a, one, two in zip(answers, p, p_apart, strict=True)]


@dataclass(frozen=True, eq=False)
class _Pair:
    """What one seed has to say: similarity, and what it is to predict. ``note`` says why a correlation is undefined."""

    similarity: Array | None = None
    outcome: Array | None = None
    note: str = ""


def _questions(groups: Sequence[StrategyRuns]) -> Iterator[tuple[Asked, StrategyRuns, list[_Pair], str | None]]:
    """Each question of each strategy, a pair for each seed, and which other strategy has the same ones, if any."""
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
        of_their_own = [group for group in learners if any(run.similarity is not None for run in group.runs)]
        for place, group in enumerate(of_their_own):
            twin = next((g.label for g in of_their_own[:place] if _same_pairs(question, group, g)), None)
            yield asked, group, [_pair(asked, run, run) for run in group.runs], twin


def _pair(asked: Asked, run: RunRecord, other: RunRecord | None) -> _Pair:
    count, question = len(run.tasks), asked.question
    if other is None:
        return _Pair(note=f"no finished run of {asked.atoms} has seed {run.seed}")
    if other.task_names != run.task_names:
        return _Pair(note=f"{asked.atoms} learned other tasks with seed {run.seed}")
    similarity = whole_similarity(other)
    if similarity is None:
        return _Pair(note="the run kept no similarity")
    if question == "transfer" and run.transfer.shape != (count, count):
        return _Pair(note="the run kept no transfer matrix")

    from fscl.similarity.pooled import pooled_mantel

    outcome, pairs = _outcome(question, run), _pairs(question)
    try:  # one permutation: only whether it is defined is asked
        found = pooled_mantel([(similarity, outcome)], pairs=pairs, names=_names(question), n_resamples=1)
    except FsclError as error:
        return _Pair(note=str(error))
    if found.defined and question != "transfer" and _mostly_one(run.accuracy[_entries(question, count)]):
        return _Pair(note=ALL_ALIKE)
    return _Pair(similarity, outcome, found.note)


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
    found = mantel(pair.similarity, pair.outcome, method="spearman", pairs=_pairs(question), names=names)
    x, y = pair.similarity[index], pair.outcome[index]
    # tau beside rho needs no permutations of its own: one p-value a row, that of rho.
    tau = float(kendalltau(x, y).statistic)
    numbers = (found.statistic, found.low, found.high, tau, found.p_value)
    return PredictionRow(*head, *numbers, count, found.note, x, y)


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


def _nothing(asked: Asked, group: StrategyRuns, why: str) -> Prediction:
    from fscl.similarity.pooled import PooledCorrelation

    nan, seeds = math.nan, len(group.runs)
    none = PooledCorrelation(nan, nan, nan, nan, 0, len(group.runs[0].tasks), (nan,) * seeds, why)
    return Prediction(*asked.head, group.label, none, none, nan, nan, seeds, why)


def _pooled(asked: Asked, group: StrategyRuns, pairs: Sequence[_Pair]) -> Prediction:
    from fscl.similarity.pooled import pooled_mantel

    given = [(p.similarity, p.outcome) for p in pairs if p.similarity is not None and p.outcome is not None]
    notes = "; ".join(dict.fromkeys(pair.note for pair in pairs if pair.note))
    count = len(group.runs[0].tasks)
    if not given or count < 2:
        return _nothing(asked, group, notes)
    test = partial(
        pooled_mantel, pairs=_pairs(asked.question), same_tasks=group.same_order, names=_names(asked.question)
    )
    # what comes after a task and what came before it are different things to transfer
    apart = np.subtract.outer(np.arange(1, count), np.arange(1, count))
    strata = apart if asked.question == "transfer" else np.abs(apart)
    found, within = test(given), test([(x[1:, 1:], y[1:, 1:]) for x, y in given], strata=strata)
    return Prediction(*asked.head, group.label, found, within, math.nan, math.nan, len(pairs), notes)


def _holm(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    from fscl.similarity.correlation import holm

    return [float(p) for p in holm(p_values)]


def _shown(found: PooledCorrelation, p: float) -> tuple[str, str]:
    if not found.defined:
        return "undefined", DASH
    return f"{signed(found.statistic)} {interval(found.low, found.high)}".rstrip(), small_p(p)
