"""Does the similarity of clients go with what they have in common, and with what they gain?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fscl.report.federation.summary import MethodRuns
from fscl.report.table import Column, PooledRho, PValue
from fscl.runs.records.federated import FederatedRecord

if TYPE_CHECKING:
    from fscl.similarity.pooled import PooledCorrelation

__all__ = ["LABELS", "RELATIONS", "Relation", "alone_of", "clients_compared", "label_similarity", "relations"]

Array = NDArray[np.float64]
LABELS = "Similarity of clients and of their labels"
GAIN = "Mean similarity with other clients and gain over training alone"
LEAST = 4  # clients; fewer have too few permutations
RESAMPLES = 9999


@dataclass(frozen=True, eq=False)
class Relation:
    """The answer to one question for one method, over its seeds.

    Attributes:
        words: the question.
        label: the method's label.
        rho: Spearman's rho; undefined if its statistic is NaN.
        p: its p-value, adjusted by Holm over all rows of the federation.
        seeds: number of seeds.
        clients: number of clients that the answer is about.
        note: why it is undefined, or undefined for some seeds.
        dots: x, y and seed of each dot of a scatter plot.
    """

    words: str
    label: str
    rho: PooledCorrelation
    p: float
    seeds: int
    clients: int
    note: str
    dots: tuple[Array, Array, list[str]]


RELATIONS: tuple[Column[Relation], ...] = (
    Column("Question", "", "", lambda row: row.words),
    Column("Method", "", "", lambda row: row.label),
    PooledRho("Spearman ρ", "mean over seeds [95 %]", "", lambda row: row.rho, line="{}, {}"),
    PValue("p", "permutation, Holm", "", lambda row: row.p),
    Column("Seeds", "where defined", "", lambda row: f"{row.rho.n_seeds} of {row.seeds}", line="{} {}"),
    Column("Clients", "", "", lambda row: row.clients),
    Column("Note", "", "", lambda row: row.note),
)


def relations(groups: Sequence[MethodRuns]) -> list[Relation]:
    """The answers to both questions for the methods of one federation that compare clients."""
    alone = alone_of(groups)
    compared = [group for group in groups if any(len(run.similarity) for run in group.runs)]
    rows = [_labels(group) for group in compared] + [_gain(group, alone) for group in compared]
    if not rows:
        return []
    from fscl.similarity.correlation import holm

    return [replace(row, p=float(p)) for row, p in zip(rows, holm([row.rho.p_value for row in rows]), strict=True)]


def alone_of(groups: Sequence[MethodRuns]) -> MethodRuns | None:
    """The method without a federation, in which each client trains alone; None if no run has it."""
    return next((group for group in groups if group.alone), None)


def clients_compared(runs: Sequence[FederatedRecord]) -> NDArray[np.intp]:
    """The clients whose similarity with one another is known at the end of all runs that kept a similarity."""
    matrices = [run.similarity for run in runs if len(run.similarity)]
    if not matrices:
        return np.empty(0, dtype=np.intp)
    known = np.logical_and.reduce([np.isfinite(matrix) for matrix in matrices])
    present = np.flatnonzero(np.diag(known))
    return present[known[np.ix_(present, present)].all(axis=1)]


def label_similarity(counts: Array) -> Array:
    """The cosine of the clients' numbers of images by class, (clients, classes) -> (clients, clients).

    >>> label_similarity(np.array([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    directions = counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-300)
    return directions @ directions.T


def _labels(group: MethodRuns) -> Relation:
    runs = [run for run in group.runs if len(run.similarity)]
    chosen = clients_compared(runs)
    note = "" if len(runs) == len(group.runs) else "some seeds kept no similarity"
    if len(chosen) < LEAST:
        return _undefined(LABELS, group, len(chosen), _too_few(len(chosen)))
    from fscl.similarity.pooled import pooled_mantel

    square = np.ix_(chosen, chosen)
    pairs = [(label_similarity(run.counts)[square], run.similarity[square]) for run in runs]
    rho = pooled_mantel(
        pairs,
        pairs="lower",
        same_tasks=group.same_groups,
        names=("the similarity of labels", "the similarity of clients"),
    )
    lower = np.tril_indices(len(chosen), -1)
    x, y = (np.concatenate([pair[place][lower] for pair in pairs]) for place in (0, 1))
    seeds = [f"seed {run.seed}" for run in runs for _ in lower[0]]
    notes = "; ".join(text for text in (note, rho.note) if text)
    return Relation(LABELS, group.label, rho, rho.p_value, len(group.runs), len(chosen), notes, (x, y, seeds))


def _gain(group: MethodRuns, alone: MethodRuns | None) -> Relation:
    if alone is None:
        return _undefined(GAIN, group, 0, "no finished run in which clients train alone, such as of Local")
    baselines = {run.seed: run for run in alone.runs}
    dots, notes = [], []
    for run in group.runs:
        baseline = baselines.get(run.seed)
        if baseline is None:
            notes.append(f"no finished run of {alone.label} has seed {run.seed}")
        elif not np.array_equal(baseline.counts, run.counts):
            notes.append(f"with seed {run.seed} the clients of {alone.label} have other images")
        elif not len(run.similarity):
            notes.append(f"seed {run.seed} kept no similarity")
        else:
            x, y = _similarity_and_gain(run, baseline)
            if len(x) < LEAST:
                notes.append(f"seed {run.seed}: {_too_few(len(x))}")
            elif min(np.ptp(x), np.ptp(y)) <= 1e-12:
                flat = "the similarity" if np.ptp(x) <= 1e-12 else "the gain"
                notes.append(f"seed {run.seed}: {flat} is constant")
            else:
                dots.append((run.seed, x, y))
    note = "; ".join(dict.fromkeys(notes))
    if not dots:
        return _undefined(GAIN, group, 0, note)
    clients = min(len(x) for _, x, _ in dots)
    same = group.same_groups and len({len(x) for _, x, _ in dots}) == 1
    rho = _pooled([(x, y) for _, x, y in dots], same)
    x, y = (np.concatenate([dot[place] for dot in dots]) for place in (1, 2))
    seeds = [f"seed {seed}" for seed, x_of_seed, _ in dots for _ in x_of_seed]
    return Relation(GAIN, group.label, rho, rho.p_value, len(group.runs), clients, note, (x, y, seeds))


def _similarity_and_gain(run: FederatedRecord, baseline: FederatedRecord) -> tuple[Array, Array]:
    """Each client's mean similarity with other clients, and its final accuracy less that of training alone."""
    chosen = clients_compared([run])
    matrix = run.similarity[np.ix_(chosen, chosen)]
    others = (matrix.sum(1) - np.diag(matrix)) / max(len(chosen) - 1, 1)
    gain = run.accuracy[-1][chosen] - baseline.accuracy[-1][chosen]
    tested = np.isfinite(gain) & np.isfinite(others)
    return others[tested], gain[tested]


def _pooled(pairs: Sequence[tuple[Array, Array]], same_clients: bool) -> PooledCorrelation:
    """The mean over seeds of Spearman's rho over clients, tested by permuting the clients within each seed.

    If the clients of all seeds are alike, they are permuted in the same way in all seeds.
    """
    from scipy.stats import rankdata

    from fscl.similarity.estimate import seed_interval
    from fscl.similarity.pooled import PooledCorrelation

    ranks = []
    for pair in pairs:
        x, y = (rankdata(values) - (len(values) + 1) / 2 for values in pair)
        ranks.append((x / np.linalg.norm(x), y / np.linalg.norm(y)))
    each = [float(x @ y) for x, y in ranks]
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(len(ranks[0][0])), (RESAMPLES, 1)), axis=1)
    drawn = np.zeros(RESAMPLES)
    for x, y in ranks:
        if not same_clients:
            orders = rng.permuted(np.tile(np.arange(len(x)), (RESAMPLES, 1)), axis=1)
        drawn += y[orders] @ x / len(ranks)
    extreme = np.count_nonzero(np.abs(drawn) >= abs(float(np.mean(each))) - 1e-9)
    mean = seed_interval(each)
    low, high = np.clip((mean.low, mean.high), -1, 1).tolist()
    p = (1 + extreme) / (1 + RESAMPLES)
    return PooledCorrelation(mean.mean, p, low, high, len(each), len(ranks[0][0]), tuple(each))


def _too_few(clients: int) -> str:
    return f"{clients} client{'s' * (clients != 1)} can be compared; at least {LEAST} are needed"


def _undefined(words: str, group: MethodRuns, clients: int, note: str) -> Relation:
    from fscl.similarity.pooled import PooledCorrelation

    nan, none = math.nan, np.empty(0)
    rho = PooledCorrelation(nan, nan, nan, nan, 0, clients, (nan,) * len(group.runs), note)
    return Relation(words, group.label, rho, nan, len(group.runs), clients, note, (none, none, []))
