"""What the page shows of the agreement with CKA and CCA."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.similarity.agreement_pictures import ladder, pairs
from benchmarks.similarity.agreement_tables import (
    GOALS,
    IMAGES,
    LIKE,
    SHORT,
    SHOWN,
    all_methods,
    by_population,
    correlations,
    costs,
    layers,
    medians,
    of_regime,
    summary,
)
from benchmarks.similarity.contents import Block, Goal, Part, Picture
from benchmarks.similarity.populations import REGIMES

__all__ = ["part"]

Results = Sequence[Mapping[str, Any]]


def part(units: Mapping[str, Mapping[str, Any]]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    networks = sorted({r["networks"] for r in results})
    counted = ", ".join(f"{n} networks, {n * (n - 1) // 2} pairs" for n in networks)
    regimes = "; ".join(f"**{SHORT[key]}**: {text}" for key, text in REGIMES.items() if any(of_regime(results, key)))
    blocks: list[Block] = [
        f"A population is {counted}, over shared coefficients, which are learned on the first task and frozen. "
        f"{regimes}.",
        "The yardsticks are computed layer by layer on what convolutions give before normalisation, positions as "
        f"samples, for {results[0]['probe']:,} test images of all tasks alike; a network's is the mean over its "
        "layers. Each method is correlated with each yardstick over all pairs of a population. Intervals are at 95 % "
        "and over networks, not over pairs, which share networks.",
        summary(results),
        Picture(
            "agreement-ladder", ladder(results), "What each method needs, and how far it agrees",
            "A dot is a population: its Pearson correlation with linear CKA (circles) and with mean CCA (squares); at "
            "the left edge, less than the axis shows. The dashed line is what was to be reached. Methods are ordered "
            "by what they need; the last two alone see data.", wide=True,
        ),
    ]  # fmt: skip
    for images in dict.fromkeys(r["images"] for r in results):
        chosen = [r for r in results if r["images"] == images]
        blocks.append(Picture(
            f"agreement-pairs-{images}", pairs(chosen), f"Pair by pair: {IMAGES[images]}",
            "A dot is a pair of networks: their similarity without data (across) and their linear CKA on real images "
            "(up).", wide=True,
        ))  # fmt: skip
    blocks += [_yardsticks(results), medians(results)]
    blocks += [by_population(results, yardstick) for yardstick in LIKE]
    blocks += [all_methods(results, key) for key in REGIMES if any(of_regime(results, key))]
    blocks += [layers(results), costs(results)]
    return Part("Agreement", _lead(results), blocks, _goals(results))


def _lead(results: Results) -> str:
    ways = (
        ("atoms alone", "cosine_depth"),
        ("moments", "moments"),
        ("responses to recalled images", "recalled"),
        ("three readings of these", "recalled_three"),
    )
    sentences = []
    for key in REGIMES:
        if chosen := of_regime(results, key):
            said = [
                f"{name} **{median(correlations(chosen, method, 'linear_cka')):.2f} / "
                f"{median(correlations(chosen, method, 'mean_cca')):.2f}**"
                for name, method in ways
            ]
            sentences.append(f"{REGIMES[key]}: {', '.join(said)}")
    return (
        "Correlation with linear CKA / mean CCA over all pairs, medians over the populations of a kind "
        f"({len(results)} in all). {'. '.join(s[0].upper() + s[1:] for s in sentences)}."
    )


def _goals(results: Results) -> list[Goal]:
    found = []
    for key, goal in GOALS.items():
        chosen = of_regime(results, key)
        ways = {name: (method, method) for name, method in SHOWN.items()} | {"like": tuple(LIKE.values())}
        reached = {}
        for name, (for_cka, for_cca) in ways.items():
            pairs = zip(
                correlations(chosen, for_cka, "linear_cka"), correlations(chosen, for_cca, "mean_cca"), strict=True
            )
            reached[name] = f"{sum(min(both) >= goal for both in pairs)} of {len(chosen)}"
        if chosen:
            what = f"Agreement, tasks {SHORT[key]}" if key != "snapshots" else "Agreement, snapshots of training"
            found.append(Goal(f"{what}: {goal:.2f} with both CKA and CCA, in each population", reached))
    return found


def _yardsticks(results: Results) -> str:
    ranges = ", ".join(
        f"{_range([r['yardsticks_agree']['pearson']['r'] for r in of_regime(results, key)])} ({SHORT[key]})"
        for key in REGIMES
        if any(of_regime(results, key))
    )
    bounds = ", ".join(
        f"{_range([_bound(r) for r in of_regime(results, key)], 3)} ({SHORT[key]})"
        for key in REGIMES
        if any(of_regime(results, key))
    )
    return (
        f"**The yardsticks do not agree with each other either.** Linear CKA and mean CCA, on the same real images, "
        f"correlate at {ranges}. CKA weighs directions by their variance, CCA does not. A number that agrees with both "
        f"alike reaches at most the root of half of one plus their correlation: {bounds}. What is left between that "
        "and the goal is all that images which are not real may cost; with a number for either yardstick, in the last "
        "row, there is no such limit."
    )


def _bound(result: Mapping[str, Any]) -> float:
    """The most that the least correlation of any one variable with both yardsticks can be."""
    return float(np.sqrt((1 + result["yardsticks_agree"]["pearson"]["r"]) / 2))


def _range(values: Sequence[float], digits: int = 2) -> str:
    ends = dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values)))
    return " to ".join(ends)
