"""The section on how far similarities move with the probe."""

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.similarity.blocks import Part
from benchmarks.similarity.measures import YARDSTICKS
from benchmarks.similarity.populations import TASKS
from benchmarks.similarity.prose import section
from benchmarks.similarity.robustness.pictures import probes_figure
from benchmarks.similarity.robustness.results import Robustness
from benchmarks.similarity.robustness.tables import mean, measures_without_data, probes

__all__ = ["robustness_part"]


def robustness_part(units: Mapping[str, Robustness]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    return section(
        "robustness/page.j2",
        results=[_finding(result) for result in results],
        draws=results[0].draws,
        places=results[0].places,
        stimuli=results[0].stimuli,
        figure=probes_figure(results),
        probes=probes(results),
        measures=measures_without_data(results),
    )


def _finding(result: Robustness) -> dict[str, Any]:
    """What the template says of one set of networks."""
    reference, *others = result.probes
    levels = []
    for yardstick in ("linear_cka", "mean_cca"):
        elsewhere = [mean(probe.measures[yardstick].level) for probe in others]
        known = [level for level in elsewhere if math.isfinite(level)]
        if known:
            at_reference = mean(reference.measures[yardstick].level)
            levels.append((YARDSTICKS[yardstick], at_reference, min(known), max(known)))
    cosine = result.ours["cosine"].agrees["linear_cka"]
    orders = [(probe.name, mean(probe.measures["linear_cka"].rho)) for probe in others]
    return {
        "tasks": TASKS[result.images],
        "networks": result.networks,
        "budget": result.budget,
        "accuracy": mean(result.accuracies),
        "reference": reference.n,
        "levels": levels,
        "cosine": cosine,
        "less_ordered": [f"{name} ({rho:.2f})" for name, rho in orders if rho < cosine],
    }
