"""The section on files of other libraries."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.similarity.blocks import Part, Table
from benchmarks.similarity.formats import count, listed, ranged, seconds, text
from benchmarks.similarity.lab import DATA
from benchmarks.similarity.libraries.networks import LIBRARIES
from benchmarks.similarity.libraries.results import Recovered
from benchmarks.similarity.prose import section

__all__ = ["libraries_part"]


def libraries_part(units: Mapping[str, Recovered]) -> Part:
    """The section, from the results of its units by name."""
    results = list(units.values())
    measured = {result.library for result in results}
    return section(
        "libraries/page.j2",
        exact=sum(result.exact for result in results),
        populations=len(results),
        sizes=sorted({count(len(result.networks), "network") for result in results}),
        starts=sorted({len(result.starts) for result in results}),
        images=listed(sorted({DATA[result.images] for result in results})),
        compared=[pick(result.compared_share for result in results) for pick in (min, max)],
        within=min(result.within.low for result in results),
        across=max(result.across.high for result in results),
        missing=[library.title for name, library in LIBRARIES.items() if name not in measured],
        by_library=_by_library(results),
    )


def _by_library(results: Sequence[Recovered]) -> Table:
    header = ["written by", "files", "network", "parameters", "accuracy of starts, %", "accuracy, %"]
    header += ["networks found together", "relatedness within a start", "across starts", "explained, %"]
    header += ["parameters compared, %", "left out", "command"]
    rows = []
    for result in results:
        library = LIBRARIES[result.library]
        sizes = " + ".join(str(len(group)) for group in result.groups)
        rows.append([
            f"{library.title} {result.version}",
            library.files,
            library.network,
            f"{result.parameters:,}",
            text(100 * fmean(result.start_accuracies), ".1f"),
            text(100 * fmean(result.accuracies), ".1f"),
            f"{sizes}, {'the starts' if result.exact else 'not the starts'}",
            ranged(result.within),
            ranged(result.across),
            text(100 * result.explained, ".1f"),
            text(100 * result.compared_share, ".1f"),
            ", ".join(f"`{layer}`" for layer in result.left_out) or "nothing",
            seconds(result.seconds),
        ])  # fmt: skip
    return Table(header, rows)
