"""What comparing networks costs: the measurements of ``python -m benchmarks.speed``, read from where it wrote them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.similarity.contents import Block, Part, Table
from fscl.errors import FsclError

__all__ = ["cost_part"]

METHODS = {
    "atoms": "cosine of atoms",
    "minibatch_cka": "unbiased minibatch CKA",
    "linear_cka": "linear CKA",
    "svcca": "SVCCA",
}
Rows = Sequence[Mapping[str, Any]]


def cost_part(file: Path) -> Part:
    """The page's section.

    Args:
        file: ``results.json`` of ``python -m benchmarks.speed``, with its similarity measured.

    Raises:
        FsclError: the file cannot be read, or lacks what was measured of similarity.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["similarity"]
        rows = [row for row in found["rows"] if row["method"] in METHODS]
        return Part("Cost", _lead(rows), _blocks(found, rows))
    except OSError as error:
        raise FsclError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FsclError(f"{file}: no similarity measured by python -m benchmarks.speed in it ({error!r})") from error


def _blocks(found: Mapping[str, Any], rows: Rows) -> list[Block]:
    cells = [
        [
            f"{row['networks']:,} ({row['pairs']:,} pairs)",
            METHODS[row["method"]],
            _seconds(row["seconds"]["median"]) + ("*" if row["extrapolated"] else ""),
            f"{row['flops']:.1e}",
            "1" if row["method"] == "atoms" else _times(row["times_atoms"]),
            _seconds(row["with_features"]["seconds"]) + "*" if row["with_features"] else "takes none",
        ]
        for row in sorted(rows, key=lambda row: (row["networks"], list(METHODS).index(row["method"])))
    ]
    header = ["networks", "method", "all pairs", "FLOPs", "times the atoms", "with forward passes"]
    threads = found["threads"]
    caption = (
        f"Time for all pairs of N networks on {threads} thread{'s' * (threads > 1)} (median of the rounds). Atoms: 4 "
        "layers, 12 atoms of 3x3 each. Rivals: features of 10,000 images, 512 of them, of one layer, in float64; "
        "forward passes through networks of 4 layers beside. A star marks what was timed on fewer networks or images "
        "and scaled. `python -m benchmarks.speed` measured this, in turns within one run."
    )
    return [Table(caption, header, cells)]


def _lead(rows: Rows) -> str:
    atoms = {row["networks"]: row["seconds"]["median"] for row in rows if row["method"] == "atoms"}
    rivals = [row for row in rows if row["method"] != "atoms"]
    count = max(row["networks"] for row in rivals)
    of_count = {row["method"]: row for row in rivals if row["networks"] == count}
    said = ", ".join(
        f"{METHODS[name]} {_seconds(row['seconds']['median'])} ({_times(row['times_atoms'])} times as long"
        + (
            f"; {_times(row['with_features']['seconds'] / atoms[count])} times with the forward passes"
            if row["with_features"]
            else ""
        )
        + ")"
        for name, row in of_count.items()
    )
    largest = max(atoms)
    return (
        f"All pairs of {count:,} networks on one thread: cosine of atoms **{_seconds(atoms[count])}**, {said}. "
        f"{largest:,} networks, in blocks of bounded memory: {_seconds(atoms[largest])}."
    )


def _seconds(value: float) -> str:
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if value < 1000 * size:
            return f"{value / size:.2g} {unit}" if value < 10 * size else f"{value / size:.0f} {unit}"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def _times(value: float) -> str:
    """Two significant digits, written out."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"
