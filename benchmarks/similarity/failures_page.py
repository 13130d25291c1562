"""What the page shows of where comparing atoms misleads, and of what warns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.similarity.contents import Block, Part, Picture, Table
from benchmarks.similarity.failures import REGIMES, spread
from fscl.plots.figures import MARKERS, palette, quiet_grid, style

__all__ = ["part"]


def part(results: Mapping[str, Mapping[str, Any]]) -> Part:
    """The section, from the results of its units by name."""
    started = results.get("failures-starts")
    runs = [result for name, result in results.items() if name != "failures-starts"]
    points: list[str] = []
    blocks: list[Block] = [
        "The last column of the table is what tells the user. A bank **refuses** networks of other coefficients by "
        "their fingerprint. `joint_decompose` gives the **relatedness** of networks and the **explained** share of "
        "their filters. Metrics of any strategy emit the share that is kept when filters are **projected** on the "
        "first network's coefficients. An explained share counts energy, which a few atoms may hold in any two "
        "networks; relatedness takes off what chance explains."
    ]
    if started:
        points += _points_of_starts(started)
        blocks.append(_table_of_starts(started))
    for regime, title in REGIMES.items():
        if chosen := [r for r in runs if r["regime"] == regime]:
            still, moved = (_over(chosen, which) for which in (0, -1))
            points.append(
                f"**Much-trained coefficients**, tasks {title}: where they are trained most, those of the first "
                f"network explain {_text(moved['explained'])} of the filters. The Spearman correlation with CKA is "
                f"{_text(moved['first']['rho'])} in place of {_text(still['first']['rho'])}, the mean difference "
                f"from CKA {_text(moved['first']['difference'])} in place of {_text(still['first']['difference'])}."
            )
    if runs:
        caption = (
            "A dot is a population, whose cosines are measured in three ways; lines follow one start from coefficients "
            "that rest to those that are trained most. The share that the first network's coefficients explain falls "
            f"to the right. {_runs(runs)}"
        )
        title = "Agreement with CKA as coefficients move"
        blocks += [Picture("failures-explained", _figure(runs), title, caption, wide=True), _table_of_rates(runs)]
    lead = (
        "Atoms can be compared where networks share their start, their coefficients and the order of their channels. "
        "Each case here breaks one of these, and says what tells the user."
    )
    return Part("Where it misleads", lead, blocks, points=points)


def _points_of_starts(r: Mapping[str, Any]) -> list[str]:
    same, other = (r["pairs"].get(kind) for kind in ("same start, other task", "other start, same task"))
    gauge, permuted = r["gauge"], r["permuted"]
    found = []
    if same and other:
        found.append(
            "**Unrelated starts.** Networks of other random starts that learned the same task have a CKA of "
            f"{_text(other['cka']['mean'])} and a cosine of filters of {_text(other['filters']['mean'])}. Their "
            f"relatedness is {_text(other['related']['mean'])}; within a start it is {_text(same['related']['mean'])}."
        )
    found.append(
        "**Another gauge**, outputs the same, moves the plain cosine of a pair by "
        f"{_text(gauge['cosine']['mean'])} on average and its Spearman correlation with CKA from "
        f"{_text(gauge['order_before'])} to as little as {_text(gauge['order']['low'])}. The metric `filter` moves by "
        f"{_text(gauge['filter']['high'], '.0e')} at most."
    )
    found.append(
        f"**Permuted channels**, outputs the same: CKA {_text(permuted['cka']['mean'])}, cosine of filters "
        f"{_text(permuted['filters']['mean'])}."
    )
    return found


def _warnings(values: Mapping[str, Any], refused: bool) -> str:
    names = (("related", "relatedness"), ("explained", "explained"), ("projected", "projected"))
    told = [f"{title} {_text(values[name]['mean'])}" for name, title in names]
    return ", ".join([*told, "a bank refuses" if refused else "a bank takes both"])


def _table_of_starts(r: Mapping[str, Any]) -> Table:
    cosines = ("stored", "joint", "filters", "cka")
    rows = []
    for kind, values in r["pairs"].items():
        refused = r["refused"] and kind.startswith("other start")
        shown = [_ranged(values[name]) for name in cosines]
        rows.append([f"{kind} ({values['cka']['n']} pairs)", "–", *shown, _warnings(values, refused)])
    gauge, permuted = r["gauge"], r["permuted"]
    pairs = gauge["networks"] * (gauge["networks"] - 1) // 2
    outputs, moved = (_text(gauge[name]["high"], ".0e") for name in ("outputs", "filter"))
    rows.append([
        f"all networks of one start in another gauge, the same for all ({gauge['draws']} gauges, {pairs} pairs)",
        outputs, f"{_ranged(gauge['level'])}, was {_text(gauge['level_before'])}", "the same", "the same",
        f"{_text(gauge['cka'])}, the same",
        f"nothing; but the metric `filter` moves by at most {moved}, and `freeze_coefficients` fixes the gauge",
    ])  # fmt: skip
    rows.append([
        f"one network against itself in another gauge ({gauge['draws']} gauges)", outputs, _ranged(gauge["alone"]),
        _ranged(gauge["alone_joint"]), "the same", _ranged(gauge["alone_cka"]),
        "a bank refuses" if gauge["alone_refused"]["low"] == 1 else "a bank takes both",
    ])  # fmt: skip
    rows.append([
        f"one network against itself, channels permuted ({permuted['draws']} orders)",
        _text(permuted["outputs"]["high"], ".0e"), *(_ranged(permuted[name]) for name in cosines),
        _warnings(permuted, permuted["refused"]["low"] == 1),
    ])  # fmt: skip
    order = r["across"]["order"]
    caption = (
        f"Mean [least, largest]; all cosines over depth. {r['networks']} networks: {r['tasks']} rotations of "
        f"Fashion-MNIST from each of {r['starts']} random starts, the first task from scratch, the others from it "
        f"with coefficients frozen ({r['budget']['images']:,} images, {r['budget']['first_epochs']} and "
        f"{r['budget']['epochs']} epochs); accuracy {_text(100 * float(np.mean(r['accuracies'])), '.0f')} % on "
        f"average; CKA on {r['probe']:,} test images. Outputs: the largest difference, in deviations of the outputs, "
        "in float64. "
        "Atoms as stored are compared whatever coefficients they belong to. Over the "
        f"{r['across']['pairs']} pairs of other starts the Spearman correlation with CKA is {_text(order['stored'])} "
        f"for atoms as stored, {_text(order['joint'])} for joint ones, {_text(order['filters'])} for filters; over the "
        f"{pairs} of one start, {_text(gauge['order_before'])} before and {_ranged(gauge['order'])} in other gauges."
    )
    header = ["what was done", "outputs move by", "atoms as stored", "atoms of a joint decomposition", "whole filters"]
    return Table(caption, [*header, "CKA", "what warns"], rows)


def _table_of_rates(runs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for regime, title in REGIMES.items():
        chosen = [r for r in runs if r["regime"] == regime]
        for place, level in enumerate(chosen[0]["levels"] if chosen else []):
            values = _over(chosen, place)
            rate = f"{100 * level['rate']:.0f} %" + (f", {level['times']} times as long" if level["times"] > 1 else "")
            cells = [title, rate, _text(100 * values["accuracy"], ".1f")]
            cells += [_text(values[key]) for key in ("explained", "least_explained", "joint_explained", "cka")]
            cells += [_text(values["first"][key]) for key in ("level", "difference")]
            for name, key in (("first", "rho"), ("first", "rho_cca"), ("joint", "rho"), ("filters", "rho")):
                cells.append(_ranged(spread([r["levels"][place]["ours"][name][key] for r in chosen])))
            rows.append(cells)
    header = [
        "tasks", "rate of the coefficients", "accuracy (%)", "explained", "least of any layer", "explained, joint",
        "CKA", "cosine", "difference from CKA", "Spearman with CKA", "with CCA", "of joint atoms with CKA",
        "of filters with CKA",
    ]  # fmt: skip
    caption = (
        "Coefficients that learn at a share of the atoms' rate. The cosine, over depth, is that of the filters as "
        "projected on the first network's coefficients, as the metrics of any strategy compare them; explained is the "
        "share that this keeps, mean over networks but the first and over layers; the last two columns leave less out. "
        f"Means [least, largest] over starts. {_runs(runs)}"
    )
    return Table(caption, header, rows, "Every rate of the coefficients")


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    r = runs[0]
    return (
        f"{r['networks']} rotations of Fashion-MNIST a population ({r['networks'] * (r['networks'] - 1) // 2} pairs), "
        f"{r['budget']['images']:,} images and {r['budget']['epochs']} epochs a task; seeds of the start "
        f"{', '.join(str(s) for s in sorted({run['seed'] for run in runs}))}; CKA on {r['probe']:,} test images."
    )


def _figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    names = {"first": "on the first network's coefficients", "joint": "joint decomposition", "filters": "whole filters"}
    colours = palette(list(names.values()))
    shown = [regime for regime in REGIMES if any(r["regime"] == regime for r in runs)]
    with style():
        figure = Figure(figsize=(0.8 + 3.3 * len(shown), 5.0), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False, sharex="col", sharey="row")
        for column, regime in enumerate(shown):
            for r in (r for r in runs if r["regime"] == regime):
                x = [level["explained"] for level in r["levels"]]
                for place, (name, title) in enumerate(names.items()):
                    for axes, key in zip(grid[:, column], ("rho", "difference"), strict=True):
                        axes.plot(
                            x, [level["ours"][name][key] for level in r["levels"]], color=colours[title], linewidth=0.9,
                            marker=MARKERS[place], markersize=4, markeredgewidth=0, alpha=0.85, label=title,
                        )  # fmt: skip
            grid[0, column].set_title(REGIMES[regime])
            grid[0, column].invert_xaxis()
            grid[1, column].set_xlabel("explained by the first network's coefficients")
            for axes in grid[:, column]:
                quiet_grid(axes)
        grid[0, 0].set_ylabel("Spearman with CKA")
        grid[1, 0].set_ylabel("mean difference from CKA")
        handles, titles = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles[: len(names)], titles[: len(names)], loc="outside upper center", ncols=len(names))
    return figure


def _over(runs: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    """One level's numbers, mean over starts."""
    levels = [r["levels"][place] for r in runs]
    plain = {key: float(np.mean([level[key] for level in levels])) for key in levels[0] if key != "ours"}
    ours = levels[0]["ours"]
    return plain | {
        name: {key: float(np.mean([level["ours"][name][key] for level in levels])) for key in ours[name]}
        for name in ours
    }


def _text(value: float, form: str = ".2f") -> str:
    return format(value, form) if math.isfinite(value) else "undefined"


def _ranged(values: Mapping[str, float]) -> str:
    mean, low, high = (_text(values[key]) for key in ("mean", "low", "high"))
    return mean if mean == low == high else f"{mean} [{low}, {high}]"
