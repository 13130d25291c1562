"""Compares checkpoints: which are alike, which share a start, and how far the similarities can be trusted."""

import csv
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from markupsafe import escape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import fscl
from fscl.compare.coverage import Coverage, coverage
from fscl.compare.joint import JointDecomposition
from fscl.compare.layers import LeftOut
from fscl.errors import printable
from fscl.files import write_atomically, written_together
from fscl.plots.clusters import clustered_heatmap, short_names
from fscl.plots.figures import inline_svg, save_png
from fscl.plots.heatmaps import similarity_heatmap, similarity_label
from fscl.similarity.subspace import similarity_matrix
from fscl.text import percent, spreadsheet_text

__all__ = [
    "SHARED_START",
    "WELL_EXPLAINED",
    "Comparison",
    "Group",
    "compare",
    "find_groups",
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
# Similarities are trusted if at least this share of the parameters is compared: layers that are left out may differ in
# any way. The share is a choice, not a measurement. Spatial convolutions have 0.94 of the parameters of ResNet-18 with
# 1,000 classes, 0.44 of ResNet-50's, 0.11 of VGG-16's and 0.02 of MobileNetV2's.
MOSTLY_COMPARED = 0.75

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

    def __repr__(self) -> str:
        trust = self.verdict.partition(":")[0]
        starts = f"{len(self.groups)} start{'s' * (len(self.groups) > 1)}"
        return f"Comparison({len(self.joint.names)} networks, {starts}, {self.metric} {self.aggregate}, {trust})"

    def _repr_html_(self) -> str:
        """The heatmap and the verdict, for a notebook."""
        svg = inline_svg(_heatmap(self), f"fscl{id(self):x}", f"Similarity of {len(self.joint.names)} networks")
        return f"<figure>{svg}<figcaption>{escape(printable(self.verdict))}</figcaption></figure>"

    @cached_property
    def coverage(self) -> Coverage:
        """The share of the parameters that was compared, and the layers with weights that were left out."""
        compared = {layer: stack.rows * stack.pixels for layer, stack in self.joint.filters.items()}
        return coverage(self.joint.states, compared, self.not_compared)

    @property
    def trusted(self) -> bool:
        """Whether all similarities may be compared with one another."""
        is_whole = not self.not_compared and self.coverage.share >= MOSTLY_COMPARED
        return len(self.groups) == 1 and self.groups[0].least >= WELL_EXPLAINED and is_whole

    @property
    def verdict(self) -> str:
        """What :attr:`trusted` says, in words and with the reason."""
        explain = f"{self.num_atoms} atoms explain {percent(self.share)} of their filters"
        text = f"these networks share a start, and {explain}"
        if self.trusted:
            return f"trusted: {text}{self._of_the_parameters()}"
        if len(self.groups) > 1:
            text = self._of_several_starts(explain)
        elif self.groups[0].least < WELL_EXPLAINED:
            worst = self.joint.names[int(self.joint.shares.argmin())]
            text = text.replace(", and", ", but")
            text += f", as little as {percent(self.groups[0].least)} in {worst}; more explain more (--atoms)"
        if self.not_compared:
            missing, layers = len(self.not_compared), len(self.joint.layers) + len(self.not_compared)
            text += f"; {missing} of {layers} layers could not be compared"
        text += self._of_the_parameters()
        return f"{'not to be trusted as a whole' if len(self.groups) > 1 else 'to be read with care'}: {text}"

    def _of_the_parameters(self) -> str:
        """The end of the verdict: the share of the parameters, and the layers that were left out."""
        if not (names := list(self.coverage.left_out)):
            return ""
        omitted = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        without = printable(f"{', '.join(names[:NAMED])}{omitted}")
        return f"; {percent(self.coverage.share)} of the parameters are compared, without {without}"

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
                "left_out": self.coverage.left_out,
                "compared_share": self.coverage.share,
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
    with written_together():
        write_atomically(written[0], lambda temporary: _write_table(comparison, temporary))
        write_atomically(written[1], lambda temporary: _write_data({**comparison.as_data(list), **extra}, temporary))
        save_png(_heatmap(comparison), written[2])
        gc.collect()  # figures are reference cycles, of tens of megabytes for many networks
        numbers = [comparison.group_of(name) for name in names]
        save_png(clustered_heatmap(comparison.matrix, names, groups=numbers, **_colours(comparison)), written[3])
    return written


class _Colours(TypedDict):
    limits: tuple[float, float] | None
    label: str


def _heatmap(comparison: Comparison) -> Figure:
    axes = similarity_heatmap(comparison.matrix, short_names(comparison.joint.names), **_colours(comparison))
    axes.set(xlabel="checkpoint", ylabel="checkpoint")
    assert isinstance(axes.figure, Figure)  # not a SubFigure
    return axes.figure


def _colours(comparison: Comparison) -> _Colours:
    unrelated = len(comparison.groups) == len(comparison.joint.names)
    return {
        # unrelated networks differ only by chance, and the range of colours should not show chance
        "limits": (min(0.0, float(comparison.matrix.min())), 1.0) if unrelated else None,
        "label": similarity_label(comparison.metric, comparison.aggregate),
    }


def _write_table(comparison: Comparison, file: Path) -> None:
    cells = [spreadsheet_text(printable(name)) for name in comparison.joint.names]
    with file.open("w", encoding="utf-8", newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["", *cells])
        table.writerows([cell, *map(repr, row.tolist())] for cell, row in zip(cells, comparison.matrix, strict=True))


def _write_data(data: dict[str, Any], file: Path) -> None:
    """One line for each row of a matrix: with ``indent``, ``json`` takes seconds for the numbers of 1,000 networks."""
    with file.open("w", encoding="utf-8") as text:  # written in parts: for 1,000 networks it is 45 MB
        before = "{\n"
        for key, value in data.items():
            text.write(f"{before} {json.dumps(key)}: ")
            before = ",\n"
            if isinstance(value, list) and all(isinstance(row, np.ndarray) for row in value):
                text.write("[\n")
                text.writelines(
                    f"  {json.dumps(row.tolist())}{',' * (i < len(value))}\n" for i, row in enumerate(value, 1)
                )
                text.write(" ]")
            else:
                text.write(json.dumps(value, indent=1).replace("\n", "\n "))
        text.write("\n}\n")
