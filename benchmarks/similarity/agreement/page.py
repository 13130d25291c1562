"""The section on agreement with CKA and CCA."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.similarity.agreement.pictures import ladder, pairs
from benchmarks.similarity.agreement.results import Agreement
from benchmarks.similarity.agreement.tables import (
    GOALS,
    ON_RECALLED,
    all_yardsticks,
    by_layer,
    by_population,
    correlations,
    costs,
    every_method,
    of_regime,
    regimes_of,
    summary,
)
from benchmarks.similarity.blocks import Goal, Part, Tally
from benchmarks.similarity.measures import LIKE, MEASURES, YARDSTICKS
from benchmarks.similarity.populations import REGIMES, TASKS
from benchmarks.similarity.prose import section

__all__ = ["agreement_part"]

IN_LEAD = {  # by what the lead calls it
    "atoms alone": "cosine_depth",
    "moments": "moments",
    "responses to recalled images": "recalled",
    "three readings of these": "recalled_three",
}


def agreement_part(units: Mapping[str, Agreement]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    return section(
        "agreement/page.j2",
        goals=_goals(results),
        populations=len(results),
        networks=sorted({result.networks for result in results}),
        probe=results[0].probe,
        regimes=[_regime(of_regime(results, regime), regime) for regime in regimes_of(results)],
        summary=summary(results),
        ladder=ladder(results),
        images=[
            (images, TASKS[images], pairs([result for result in results if result.images == images]))
            for images in dict.fromkeys(result.images for result in results)
        ],
        every_method=every_method(results),
        by_population=[(YARDSTICKS[yardstick], by_population(results, yardstick)) for yardstick in ON_RECALLED],
        by_layer=by_layer(results),
        costs=costs(results),
        mean_networks=fmean(result.networks for result in results),
    )


def _regime(results: Sequence[Agreement], regime: str) -> dict[str, Any]:
    """What the template says of one regime."""
    between = [result.yardsticks_agree.pearson.r for result in results]
    bounds = [_bound(result) for result in results]
    return {
        "title": REGIMES[regime].title,
        "short": REGIMES[regime].short,
        "populations": len(results),
        "medians": {
            words: [median(correlations(results, method, yardstick)) for yardstick in ON_RECALLED]
            for words, method in IN_LEAD.items()
        },
        "between_yardsticks": (min(between), max(between)),
        "bound": (min(bounds), max(bounds)),
        "all_yardsticks": all_yardsticks(results),
    }


def _bound(result: Agreement) -> float:
    """The largest value that the smaller of any measure's correlations with the two yardsticks can have."""
    return math.sqrt((1 + result.yardsticks_agree.pearson.r) / 2)


def _goals(results: Sequence[Agreement]) -> list[Goal]:
    methods = {measure.title: dict.fromkeys(ON_RECALLED, measure.agreement) for measure in MEASURES}
    methods[LIKE] = ON_RECALLED
    goals = []
    for regime in regimes_of(results):
        least, of_this = GOALS[regime], of_regime(results, regime)
        reached = {
            title: Tally(
                sum(all(result.pearson(method[y], y) >= least for y in ON_RECALLED) for result in of_this),
                len(of_this),
            )
            for title, method in methods.items()
        }
        tasks = "snapshots of training" if regime == "snapshots" else f"tasks {REGIMES[regime].short}"
        goals.append(Goal(f"Agreement, {tasks}: {least:.2f} with both CKA and CCA, in each population", reached))
    return goals
