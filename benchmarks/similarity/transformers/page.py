"""The section on networks of linear layers and attention."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.similarity.blocks import Part, Table
from benchmarks.similarity.formats import interval, text
from benchmarks.similarity.measures import YARDSTICKS
from benchmarks.similarity.populations import TASKS
from benchmarks.similarity.prose import section
from benchmarks.similarity.transformers.measure import METHODS
from benchmarks.similarity.transformers.networks import NETWORKS, REGIMES
from benchmarks.similarity.transformers.results import AllLayers

__all__ = ["transformers_part"]

AGAINST = ("linear_cka", "mean_cca")
GOAL = 0.97  # of networks that were fine-tuned from one start, and of snapshots


def transformers_part(units: Mapping[str, AllLayers]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    regimes = [regime for regime in REGIMES if _of(results, regime)]
    return section(
        "transformers/page.j2",
        regimes=[
            {
                "title": REGIMES[r],
                "atoms": _medians(results, r, "atoms_depth"),
                "leaves": _medians(results, r, "leaves_three"),
                "own_readings": [_medians(results, r, f"leaves_{name}")[i] for i, name in enumerate(("cka", "cca"))],
                "yardsticks": median(result.yardsticks_agree.pearson.r for result in _of(results, r)),
            }
            for r in regimes
        ],
        goal=GOAL,
        met=[_met(results, method) for method in ("atoms_depth", "leaves_three")],
        populations=len(results),
        networks=sorted({result.networks for result in results}),
        probe=results[0].probe,
        compared=min(result.compared_share for result in results),
        explained=min(result.explained for result in results if result.regime != "starts"),
        groups=sorted({tuple(result.groups) for result in results if result.regime == "starts"}),
        every_method=_every_method(results, regimes),
        by_population=_by_population(results),
        by_layer=_by_layer(results),
    )


def _of(results: Sequence[AllLayers], regime: str) -> list[AllLayers]:
    return [result for result in results if result.regime == regime]


def _medians(results: Sequence[AllLayers], regime: str, method: str) -> list[float]:
    return [median(result.pearson(method, yardstick) for result in _of(results, regime)) for yardstick in AGAINST]


def _met(results: Sequence[AllLayers], method: str) -> dict[str, Any]:
    """In how many populations of one start a method reaches the goal, with both yardsticks and with each."""
    of_one_start = [result for result in results if result.regime != "starts"]
    reached = [[result.pearson(method, yardstick) >= GOAL for yardstick in AGAINST] for result in of_one_start]
    return {
        "title": METHODS[method][0],
        "both": sum(map(all, reached)),
        "each": [sum(column) for column in zip(*reached, strict=True)],
        "cases": len(reached),
    }


def _every_method(results: Sequence[AllLayers], regimes: Sequence[str]) -> Table:
    """Median, least and largest Pearson correlation over the populations of a regime, then median Spearman."""
    header = [f"{REGIMES[regime]}: {YARDSTICKS[yardstick]}" for regime in regimes for yardstick in AGAINST]
    rows = []
    for method, (title, needs) in METHODS.items():
        cells = []
        for regime in regimes:
            for yardstick in AGAINST:
                values = [result.pearson(method, yardstick) for result in _of(results, regime)]
                ranks = [result.spearman(method, yardstick) for result in _of(results, regime)]
                cells.append(f"{interval(median(values), min(values), max(values))} / {text(median(ranks))}")
        rows.append([title, needs, *cells])
    agree = [[r.yardsticks_agree.pearson.r for r in _of(results, regime)] for regime in regimes]
    last = [interval(median(values), min(values), max(values)) for values in agree for _ in AGAINST]
    return Table(["method", "needs", *header], [*rows, ["the two yardsticks with each other", "data", *last]])


def _by_population(results: Sequence[AllLayers]) -> Table:
    """How each population came about, and the correlation of two methods, each with its interval over networks."""
    header = ["networks", "tasks", "architecture", "n", "accuracy, %", "explained, %", "training, s"]
    shown = [(method, yardstick) for method in ("atoms_depth", "leaves_three") for yardstick in AGAINST]
    header += [f"{METHODS[method][0]}: {YARDSTICKS[yardstick]}" for method, yardstick in shown]
    rows = []
    for result in results:
        cells = [REGIMES[result.regime], TASKS[result.images], NETWORKS[result.architecture], str(result.networks)]
        cells += [text(100 * fmean(result.accuracies), ".1f"), text(100 * result.explained, ".1f")]
        cells.append(text(result.training_seconds, ".0f"))
        for method, yardstick in shown:
            found = result.agreement[method][yardstick].pearson
            cells.append(interval(found.r, found.low, found.high))
        rows.append(cells)
    return Table(header, rows)


def _by_layer(results: Sequence[AllLayers]) -> Table:
    """Median, least and largest over the layers of a network."""
    rows = []
    for result in results:
        cells = [REGIMES[result.regime], TASKS[result.images], NETWORKS[result.architecture], str(len(result.layers))]
        for yardstick in AGAINST:
            values = np.array(result.by_layer[yardstick])
            values = values[np.isfinite(values)]
            cells.append(interval(float(np.median(values)), float(values.min()), float(values.max())))
        rows.append(cells)
    return Table(["networks", "tasks", "architecture", "layers", *(YARDSTICKS[y] for y in AGAINST)], rows)
