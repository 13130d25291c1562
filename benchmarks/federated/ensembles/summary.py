"""Accuracies of ensembles over seeds: means, paired differences, and whether similarity picks better than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.ensembles.picking import PICKINGS
from fscl.report.federation.measures import worst_tenth
from fscl.similarity import Estimate, seed_interval
from fscl.text import points

__all__ = ["Difference", "Outcome", "difference", "finding", "measured", "outcomes"]

RESAMPLES = 10_000
ENOUGH = 0.0005  # gain of all members, a fraction; a share of less is a share of noise

Run = dict[str, list[list[float]]]  # of one seed: accuracies (draws, clients) by picking
Array = NDArray[np.float64]


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


def measured(run: Run, picking: str) -> tuple[float, float]:
    """The mean accuracy over clients, and that of the worst tenth; means over the draws."""
    draws = np.array(run[picking])
    return float(np.nanmean(draws)), float(np.mean([worst_tenth(row) for row in draws]))


def outcomes(runs: Sequence[Run]) -> dict[str, Outcome]:
    """The outcome of each picking with one method, from its runs with several seeds.

    Only pickings that all seeds have are compared.
    """
    common = [name for name in PICKINGS if all(name in run for run in runs)]
    values = {name: [measured(run, name) for run in runs] for name in common}
    mean = {name: float(np.mean([accuracy for accuracy, _ in pairs])) for name, pairs in values.items()}
    of_all = mean["all"] - mean["base"]
    return {
        name: Outcome(
            seed_interval(accuracy for accuracy, _ in pairs),
            seed_interval(worst for _, worst in pairs),
            mean[name] - mean["base"],
            difference(runs, name, "random"),
            (mean[name] - mean["base"]) / of_all if of_all > ENOUGH else None,
        )
        for name, pairs in values.items()
    }


def difference(runs: Sequence[Run], first: str, second: str) -> Difference:
    """The mean accuracy with one picking less that with another, on the same clients and seeds."""
    by_client = [np.nanmean(run[first], axis=0) - np.nanmean(run[second], axis=0) for run in runs]
    if len(runs) > 1:
        over_seeds = seed_interval(float(np.nanmean(one)) for one in by_client)
        return Difference(over_seeds.mean, over_seeds.low, over_seeds.high, over_seeds.n, "seeds")
    (values,) = (one[np.isfinite(one)] for one in by_client)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return Difference(float(values.mean()), float(low), float(high), len(values), "clients")


def finding(differences: Sequence[Difference], gains: Sequence[float]) -> str:
    """The answer in one line, from the differences ``atoms - random`` of the methods and the gains by atoms.

    >>> better, unclear = Difference(0.02, 0.01, 0.03, 3, "seeds"), Difference(0.01, -0.01, 0.03, 3, "seeds")
    >>> print(finding([better, unclear], [0.01, -0.02]))
    Members picked by atoms are better than random ones with 1 of 2 methods: +1.50 points on average, and −0.50 over the
    client alone
    """
    count = len(differences)
    better, worse = (sum(sign * d.low > 0 and sign * d.high > 0 for d in differences) for sign in (1, -1))
    if not count:
        return "No members can be picked by atoms: with every method all clients have the same filters"
    if worse > better:
        verdict, number = "are worse than random ones", worse
    elif better:
        verdict, number = "are better than random ones", better
    else:
        verdict, number = "are not better than random ones", count
    methods = "the one method" if count == 1 else f"{'all ' if number == count else f'{number} of '}{count} methods"
    otherwise = min(better, worse)
    methods += f", but {'worse' if better >= worse else 'better'} with {otherwise}" if otherwise else ""
    less_random, gain = (points(float(np.mean(values)), sign=True) for values in ([d.mean for d in differences], gains))
    return (
        f"Members picked by atoms {verdict} with {methods}: {less_random} points on average, and {gain} over the "
        "client alone"
    )
