"""Does similarity predict forgetting and transfer? Task-by-task matrices of finished runs, set against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fscl.continual.transfer import drop_matrix, forgetting_matrix
from fscl.errors import FsclError
from fscl.suite.results import RunResult
from fscl.suite.summary import DASH, StrategyRuns, small_p

if TYPE_CHECKING:
    from fscl.similarity.pooled import PooledCorrelation

__all__ = ["ASKED_OF_ATOMS", "QUESTIONS", "Prediction", "PredictionRow", "atom_reference",
           "correlation_with_time", "predictions", "signed", "whole_similarity"]  # fmt: skip

Array = NDArray[np.float64]
Question = Literal["atoms", "drop", "own", "transfer"]
QUESTIONS: dict[Question, str] = {
    "atoms": "Atom similarity and forgetting",
    "drop": "Atom similarity and the drop at each task",
    "own": "Own similarity and forgetting",
    "transfer": "Own similarity and transfer",
}
ASKED_OF_ATOMS = ("atoms", "drop")  # the other two are asked of a learner's own filters
PREFERRED = "atom_swapping"
ALL_ALIKE = "accuracy on former tasks is always the same: what varies is accuracy right after learning, not forgetting"


@dataclass(frozen=True, eq=False)
class PredictionRow:
    """One question, strategy and seed. Undefined when ``rho`` is NaN; ``note`` then says why."""

    question: Question
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

    @property
    def interval(self) -> str:
        return f"[{signed(self.low)}, {signed(self.high)}]" if math.isfinite(self.low) else DASH

    def cells(self) -> tuple[str, ...]:
        """Question, strategy, seed, rho, interval, tau, p, tasks, note."""
        head = (QUESTIONS[self.question], self.label, str(self.seed))
        if not self.defined:
            return (*head, "undefined", DASH, DASH, DASH, str(self.n_tasks), self.note)
        numbers = (signed(self.rho), self.interval, signed(self.tau), small_p(self.p_value))
        return (*head, *numbers, str(self.n_tasks), self.note)


@dataclass(frozen=True, eq=False)
class Prediction:
    """One question and strategy over its seeds: as it is, and among pairs of tasks equally far apart in the stream.

    ``p`` and ``p_apart`` are adjusted by Holm, each over all rows of the benchmark.
    """

    question: Question
    label: str
    found: PooledCorrelation
    apart: PooledCorrelation
    p: float
    p_apart: float
    seeds: int
    note: str

    def cells(self) -> tuple[str, ...]:
        """Question, strategy, rho and p, the same at equal distance, seeds where defined, tasks, note."""
        head = (QUESTIONS[self.question], self.label)
        seeds = f"{self.found.n_seeds} of {self.seeds}"
        numbers = (*_shown(self.found, self.p), *_shown(self.apart, self.p_apart))
        return (*head, *numbers, seeds, str(self.found.n_tasks), self.note)


def whole_similarity(run: RunResult) -> Array | None:
    """The layers' similarities as one (T, T) matrix, aggregated the way the run says; None if it kept none."""
    if run.similarity is None or not len(run.similarity.layers):
        return None
    import torch  # slow to import: only where a similarity is there

    from fscl.similarity.subspace import aggregate_layers

    return aggregate_layers(torch.as_tensor(run.similarity.matrix), run.similarity.aggregate).numpy()


def correlation_with_time(runs: Sequence[RunResult]) -> tuple[float, int]:
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


def atom_reference(groups: Sequence[StrategyRuns], name: str = PREFERRED) -> StrategyRuns | None:
    """The strategy of that name whose similarities come from atoms, or else the first of a benchmark that has such."""
    having = [g for g in groups if any(r.provenance == "atoms" and r.similarity is not None for r in g.runs)]
    return next((g for g in having if g.name == name), having[0] if having else None)


def predictions(
    groups: Sequence[StrategyRuns], reference: StrategyRuns | None = None
) -> tuple[list[PredictionRow], list[Prediction]]:
    """All questions for the strategies of one benchmark: a row for each seed, and the answer over the seeds.

    The atoms are those of ``reference``, one of ``groups``, or else of :func:`atom_reference`. Strategies without any
    similarity of their own still take part in what is asked of the atoms. Bounds do not: they learn tasks apart, or
    all at once.
    """
    reference = reference or atom_reference(groups)
    by_seed = {run.seed: run for run in reference.runs} if reference else {}
    rows: list[PredictionRow] = []
    answers: list[Prediction] = []
    for question in QUESTIONS:
        of_atoms = question in ASKED_OF_ATOMS
        for group in groups:
            if not group.square or group.bound or (of_atoms and (reference is None or group is reference)):
                continue
            if not of_atoms and all(run.similarity is None for run in group.runs):
                continue
            name = reference.label if reference else ""
            mine = [
                _row(question, group.label, run, by_seed.get(run.seed) if of_atoms else run, name) for run in group.runs
            ]
            rows += [row for row, _ in mine]
            answers.append(_pooled(question, group, [row for row, _ in mine], [pair for _, pair in mine]))
    p, p_apart = (_holm([getattr(a, kind).p_value for a in answers]) for kind in ("found", "apart"))
    return rows, [replace(a, p=one, p_apart=two) for a, one, two in zip(answers, p, p_apart, strict=True)]


