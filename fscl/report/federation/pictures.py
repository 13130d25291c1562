"""The figures of the section on a federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fscl.plots import (
    accuracy_over_cost,
    clustered_heatmap,
    counts_heatmap,
    scatter_panels,
    similarity_limits,
)
from fscl.plots.figures import LearnerStyle
from fscl.report.federation.measures import bytes_sent, mean_accuracies, rand_index, worst_tenths
from fscl.report.federation.relations import LABELS, Relation, clients_compared
from fscl.report.federation.summary import MethodRuns
from fscl.report.sections import Picture, group_id, picture, slugged
from fscl.runs.records.federated import FederatedRecord
from fscl.text import decimal, interval, signed, small_p

__all__ = ["accuracy_pictures", "gain_pictures", "similarity_pictures", "split_picture"]

Array = NDArray[np.float64]
NAMED = 40  # clients that have their number on a heatmap's axis
BANDS = (
    "Lines are means over seeds ({}). If there are only a few lines, bands show one sample standard deviation on "
    "either side. Bounds are grey and dashed."
)
SENT = (
    "Megabytes (1 MB is 10⁶ bytes) are sent in both directions for training, with Flower's headers; those of tests are "
    "not counted. The axis is logarithmic."
)


def accuracy_pictures(name: str, groups: Sequence[MethodRuns], styles: Mapping[str, LearnerStyle]) -> list[Picture]:
    """Accuracy by round and by bytes, and that of the worst tenth of the clients by bytes."""
    bounds = [group.label for group in groups if group.bound]
    seeds = sorted({len(group.runs) for group in groups})
    lines = BANDS.format(f"n = {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))}") if seeds else ""
    pictures = []
    for slug, title, caption, cost, accuracy, words in (
        (
            "by-round", "Accuracy by round",
            "Mean over clients of the accuracy on their own test images, after so many rounds.",
            _rounds, mean_accuracies, "mean accuracy of clients (%)",
        ),
        (
            "by-bytes", "Accuracy by megabytes sent", f"The same, against what was sent until then. {SENT}",
            _megabytes, mean_accuracies, "mean accuracy of clients (%)",
        ),
        (
            "worst-by-bytes", "The worst tenth of the clients",
            "Mean accuracy of the worst tenth of the clients (at least one), against what was sent until then. These "
            f"may be other clients after each test. {SENT}",
            _megabytes, worst_tenths, "accuracy of the worst tenth (%)",
        ),
    ):  # fmt: skip
        curves = {group.label: _curve(group, cost, accuracy) for group in groups}
        curves = {label: curve for label, curve in curves.items() if np.isfinite(curve[1]).any()}
        if curves:
            log = cost is _megabytes
            axes = accuracy_over_cost(
                curves, xlabel="megabytes sent" if log else "round", ylabel=words, log=log, bounds=bounds, styles=styles
            )
            pictures.append(picture(f"{name}-{slug}", axes, title, f"{caption} {lines}"))
    return pictures


def _rounds(run: FederatedRecord) -> Array:
    return np.array([evaluation.round for evaluation in run.evaluated], dtype=np.float64)


def _megabytes(run: FederatedRecord) -> Array:
    return bytes_sent(run) / 1e6


def _curve(
    group: MethodRuns, cost: Callable[[FederatedRecord], Array], accuracy: Callable[[FederatedRecord], Array]
) -> tuple[Array, Array]:
    """The mean cost of each evaluation (E), and the accuracies (seeds, E); of the evaluations that all seeds have."""
    common = sorted(set.intersection(*({e.round for e in run.evaluated} for run in group.runs)))
    costs, accuracies = [], []
    for run in group.runs:
        chosen = [place for place, evaluation in enumerate(run.evaluated) if evaluation.round in common]
        costs.append(cost(run)[chosen])
        accuracies.append(accuracy(run)[chosen])
    return np.mean(costs, axis=0), np.array(accuracies)


def split_picture(name: str, runs: Sequence[FederatedRecord]) -> list[Picture]:
    """How many images of each class every client has, with the first seed."""
    if not runs:
        return []
    run = min(runs, key=lambda run: run.seed)
    axes = counts_heatmap(run.counts, run.classes, groups=run.groups or None)
    groups = " Lines divide the known groups, which no method is told." if run.groups else ""
    images = run.counts.sum(1).astype(int)
    caption = (
        f"Training images of each class (rows) at each client (columns), seed {run.seed}. {run.clients} clients have "
        f"{images.min():,} to {images.max():,} images each. No image is at two clients. Grey means none.{groups}"
    )
    if len({other.seed for other in runs}) > 1:
        caption += " Other seeds give clients other images."
    return [picture(f"{name}-split", axes, "Images of the clients", caption)]


def similarity_pictures(name: str, groups: Sequence[MethodRuns]) -> list[Picture]:
    """A clustered heatmap of the clients' similarity for each method that compares them."""
    pictures = []
    for group in groups:
        runs = [run for run in group.runs if len(run.similarity)]
        runs = runs if group.same_groups else runs[:1]
        chosen = clients_compared(runs)
        if len(chosen) < 2:
            continue
        matrix = np.mean([run.similarity[np.ix_(chosen, chosen)] for run in runs], axis=0)
        names = [str(client) for client in chosen]
        low, high = similarity_limits(matrix)
        first = runs[0]
        compared = (
            "cosine of atoms less the common part, mean over layers"
            if group.has_atoms
            else "cosine of changes of networks, all layers together"
        )
        source = f"mean over {len(runs)} seeds" if len(runs) > 1 else f"seed {first.seed}"
        strips, agreement = _strips(runs, chosen)
        figure = clustered_heatmap(matrix, names, beside=strips, label=compared, most_names=NAMED)
        left_out = first.clients - len(chosen)
        caption = (
            f"{group.label}: {compared}; {len(chosen)} clients, {source}. No data is used. Clients are ordered by "
            "clustering; the tree shows at which mean similarity clusters join. Colours span "
            f"{decimal(low)} to {decimal(high)}.{agreement}"
        )
        if left_out:
            caption += f" {left_out} clients are left out: the server has nothing of theirs to compare."
        slug = slugged(f"{name}-clients-{group_id(group)}")
        pictures.append(Picture(slug, figure, group.label, caption, learner=group.label))
    return pictures


