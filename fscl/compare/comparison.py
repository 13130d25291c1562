"""Compares checkpoints: which are alike, which share a start, and how far the similarities can be trusted."""

import csv
import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import fscl
from fscl.compare.convolutions import LeftOut
from fscl.compare.joint import JointDecomposition
from fscl.errors import FsclError
from fscl.files import write_atomically, written_together
from fscl.plots.clusters import clustered_heatmap, short_names
from fscl.plots.figures import save_png
from fscl.plots.heatmaps import similarity_heatmap, similarity_label
from fscl.similarity.subspace import AGGREGATES, METRICS, similarity_matrix
from fscl.text import decimals, percent, printable

__all__ = [
    "SHARED_START",
    "WELL_EXPLAINED",
    "Comparison",
    "Group",
    "bank_note",
    "check_measure",
    "compare",
    "find_groups",
    "lines",
    "write_comparison",
]

# Clusters of networks are joined, as networks of one start, if their mean relatedness is at least this. Measured on
# sets of three starts with four tasks each: digits in 63 settings (networks of two or three layers, 4 to 64 channels,
# plain, normalised and depthwise, 3x3 and 5x5; nine ways of training), Fashion-MNIST in 8, and ResNet-18 in 4.
# Mean relatedness of clusters of one start was
#   0.69 and more  after fine-tuning with at most the learning rate of training (ResNet-18: 0.97),
#   0.20 and more  with four times that learning rate,
#   0.19 and more  if only the random initialisation was shared (ResNet-18: 0.94), with one exception at 0.13.
# Mean relatedness of clusters of different starts was
#   0.04 or less   with 3x3 kernels and 8 channels or more (ResNet-18: 0.02),
#   0.11 or less   with depthwise kernels, or 5x5 kernels of few channels.
# With still higher learning rates a common start is lost (0.02 to 0.09). Networks ruined by training reach up to 0.36.
# A missed start only withholds trust, but a wrongly assumed one lends trust. So the threshold is rather high.
SHARED_START = 0.15
# Similarities are trusted if at least this share is explained. The unexplained part is missing from both networks, so
# cosines of atoms exceed cosines of filters by about 1 - share. Measured within starts, the excess was
#   at most 0.016   with 0.99 and more explained,
#   0.04 to 0.065   with 0.95 to 0.98,
#   0.18 to 0.22    with 0.68 to 0.84.
# Nine atoms explained
#   0.97 and more   after fine-tuning by SGD with at most the learning rate of training (0.92 with strong weight decay),
#   0.89 and more   by Adam,
#   0.65 to 0.99    with four times the learning rate, or from the random initialisation alone.
WELL_EXPLAINED = 0.9

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # a spreadsheet takes text that begins so for a formula
NAMED = 8  # members of a group that a terminal shows by name

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Networks that share a start.

    Attributes:
        members: their names.
        share: share of their filters that coefficients fitted to this group explain.
        least: this share for the member that is explained least.
    """

    members: tuple[str, ...]
    share: float
    least: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The similarity of T networks, and how far it can be trusted.

    Attributes:
        joint: the networks over the coefficients with which they were compared.
        matrix: their similarity, (T, T).
        metric, aggregate: how it was measured, see :func:`fscl.similarity.similarity_matrix`.
        num_atoms: atoms of a 3x3 layer for each start.
        share: share of the filters' energy that ``num_atoms`` atoms explain; near 1 if all networks share a start.
        related: how far each pair shares coefficients, (T, T); see :meth:`JointDecomposition.relatedness`.
        groups: networks that share a start, in the order of their first members.
        not_compared: layers that could not be compared, and why.
    """

    joint: JointDecomposition
    matrix: Array
    metric: str
    aggregate: str
    num_atoms: int
    share: float
    related: Array
    groups: list[Group]
    not_compared: Mapping[str, LeftOut] = field(default_factory=dict)

    @property
    def compared_share(self) -> float:
        """The share of a network's parameters that was compared.

        Not compared are biases, normalisation, positions, the head, and what is in :attr:`not_compared`.
        """
        joint = self.joint
        return joint.compared / max(
            joint.parameters, joint.compared + sum(w.values for w in self.not_compared.values())
        )

    @property
    def trusted(self) -> bool:
        """Whether all similarities may be compared with one another."""
        return len(self.groups) == 1 and self.groups[0].least >= WELL_EXPLAINED and not self.not_compared

    @property
    def verdict(self) -> str:
        """What :attr:`trusted` says, in words and with the reason."""
        explain = f"{self.num_atoms} atoms explain {percent(self.share)} of their filters"
        text = f"these networks share a start, and {explain}"
        about = f"this is about {percent(self.compared_share)} of the parameters"
        if self.trusted:
            return f"trusted: {text}; {about}"
        if len(self.groups) > 1:
            text = self._of_several_starts(explain)
        elif self.groups[0].least < WELL_EXPLAINED:
            worst = self.joint.names[int(self.joint.shares.argmin())]
            text = text.replace(", and", ", but")
            text += f", as little as {percent(self.groups[0].least)} in {worst}; more explain more (--atoms)"
        if self.not_compared:
            missing, layers = len(self.not_compared), len(self.joint.layers) + len(self.not_compared)
            text += f"; {missing} of {layers} layers could not be compared, so {about}"
        else:
            text += f"; {about}"
        return f"{'not to be trusted as a whole' if len(self.groups) > 1 else 'to be read with care'}: {text}"

    def _of_several_starts(self, explain: str) -> str:
        text = f"these networks do not share a start, and {explain}"
        if len(self.groups) == len(self.joint.names):
            return f"{text}; no two of them are related, and their similarities say no more than that"
        well = all(group.least >= WELL_EXPLAINED for group in self.groups)
        hold = "hold" if well else "hold as far as its networks are explained"
        across = "across them they only say that no start is shared"
        return f"{text}; within each of the {len(self.groups)} groups the numbers {hold}, {across}"

    def group_of(self, name: str) -> int:
        """The number of a network's group, from 1."""
        return next(i for i, group in enumerate(self.groups, 1) if name in group.members)

    def nearest(self, name: str) -> tuple[str, float]:
        """The most similar other network, and how similar it is."""
        row = self.matrix[self.joint.names.index(name)].copy()
        row[self.joint.names.index(name)] = -np.inf
        return self.joint.names[int(row.argmax())], float(row.max())

    def as_data(self, rows: Callable[[Array], Any] = np.ndarray.tolist) -> dict[str, Any]:
        """All results as plain values, for other programs. ``rows`` converts a matrix."""
        names, joint = self.joint.names, self.joint
        return {
            "fscl": fscl.__version__,
            "names": list(names),
            "metric": self.metric,
            "aggregate": self.aggregate,
            "matrix": rows(self.matrix),
            "verdict": {"trusted": self.trusted, "text": self.verdict},
            "layers": {
                "compared": list(joint.layers),
                "not_compared": {layer: why.reason for layer, why in self.not_compared.items()},
                "compared_share": self.compared_share,
                "pointwise": list(joint.pointwise),
                "head": joint.head,
            },
            "groups": [
                {"members": list(g.members), "explained": g.share, "explained_least": g.least} for g in self.groups
            ],
            "atoms": {"of_a_start": self.num_atoms, "compared": joint.num_atoms},
            "explained": {
                "by_atoms_of_a_start": self.share,
                "by_atoms_compared": joint.share,
                "by_checkpoint": dict(zip(names, joint.shares.tolist(), strict=True)),
                "by_layer": {
                    layer: dict(zip(names, shares.tolist(), strict=True)) for layer, shares in joint.explained.items()
                },
            },
            "relatedness": rows(self.related),
        }


