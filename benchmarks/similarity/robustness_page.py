"""What the page shows of how far similarities move with the probe."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.similarity.contents import Block, Part, Picture, Table
from benchmarks.similarity.robustness import MEASURES
from fscl.plots.figures import INK, MARKERS, palette, quiet_grid, style

__all__ = ["OURS", "part"]

OURS = {
    "cosine": ("cosine of atoms, over depth", "nothing"),
    "moments": ("moments through the layers", "nothing"),
    "tangent": ("tangent on recalled images", "seed of the images"),
    "response": ("response to recalled images", "seed of the images"),
    "readings": ("three readings of recalled images", "seed of the images"),
}
IMAGES = {"fmnist": "Fashion-MNIST, rotated", "cifar100": "CIFAR-100, class sets"}


def part(units: Mapping[str, Mapping[str, Any]]) -> Part:
    """The section, from the results of its units by name."""
    found = list(units.values())
    blocks: list[Block] = [
        "CKA and CCA are functions of networks **and of a probe**. Here the networks stay as they are and the probe "
        "changes. Comparisons of atoms take no probe: **there is nothing to choose, so that their shift is zero by "
        "construction**. That makes them repeatable, not right; how right they are is in the table below.",
        Picture(
            "robustness-probes", _figure(found), "The same networks on other probes",
            "Above: mean similarity of all pairs. Below: Spearman correlation of the pairs with the same measure "
            "on the reference probe, the leftmost. Bars span the draws of a probe. Dashed, the cosine of atoms over "
            "depth: above its mean, below its correlation with the reference of linear CKA.", wide=True,
        ),
        _probe_table(found),
        _our_table(found),
    ]  # fmt: skip
    return Part("Robustness to the probe", _lead(found), blocks)


def _lead(found: Sequence[Mapping[str, Any]]) -> str:
    sentences = []
    for r in found:
        reference, *rest = r["probes"]
        text = f"{IMAGES[r['images']]}: the mean similarity of the same {r['networks']} networks is"
        for measure, joint in (("linear_cka", ""), ("mean_cca", " and")):
            levels = [_mean(row["measures"][measure]["level"]) for row in rest]
            known = [level for level in levels if math.isfinite(level)]
            if known:
                at = _mean(reference["measures"][measure]["level"])
                text += f"{joint} by {MEASURES[measure]} {at:.2f} on {reference['n']:,} images of their tasks, "
                text += f"{min(known):.2f} to {max(known):.2f} on other probes"
        ours = r["ours"]["cosine"]["agrees"]["linear_cka"]
        orders = [(row["name"], _mean(row["measures"]["linear_cka"]["rho"])) for row in rest]
        less = [f"{name} ({rho:.2f})" for name, rho in orders if rho < ours]
        text += (
            f"; the cosine of atoms cannot move, and orders pairs as the reference CKA does at {ours:.2f} (Spearman)"
        )
        text += f"; CKA itself keeps less of that order on {_listed(less) or 'none of the other probes'}"
        sentences.append(text)
    return ". ".join(sentences) + "."


def _probe_table(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for r in found:
        for row in r["probes"]:
            cells = [IMAGES[r["images"]], row["name"] + (" (reference)" if row is r["probes"][0] else "")]
            for values in row["measures"].values():
                cells += [" / ".join(f"{_mean(values[key]):.2f}" for key in ("level", "shift", "rho"))]
            rows.append(cells)
    about = "; ".join(
        f"{IMAGES[r['images']]}: {r['networks']} networks, {r['networks'] * (r['networks'] - 1) // 2} pairs, "
        f"{r['budget']['images']:,} images and {r['budget']['epochs']} epochs a task, accuracy "
        f"{100 * _mean(r['accuracies']):.0f} % on average"
        for r in found
    )
    few, many = found[0]["places"]
    caption = (
        "Mean similarity / mean absolute shift of the entries / Spearman correlation with the reference, mean over "
        f"{found[0]['draws']} draws (one of the training images, by which the reference can be judged). Networks: each "
        f"learned from that of the first task over shared coefficients, seed 0 ({about}). Features of convolutions "
        f"before normalisation, positions as samples, mean over layers; {few} places in an image of the largest "
        f"probes, {many} in one of the smallest; pooled: an image is one sample. Fewer images are drawn from the same "
        "test images as the reference; noise and the other data set have mean 0 and variance 1."
    )
    header = ["networks", "probe", *(MEASURES[m] for m in found[0]["probes"][0]["measures"])]
    return Table(caption, header, rows, "Every probe")


def _our_table(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for r in found:
        for name, values in r["ours"].items():
            title, choice = OURS[name]
            moved = [f"{_mean(values['level']):.2f}"]
            if choice == "nothing":
                moved += ["0, by construction", "1, by construction"]
            else:
                moved += [f"{_mean(values['shift']):.4f}", f"{_mean(values['rho']):.3f}"]
            agrees = [f"{values['agrees'][m]:.2f}" for m in ("linear_cka", "mean_cca")]
            rows.append([IMAGES[r["images"]], title, choice, *moved, *agrees])
    made = found[0]["stimuli"]
    caption = (
        f"What takes no data. Shift and order: {found[0]['draws']} further seeds of the synthetic images "
        f"({made['images']} images, {made['steps']} steps) against the first. The last columns: Spearman correlation "
        "with the reference of linear CKA and of mean CCA over the same pairs, to be held against what other probes "
        "leave of these measures themselves."
    )
    header = ["networks", "comparison", "what is chosen", "mean similarity", "mean absolute shift"]
    return Table(caption, [*header, "Spearman with first seed", "with linear CKA", "with mean CCA"], rows)


def _figure(found: Sequence[Mapping[str, Any]]) -> Figure:
    names = list(found[0]["probes"][0]["measures"])
    colours = palette(names)
    with style():
        figure = Figure(figsize=(0.9 + 4.4 * len(found), 5.2), layout="constrained")
        grid = figure.subplots(2, len(found), squeeze=False, sharex="col", sharey="row")
        for column, r in enumerate(found):
            labels = [row["name"] for row in r["probes"]]
            ordered = sum(label.endswith("images") for label in labels)  # those with images of the tasks: a line
            for axes, key in zip(grid[:, column], ("level", "rho"), strict=True):
                for place, name in enumerate(names):
                    values = [[v for v in row["measures"][name][key] if v == v] for row in r["probes"]]
                    x = np.arange(len(values)) + 0.09 * (place - (len(names) - 1) / 2)
                    means = np.array([fmean(v) if v else np.nan for v in values])
                    axes.vlines(x, [min(v, default=np.nan) for v in values], [max(v, default=np.nan) for v in values],
                                color=colours[name], linewidth=1.2, alpha=0.7)  # fmt: skip
                    axes.plot(x[:ordered], means[:ordered], color=colours[name], linewidth=0.9, alpha=0.6)
                    axes.plot(x, means, MARKERS[place], color=colours[name], markersize=4.2, markeredgewidth=0,
                              label=MEASURES[name])  # fmt: skip
                ours = r["ours"]["cosine"]
                level = _mean(ours["level"]) if key == "level" else ours["agrees"]["linear_cka"]
                axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="cosine of atoms")
                axes.axvline(ordered - 0.5, color=(0.5, 0.5, 0.5, 0.5), linewidth=0.6)
                quiet_grid(axes)
            grid[0, column].set_title(IMAGES[r["images"]])
            grid[1, column].set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        grid[0, 0].set_ylabel("mean similarity")
        grid[1, 0].set_ylabel("Spearman with reference")
        handles, titles = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, titles, loc="outside upper center", ncols=4)
    return figure


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if len(values) else float("nan")