def _strips(runs: Sequence[FederatedRecord], chosen: NDArray[np.intp]) -> tuple[dict[str, list[int]], str]:
    """The groups that a heatmap shows beside its clients, and sentences on them."""
    first = runs[0]
    if not first.groups:
        return {}, ""
    strips = {"known": [first.groups[client] for client in chosen]}
    words = " The strip has the known groups, which the method is not told."
    indices = [index for run in runs if (index := rand_index(run)) is not None]
    if not indices:
        return strips, words + " It found no groups of its own, so the adjusted Rand index is undefined."
    found = first.evaluated[-1].groups
    if found:
        named = _named_alike(first.groups, found)
        strips["found"] = [named[client] for client in chosen]
        words = (
            " The strips have the known groups, which the method is not told, and those that it found (with seed "
            f"{first.seed})."
        )
    spread = f" ± {decimal(float(np.std(indices, ddof=1)))}" if len(indices) > 1 else ""
    seeds = f"n = {len(indices)} seed{'s' * (len(indices) != 1)}"
    return strips, f"{words} Their adjusted Rand index is {decimal(float(np.mean(indices)))}{spread} ({seeds})."


def _named_alike(known: Sequence[int], found: Sequence[int]) -> list[int]:
    """The groups that were found, numbered so that as many clients as possible have the number of their known group.

    >>> _named_alike([0, 0, 1, 1], [1, 1, 0, -1])
    [0, 0, 1, -1]
    """
    from scipy.optimize import linear_sum_assignment

    shared = np.zeros((max(found) + 1, max(*known, *found) + 1))
    for own, other in zip(known, found, strict=True):
        if other >= 0:
            shared[other, own] += 1
    number_of = dict(zip(*linear_sum_assignment(-shared), strict=True))
    return [int(number_of.get(other, -1)) for other in found]


def gain_pictures(name: str, answers: Sequence[Relation], styles: Mapping[str, LearnerStyle]) -> list[Picture]:
    """A scatter plot for each question: a panel for each method for which it is defined."""
    pictures = []
    for words in dict.fromkeys(answer.words for answer in answers):
        rows = [answer for answer in answers if answer.words == words and answer.rho.defined]
        if not rows:
            continue
        of_labels = words == LABELS
        dots = {row.label: (row.dots[0], row.dots[1] * (1 if of_labels else 100), row.dots[2]) for row in rows}
        if of_labels:
            xlabel, ylabel = "similarity of labels (cosine of images by class)", "similarity of clients"
            shown = (
                "A dot is a pair of clients: the cosine of their numbers of images by class, and their similarity by "
                "atoms, or by the changes of networks that have none."
            )
        else:
            xlabel, ylabel = "mean similarity with other clients", "gain over training alone (points)"
            shown = (
                "A dot is a client: its mean similarity with the other clients, and its final accuracy less its "
                "accuracy when it trains alone, with the same seed and images."
            )
        found = "; ".join(f"{row.label}: {_rho(row)}" for row in rows)
        figure = scatter_panels(dots, xlabel=xlabel, ylabel=ylabel, styles=styles)
        slug = slugged(f"{name}-{'labels' if of_labels else 'gain'}")
        caption = f"{shown} Shades are seeds. Spearman's ρ, mean over seeds [95 %]: {found}."
        pictures.append(Picture(slug, figure, words, caption))
    return pictures


def _rho(row: Relation) -> str:
    ends = interval(row.rho.low, row.rho.high)
    seeds = f"n = {row.rho.n_seeds} seed{'s' * (row.rho.n_seeds != 1)} of {row.clients} clients"
    return f"{signed(row.rho.statistic)}{f' {ends}' if ends else ''}, p {_p(row.p)}, {seeds}"


def _p(value: float) -> str:
    text = small_p(value)
    return text if text.startswith("<") else f"= {text}"