def compare(
    joint: JointDecomposition,
    metric: str = "cosine",
    aggregate: str = "mean",
    not_compared: Mapping[str, LeftOut] | None = None,
) -> Comparison:
    """Compares networks by their atoms, with ``joint.num_atoms`` atoms for each start.

    Networks of one start have the coefficients of one network, or nearly. If there are several starts, a fixed number
    of coefficients explains only a part of each start, and the rest is not compared. So the networks are compared over
    ``num_atoms`` coefficients for each group of networks with one start.

    Args:
        joint: the networks over coefficients that they share.
        metric, aggregate: see :func:`fscl.similarity.similarity_matrix`.
        not_compared: layers that are not in ``joint``, and why; by default ``joint.left_out``.

    Raises:
        FsclError: the metric or the aggregate is unknown or does not apply.

    Example:
        >>> import torch
        >>> from fscl.compare import joint_decompose
        >>> start, other = torch.randn(2, 16, 16, 3, 3)
        >>> weights = {"a": start, "b": start + 0.1 * torch.randn(16, 16, 3, 3), "c": other}
        >>> comparison = compare(joint_decompose({name: {"conv.weight": w} for name, w in weights.items()}))
        >>> [group.members for group in comparison.groups], comparison.trusted, comparison.nearest("a")[0]
        ([('a', 'b'), ('c',)], False, 'b')
    """
    related = joint.relatedness().numpy()
    members = find_groups(related, joint.names)
    compared = joint if len(members) == 1 else joint.refit(joint.num_atoms * len(members))
    groups = []
    for names in members:  # one fit in memory at a time
        fit = joint if len(members) == 1 else joint.refit(names=names)
        groups.append(Group(names, fit.share, float(fit.shares.min())))
    matrix = similarity_matrix(compared, metric=metric, aggregate=aggregate).double().numpy()
    left_out = joint.left_out if not_compared is None else not_compared
    return Comparison(
        compared, matrix, metric, aggregate, joint.num_atoms, joint.share, related, groups, dict(left_out)
    )