Pair = tuple[Array, Array]  # similarity, and what it is to predict


def _row(
    question: Question, label: str, run: RunResult, other: RunResult | None, reference: str
) -> tuple[PredictionRow, Pair | None]:
    count = len(run.tasks)

    def undefined(why: str) -> tuple[PredictionRow, None]:
        nan, none = math.nan, np.empty(0)
        return PredictionRow(question, label, run.seed, nan, nan, nan, nan, nan, count, why, none, none), None

    if other is None:
        return undefined(f"no finished run of {reference} has seed {run.seed}")
    if other.task_names != run.task_names:
        return undefined(f"{reference} learned other tasks with seed {run.seed}")
    similarity = whole_similarity(other)
    if similarity is None:
        return undefined("the run kept no similarity")
    if question == "transfer" and (run.transfer is None or run.transfer.shape != (count, count)):
        return undefined("the run kept no transfer matrix")

    from scipy.stats import kendalltau

    from fscl.similarity.correlation import mantel

    outcome, pairs = _outcome(question, run), _pairs(question)
    index = np.tril_indices(count, -1) if pairs == "lower" else np.nonzero(~np.eye(count, dtype=bool))
    if question != "transfer" and count > 1 and np.ptp(run.accuracy[index]) == 0 < np.ptp(outcome[index]):
        return undefined(ALL_ALIKE)
    try:
        found = mantel(similarity, outcome, method="spearman", pairs=pairs, names=_names(question))
    except FsclError as error:
        return undefined(str(error))
    if not found.defined:
        return undefined(found.note)[0], (similarity, outcome)
    x, y = similarity[index], outcome[index]
    # tau beside rho needs no permutations of its own: one p-value a row, that of rho.
    tau = float(kendalltau(x, y).statistic)
    numbers = (found.statistic, found.low, found.high, tau, found.p_value)
    return PredictionRow(question, label, run.seed, *numbers, count, found.note, x, y), (similarity, outcome)


def _outcome(question: Question, run: RunResult) -> Array:
    if question == "transfer":
        assert run.transfer is not None
        return run.transfer.T
    return drop_matrix(run.accuracy) if question == "drop" else forgetting_matrix(run.accuracy)


def _pairs(question: Question) -> str:
    return "all" if question == "transfer" else "lower"


def _names(question: Question) -> tuple[str, str]:
    return "similarity", {"transfer": "transfer", "drop": "the drop"}.get(question, "forgetting")


def _pooled(
    question: Question, group: StrategyRuns, rows: Sequence[PredictionRow], pairs: Sequence[Pair | None]
) -> Prediction:
    from fscl.similarity.pooled import PooledCorrelation, pooled_mantel

    given = [pair for pair in pairs if pair is not None]
    # what is to be said of one seed's p is not to be said of that over seeds
    notes = "; ".join(dict.fromkeys(row.note for row in rows if not row.defined))
    count, nan = rows[0].n_tasks, math.nan
    if given:
        # what comes after a task and what came before it are different things to transfer
        apart = np.subtract.outer(np.arange(count), np.arange(count))
        strata = apart if question == "transfer" else np.abs(apart)
        found, within = (
            pooled_mantel(given, pairs=_pairs(question), strata=s, same_tasks=group.same_order, names=_names(question))
            for s in (None, strata)
        )
    else:
        found = within = PooledCorrelation(nan, nan, nan, nan, 0, count, (nan,) * len(rows), notes)
    return Prediction(question, group.label, found, within, nan, nan, len(rows), notes)


def _holm(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    from fscl.similarity.correlation import holm

    return [float(p) for p in holm(p_values)]


def _shown(found: PooledCorrelation, p: float) -> tuple[str, str]:
    if not found.defined:
        return "undefined", DASH
    interval = f" [{signed(found.low)}, {signed(found.high)}]" if math.isfinite(found.low) else ""
    return signed(found.statistic) + interval, small_p(p)


def signed(value: float) -> str:
    """
    >>> signed(0.5), signed(-0.25), signed(-0.001)
    ('+0.50', '−0.25', '0.00')
    """
    shown = f"{round(value, 2) + 0.0:+.2f}"  # no "-0.00"
    return "0.00" if shown == "+0.00" else shown.replace("-", "−")
