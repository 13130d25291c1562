"""The parts of a results page that federations have, from a committed report."""

from collections.abc import Sequence

from fscl.report.federation.summary import MethodRuns, federation_rows
from fscl.report.federation.table import FEDERATION_COLUMNS
from fscl.text import DASH

__all__ = ["pictures", "table"]

# columns of the summary table; those in which no method has a value are left out
SHOWN = ("strategy", "seeds", "accuracy", "against_best", "p", "worst_tenth", "bytes_in_all", "reached", "rand_index")


def table(groups: Sequence[MethodRuns]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the summary table."""
    rows = federation_rows(groups)
    columns = [FEDERATION_COLUMNS[name] for name in SHOWN]
    columns = [column for column in columns if any(column.cell(row) != DASH for row in rows)]
    return [column.heading for column in columns], [[column.cell(row) for column in columns] for row in rows]


def pictures(benchmark: str, title: str, reports: str) -> list[str]:
    """Accuracy against bytes, as lines of Markdown.

    Args:
        benchmark: name of the report's folder.
        title: of the benchmark.
        reports: path of all reports, seen from the page.
    """
    file = f"{reports}/{benchmark}/figures/{benchmark.replace('_', '-')}-by-bytes.png"
    return [
        "## Accuracy and bytes",
        "",
        f"![Accuracy by megabytes sent on {title}]({file})",
        "",
        "Mean over clients of the accuracy on their own test images, against what was sent in both directions for "
        "training until then, with Flower's headers. The axis is logarithmic. Lines are means over seeds.",
    ]
