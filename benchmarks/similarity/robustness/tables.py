"""Tables of how far similarities move with the probe."""

from collections.abc import Sequence
from statistics import fmean

from benchmarks.similarity.blocks import Table
from benchmarks.similarity.measures import MEASURES, YARDSTICKS
from benchmarks.similarity.populations import TASKS
from benchmarks.similarity.robustness.results import Robustness

__all__ = ["mean", "measures_without_data", "probes"]


def probes(results: Sequence[Robustness]) -> Table:
    """Every yardstick on every probe."""
    rows = []
    for result in results:
        for probe in result.probes:
            name = probe.name + (" (reference)" if probe is result.probes[0] else "")
            cells = [
                f"{mean(draws.level):.2f} / {mean(draws.shift):.2f} / {mean(draws.rho):.2f}"
                for draws in probe.measures.values()
            ]
            rows.append([TASKS[result.images], name, *cells])
    return Table(["networks", "probe", *(YARDSTICKS[name] for name in results[0].probes[0].measures)], rows)


def measures_without_data(results: Sequence[Robustness]) -> Table:
    """The five measures: how far they move with their seed, and how right they are."""
    rows = []
    for result in results:
        for measure in MEASURES:
            values = result.ours[measure.robustness]
            moved = [f"{mean(values.shift):.4f}", f"{mean(values.rho):.3f}"]
            if measure.chosen == "nothing":
                moved = ["0, by construction", "1, by construction"]
            agrees = [f"{values.agrees[yardstick]:.2f}" for yardstick in ("linear_cka", "mean_cca")]
            level = f"{mean(values.level):.2f}"
            rows.append([TASKS[result.images], measure.title, measure.chosen, level, *moved, *agrees])
    header = ["networks", "comparison", "what is chosen", "mean similarity", "mean absolute shift"]
    return Table([*header, "Spearman with first seed", "with linear CKA", "with mean CCA"], rows)


def mean(values: Sequence[float]) -> float:
    """NaN of no values."""
    return fmean(values) if values else float("nan")
