"""Does similarity predict forgetting and transfer? Task-by-task matrices of finished runs, set against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fscl.continual.transfer import forgetting_matrix
from fscl.errors import FsclError
from fscl.suite.results import RunResult
from fscl.suite.summary import DASH, Estimate, StrategyRuns

__all__ = ["QUESTIONS", "PredictionMean", "PredictionRow", "atom_reference", "predictions", "whole_similarity"]

Array = NDArray[np.float64]
Question = Literal["drift", "atoms", "transfer"]
QUESTIONS: dict[Question, str] = {
    "drift": "Own drift and own forgetting",
    "atoms": "Atom similarity and forgetting",
    "transfer": "Similarity and transfer",
}
PREFERRED = "atom_swapping"
LEVEL = 0.05


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
    p_holm: float
    n_tasks: int
    note: str
    x: Array
    y: Array

    @property
    def defined(self) -> bool:
        return math.isfinite(self.rho)

    @property
    def interval(self) -> str:
        return f"[{_number(self.low)}, {_number(self.high)}]" if math.isfinite(self.low) else DASH

    def cells(self) -> tuple[str, ...]:
        """Question, strategy, seed, rho, interval, tau, p, Holm-adjusted p, tasks, note."""
        head = (QUESTIONS[self.question], self.label, str(self.seed))
        if not self.defined:
            return (*head, "undefined", DASH, DASH, DASH, DASH, str(self.n_tasks), self.note)
        p_values = (_p(self.p_value), _p(self.p_holm))
        return (*head, _number(self.rho), self.interval, _number(self.tau), *p_values, str(self.n_tasks), self.note)


@dataclass(frozen=True)
class PredictionMean:
    """One question and strategy over its seeds; ``rho`` and ``tau`` are None where every seed is undefined."""

    question: Question
    label: str
    rho: Estimate | None
    tau: Estimate | None
    significant: int
    seeds: int
    n_tasks: int
    note: str

    def cells(self) -> tuple[str, ...]:
        """Question, strategy, rho, tau, seeds where defined, seeds with a small p, tasks, note."""
        head = (QUESTIONS[self.question], self.label)
        if self.rho is None or self.tau is None:
            return (*head, "undefined", DASH, f"0 of {self.seeds}", DASH, str(self.n_tasks), self.note)
        seeds = (f"{self.rho.n} of {self.seeds}", f"{self.significant} of {self.rho.n}")
        return (*head, self.rho.text(sign=True), self.tau.text(sign=True), *seeds, str(self.n_tasks), self.note)


def whole_similarity(run: RunResult) -> Array | None:
    """The layers' similarities as one (T, T) matrix, aggregated the way the run says; None if it kept none."""
    if run.similarity is None or not len(run.similarity.layers):
        return None
    import torch  # slow to import: only where a similarity is there

    from fscl.similarity.subspace import aggregate_layers

    return aggregate_layers(torch.as_tensor(run.similarity.matrix), run.similarity.aggregate).numpy()


def atom_reference(groups: Sequence[StrategyRuns]) -> StrategyRuns | None:
    """The strategy of a benchmark whose similarities come from atoms: ``atom_swapping``, or else the first there is."""
    having = [g for g in groups if any(r.provenance == "atoms" and r.similarity is not None for r in g.runs)]
    return next((g for g in having if g.name == PREFERRED), having[0] if having else None)


def predictions(groups: Sequence[StrategyRuns]) -> tuple[list[PredictionRow], list[PredictionMean]]:
    """All questions for the strategies of one benchmark: a row for each seed (p Holm-adjusted over them), and means.

    Strategies without any similarity of their own still take part in the question asked of the atoms.
    """
    reference = atom_reference(groups)
    by_seed = {run.seed: run for run in reference.runs} if reference else {}
    rows: list[PredictionRow] = []
    for question in QUESTIONS:
        for group in groups:
            if not group.square or (question == "atoms" and (reference is None or group is reference)):
                continue
            if question != "atoms" and all(run.similarity is None for run in group.runs):
                continue
            for run in group.runs:
                other = by_seed.get(run.seed) if question == "atoms" else run
                rows.append(_row(question, group.label, run, other, reference.label if reference else ""))
    adjusted = _holm([row.p_value for row in rows])
    rows = [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]
    return rows, [_mean([r for r in rows if (r.question, r.label) == key]) for key in _keys(rows)]


def _keys(rows: Sequence[PredictionRow]) -> list[tuple[Question, str]]:
    return list(dict.fromkeys((row.question, row.label) for row in rows))


def _row(question: Question, label: str, run: RunResult, other: RunResult | None, reference: str) -> PredictionRow:
    count = len(run.tasks)

    def undefined(why: str) -> PredictionRow:
        nan, none = math.nan, np.empty(0)
        return PredictionRow(question, label, run.seed, nan, nan, nan, nan, nan, nan, count, why, none, none)

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

    if question == "transfer":
        assert run.transfer is not None
        outcome, pairs, index = run.transfer.T, "all", np.nonzero(~np.eye(count, dtype=bool))
    else:
        outcome, pairs, index = forgetting_matrix(run.accuracy), "lower", np.tril_indices(count, -1)
    names = ("similarity", "transfer" if question == "transfer" else "forgetting")
    try:
        found = mantel(similarity, outcome, method="spearman", pairs=pairs, names=names)
    except FsclError as error:
        return undefined(str(error))
    if not found.defined:
        return undefined(found.note)
    x, y = similarity[index], outcome[index]
    # tau beside rho needs no permutations of its own: one p-value a row, that of rho.
    tau = float(kendalltau(x, y).statistic)
    p = found.p_value
    return PredictionRow(
        question, label, run.seed, found.statistic, found.low, found.high, tau, p, p, count, found.note, x, y
    )


def _holm(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    from fscl.similarity.correlation import holm

    return [float(p) for p in holm(p_values)]


def _mean(rows: Sequence[PredictionRow]) -> PredictionMean:
    good = [row for row in rows if row.defined]
    return PredictionMean(
        question=rows[0].question,
        label=rows[0].label,
        rho=Estimate.of([row.rho for row in good]),
        tau=Estimate.of([row.tau for row in good]),
        significant=sum(row.p_holm < LEVEL for row in good),
        seeds=len(rows),
        n_tasks=rows[0].n_tasks,
        note="; ".join(dict.fromkeys(row.note for row in rows if row.note)),
    )


def _number(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    """
    >>> _p(0.00012), _p(0.0314)
    ('< 0.001', '0.031')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
