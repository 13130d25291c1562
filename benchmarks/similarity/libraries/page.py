"""The section on files of other libraries."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.similarity.blocks import Part, Table
from benchmarks.similarity.formats import count, interval, listed, seconds, text
from benchmarks.similarity.lab import DATA
from benchmarks.similarity.libraries.networks import LIBRARIES
from benchmarks.similarity.libraries.results import Recovered
from benchmarks.similarity.prose import section
from benchmarks.similarity.units import Spread
from fscl.text import percent

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
        compared=[percent(pick(result.compared_share for result in results)) for pick in (min, max)],
        missing=[library.title for name, library in LIBRARIES.items() if name not in measured],
        by_library=_by_library(results),
    )


def _by_library(results: Sequence[Recovered]) -> Table:
    header = ["written by", "files", "network", "parameters", "accuracy, %", "groups that were found"]
    header += ["relatedness within a start", "across starts", "explained", "parameters compared", "left out", "time"]
    rows = []
    for result in results:
        library = LIBRARIES[result.library]
        sizes = " + ".join(str(len(group)) for group in result.groups)
        rows.append([
            f"{library.title} {result.version}",
            library.files,
            library.network,
            f"{result.parameters:,}",
            text(100 * fmean(result.accuracies), ".1f"),
            f"{'the starts' if result.exact else 'not the starts'}: {sizes}",
            _ranged(result.within),
            _ranged(result.across),
            percent(result.explained),
            percent(result.compared_share),
            ", ".join(f"`{layer}`" for layer in result.left_out) or "nothing",
            seconds(result.seconds),
        ])  # fmt: skip
    return Table(header, rows)


def _ranged(values: Spread) -> str:
    return interval(values.mean, values.low, values.high, "z.3f")