def check_measure(metric: str, aggregate: str) -> None:
    """Raises :class:`FsclError` for an unknown metric or aggregate. To be called before files are read."""
    for argument, value, allowed in (("metric", metric, METRICS), ("aggregate", aggregate, AGGREGATES)):
        if value not in allowed:
            raise FsclError(f"unknown {argument} {value!r}; known: {', '.join(allowed)}")


def find_groups(related: Array, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of networks that share a start: clusters whose mean relatedness is at least ``SHARED_START``.

    >>> find_groups(np.array([[1, 0.1, 0.9], [0.1, 1, 0.0], [0.9, 0.0, 1]]), ["a", "b", "c"])
    [('a', 'c'), ('b',)]
    """
    if len(names) < 2:
        return [(name,) for name in names]
    distance = squareform(1 - np.clip(related, 0, 1), checks=False)
    labels = fcluster(linkage(distance, "average"), 1 - SHARED_START, "distance").tolist()
    return [
        tuple(name for name, of in zip(names, labels, strict=True) if of == label) for label in dict.fromkeys(labels)
    ]


def write_comparison(comparison: Comparison, folder: Path, extra: dict[str, Any]) -> list[Path]:
    """Writes ``similarity.csv``, ``similarity.json`` (with ``extra``), ``similarity.png`` and ``clustered.png``.

    Raises:
        FsclError: the folder cannot be written.
    """
    names = comparison.joint.names
    written = [folder / f"similarity.{suffix}" for suffix in ("csv", "json", "png")] + [folder / "clustered.png"]
    label = similarity_label(comparison.metric, comparison.aggregate)
    # unrelated networks differ only by chance, and the range of colours should not show chance
    limits = (min(0.0, float(comparison.matrix.min())), 1.0) if len(comparison.groups) == len(names) else None
    with written_together():
        write_atomically(written[0], lambda temporary: _write_table(comparison, temporary))
        write_atomically(written[1], lambda temporary: _write_data({**comparison.as_data(list), **extra}, temporary))
        axes = similarity_heatmap(comparison.matrix, short_names(names), limits=limits, label=label)
        axes.set(xlabel="checkpoint", ylabel="checkpoint")
        figure = axes.figure
        assert isinstance(figure, Figure)  # not a SubFigure
        save_png(figure, written[2])
        del axes, figure
        gc.collect()  # figures are reference cycles, of tens of megabytes for many networks
        numbers = [comparison.group_of(name) for name in names]
        save_png(clustered_heatmap(comparison.matrix, names, groups=numbers, limits=limits, label=label), written[3])
    return written


def _write_table(comparison: Comparison, file: Path) -> None:
    names = map(printable, comparison.joint.names)
    cells = [f"'{name}" if name.startswith(FORMULA) else name for name in names]
    with file.open("w", encoding="utf-8", newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["", *cells])
        table.writerows([cell, *map(repr, row.tolist())] for cell, row in zip(cells, comparison.matrix, strict=True))


def _write_data(data: dict[str, Any], file: Path) -> None:
    with file.open("w", encoding="utf-8") as text:  # written in parts: for 1,000 networks it is 45 MB
        json.dump(data, text, indent=1, default=np.ndarray.tolist)


def lines(comparison: Comparison) -> list[str]:
    """The lines for a terminal: one for each network, the verdict, the groups."""
    joint, several = comparison.joint, len(comparison.groups) > 1
    names = dict(zip(joint.names, short_names(joint.names, 26), strict=True))
    width = max(10, *map(len, names.values()))
    shares = dict(zip(joint.names, joint.shares.tolist(), strict=True))
    text = [f"{'checkpoint':<{width}} {'group ' if several else ''}explained  most alike"]
    alone = {group.members[0] for group in comparison.groups if len(group.members) == 1}
    alike = {name: comparison.nearest(name) for name in names if name not in alone}
    # the closest pair, copies aside, shows two digits of its distance from 1
    places = decimals(min((1 - s for _, s in alike.values() if 1 - s > 1e-7), default=1.0), least=3, most=6)
    for name, short in names.items():
        of = f"{comparison.group_of(name):>5} " if several else ""
        nearest, similarity = alike.get(name, ("", 0.0))
        most = f"{names[nearest]} ({similarity:.{places}f})" if nearest else "none of its start"
        text.append(f"{short:<{width}} {of}{percent(shares[name]):>9}  {most}")
    of_each = f", {comparison.num_atoms} for each of {len(comparison.groups)} starts" if several else ""
    text += [
        "",
        f"{len(names)} checkpoints, {len(joint.layers)} layers, {comparison.metric} ({comparison.aggregate} over "
        f"layers) of {joint.num_atoms} atoms{of_each}",
        *_not_compared(comparison),
        comparison.verdict[0].upper() + comparison.verdict[1:],
    ]
    for number, group in enumerate(comparison.groups if several else [], 1):
        if len(group.members) > 1:
            shown = [names[name] for name in group.members[:NAMED]]
            omitted = f" and {len(group.members) - NAMED} more" * (len(group.members) > NAMED)
            explained = f"{percent(group.share)} explained by {comparison.num_atoms} atoms of its own"
            if group.least < WELL_EXPLAINED:
                explained += f", as little as {percent(group.least)} in one"
            text.append(f"  group {number}: {', '.join(shown)}{omitted} ({explained})")
    return text


def _not_compared(comparison: Comparison) -> list[str]:
    """The lines for a terminal about layers that were not compared, one for each reason."""
    text = []
    if comparison.joint.head is not None:
        text.append(printable(f"Not compared: {comparison.joint.head} (the head, which each task has for itself)"))
    layers: dict[str, list[str]] = {}
    for layer, (reason, _) in comparison.not_compared.items():
        layers.setdefault(reason.replace(layer, "..."), []).append(layer)
    for reason, names in layers.items():
        omitted = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        text.append(printable(f"Not compared: {', '.join(names[:NAMED])}{omitted} ({reason})"))
    return text


def bank_note(comparison: Comparison) -> str:
    """How far the networks of a bank are from the checkpoints, and how to get equal ones; empty if they are equal."""
    off = math.sqrt(max(0.0, 1 - float(comparison.joint.bank_shares.min())))
    if off < 1e-5:  # rounding of float32
        return ""
    enough = math.ceil(9 * len(comparison.joint.names) / len(comparison.groups))
    return (
        f"the bank restores filters only to within {100 * off:.2g} % of their norm, so its networks compute something "
        f"else; --atoms {enough} restores filters and networks exactly"
    )
