"""The section on where comparing atoms misleads, and what warns of it."""

from collections.abc import Mapping

from benchmarks.similarity.blocks import Part
from benchmarks.similarity.failures.pictures import explained_figure
from benchmarks.similarity.failures.results import MovedCoefficients, Starts
from benchmarks.similarity.failures.tables import REGIMES_SHOWN, mean_level, of_regime, rates, rewritten
from benchmarks.similarity.populations import REGIMES
from benchmarks.similarity.prose import section

__all__ = ["failures_part"]


def failures_part(units: Mapping[str, Starts | MovedCoefficients]) -> Part:
    """The section, from the results of its units by name."""
    starts = next((result for result in units.values() if isinstance(result, Starts)), None)
    runs = [result for result in units.values() if isinstance(result, MovedCoefficients)]
    moved = [
        (REGIMES[regime].short, mean_level(of_this, 0), mean_level(of_this, -1))
        for regime in REGIMES_SHOWN
        if (of_this := of_regime(runs, regime))
    ]
    return section(
        "failures/page.j2",
        starts=starts,
        rewritten=rewritten(starts) if starts else None,
        moved=moved,
        runs=runs,
        figure=explained_figure(runs) if runs else None,
        rates=rates(runs) if runs else None,
    )
