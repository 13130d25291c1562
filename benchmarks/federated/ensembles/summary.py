"""Accuracies of ensembles over seeds: means, paired differences, and whether similarity picks better than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.ensembles.picking import PICKINGS
from fscl.report.federation.measures import worst_tenth
from fscl.similarity import Estimate, seed_interval
from fscl.text import points

__all__ = ["Difference", "Outcome", "Run", "difference", "finding", "outcomes", "over_draws"]

RESAMPLES = 10_000
DECIMALS = 6  # of an accuracy in the results
ENOUGH = 0.0005  # gain of all members, a fraction; a share of less is a share of noise


class OfPicking(TypedDict):
    """What one picking gives with one method and seed, as means over draws.

    Attributes:
        accuracy: of each client.
        worst_tenth: mean of the worst tenth of the clients of a draw.
    """

    accuracy: list[float]
    worst_tenth: float


Run = dict[str, OfPicking]  # of one method and seed, by picking


@dataclass(frozen=True)
class Difference:
    """A difference of two mean accuracies with its 95 % interval.

    Attributes:
        over: what the interval is over: ``seeds`` (t interval of n seeds), or ``clients`` (bootstrap of the n clients
            of a single seed, which says nothing of other seeds).
    """

    mean: float
    low: float
    high: float
    n: int
    over: str


@dataclass(frozen=True)
class Outcome:
    """What a picking gives with a method, as fractions.

    Attributes:
        accuracy: mean over clients.
        worst_tenth: mean of the worst tenth of the clients; of random members the mean over draws.
        gain: over each client's own network alone.
        minus_random: the same ensembles with random members taken away.
        share: of the gain of all members; None if all members gain next to nothing, or lose.
    """

    accuracy: Estimate
    worst_tenth: Estimate
    gain: float
    minus_random: Difference
    share: float | None


def over_draws(draws: NDArray[np.float64]) -> OfPicking:
    """What is kept of the accuracies of a picking: (draws, clients)."""
    return {
        "accuracy": draws.mean(0).round(DECIMALS).tolist(),
        "worst_tenth": float(np.mean([worst_tenth(row) for row in draws])),
    }


def outcomes(runs: Sequence[Run]) -> dict[str, Outcome]:
    """The outcome of each picking with one method, from its runs with several seeds.

    Only pickings that all seeds have are compared.
    """
    common = [name for name in PICKINGS if all(name in run for run in runs)]
    accuracy = {name: seed_interval(float(np.nanmean(run[name]["accuracy"])) for run in runs) for name in common}
    gain = {name: accuracy[name].mean - accuracy["base"].mean for name in common}
    return {
        name: Outcome(
            accuracy[name],
            seed_interval(run[name]["worst_tenth"] for run in runs),
            gain[name],
            difference(runs, name, "random"),
            gain[name] / gain["all"] if gain["all"] > ENOUGH else None,
        )
        for name in common
    }


def difference(runs: Sequence[Run], first: str, second: str) -> Difference:
    """The mean accuracy with one picking less that with another, on the same clients and seeds."""
    by_client = [np.array(run[first]["accuracy"]) - np.array(run[second]["accuracy"]) for run in runs]
    if len(runs) > 1:
        over_seeds = seed_interval(float(np.nanmean(one)) for one in by_client)
        return Difference(over_seeds.mean, over_seeds.low, over_seeds.high, over_seeds.n, "seeds")
    (values,) = (one[np.isfinite(one)] for one in by_client)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return Difference(float(values.mean()), float(low), float(high), len(values), "clients")


def finding(picking: str, outcomes: Sequence[Mapping[str, Outcome]]) -> str:
    """What a picking gives beside random members, in one line, from the outcomes of several methods.

    >>> def outcome(low, high):
    ...     alone, less = seed_interval([0.5]), Difference((low + high) / 2, low, high, 3, "seeds")
    ...     return {"atoms": Outcome(alone, alone, gain=-0.02, minus_random=less, share=None)}
    >>> print(finding("atoms", [outcome(0.01, 0.03), outcome(-0.01, 0.03)]))
    Members with the most similar atoms are better than random ones with 1 of 2 methods: +1.50 points on average, and
    −2.00 over the client alone
    """
    count = len(outcomes)
    differences = [outcome[picking].minus_random for outcome in outcomes]
    better, worse = (sum(sign * d.low > 0 and sign * d.high > 0 for d in differences) for sign in (1, -1))
    if worse > better:
        verdict, number = "are worse than random ones", worse
    elif better:
        verdict, number = "are better than random ones", better
    else:
        verdict, number = "are not better than random ones", count
    methods = "the one method" if count == 1 else f"{'all ' if number == count else f'{number} of '}{count} methods"
    otherwise = min(better, worse)
    methods += f", but {'worse' if better >= worse else 'better'} with {otherwise}" if otherwise else ""
    less_random = points(float(np.mean([d.mean for d in differences])), sign=True)
    gain = points(float(np.mean([outcome[picking].gain for outcome in outcomes])), sign=True)
    return (
        f"Members with the {PICKINGS[picking]} {verdict} with {methods}: {less_random} points on average, and {gain} "
        "over the client alone"
    )
