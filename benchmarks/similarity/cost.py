"""The section on costs: the measurements of ``python -m benchmarks.speed``, read from where it wrote them."""

import json
from pathlib import Path

from pydantic import BaseModel

from benchmarks.similarity.blocks import Part, Table
from benchmarks.similarity.formats import seconds, times
from benchmarks.similarity.measures import YARDSTICKS
from benchmarks.similarity.prose import section
from fscl.errors import FsclError

__all__ = ["cost_part"]

TITLES = {"atoms": "cosine of atoms"} | {name: YARDSTICKS[name] for name in ("minibatch_cka", "linear_cka", "svcca")}


class _Seconds(BaseModel):
    median: float


class _WithFeatures(BaseModel):
    seconds: float


class _Row(BaseModel):
    """The time of one method for all pairs of some networks."""

    method: str
    networks: int
    pairs: int
    seconds: _Seconds
    flops: float
    extrapolated: bool = False
    with_features: _WithFeatures | None
    times_atoms: float

    @property
    def title(self) -> str:
        return TITLES[self.method]


def cost_part(file: Path) -> Part:
    """The section.

    Args:
        file: ``results.json`` of ``python -m benchmarks.speed``, with its similarity measured.

    Raises:
        FsclError: the file cannot be read, or lacks the measurements of similarity.
    """
    try:
        similarity = json.loads(file.read_text(encoding="utf-8"))["similarity"]
        rows = [_Row.model_validate(row) for row in similarity["rows"] if row["method"] in TITLES]
        atoms = {row.networks: row.seconds.median for row in rows if row.method == "atoms"}
        networks = max(row.networks for row in rows if row.method != "atoms")
        return section(
            "templates/cost.j2",
            networks=networks,
            atoms=atoms[networks],
            rivals=[row for row in rows if row.networks == networks and row.method != "atoms"],
            most_networks=max(atoms),
            of_most=atoms[max(atoms)],
            threads=similarity["threads"],
            costs=_table(rows),
        )
    except OSError as error:
        raise FsclError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FsclError(f"{file}: no similarity measured by python -m benchmarks.speed in it ({error!r})") from error


def _table(rows: list[_Row]) -> Table:
    order = list(TITLES)
    cells = [
        [
            f"{row.networks:,} ({row.pairs:,} pairs)",
            row.title,
            seconds(row.seconds.median) + ("*" if row.extrapolated else ""),
            f"{row.flops:.1e}",
            "1" if row.method == "atoms" else times(row.times_atoms),
            seconds(row.with_features.seconds) + "*" if row.with_features else "takes none",
        ]
        for row in sorted(rows, key=lambda row: (row.networks, order.index(row.method)))
    ]
    return Table(["networks", "method", "all pairs", "FLOPs", "times the atoms", "with forward passes"], cells)
