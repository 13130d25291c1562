"""The section on costs says what the speed study measured, and refuses a file without it."""

import json
from pathlib import Path

import pytest

from benchmarks.similarity.cost import cost_part
from fscl.errors import FsclError


def speed_file(folder: Path, **change: object) -> Path:
    def row(method: str, networks: int, median: float, times: float, with_features: float | None) -> dict:
        return {
            "method": method, "networks": networks, "pairs": networks * (networks - 1) // 2, "flops": 1e6,
            "seconds": {"median": median}, "extrapolated": method == "svcca", "times_atoms": times,
            "with_features": with_features and {"seconds": with_features},
        }  # fmt: skip

    rows = [
        row("atoms", 20, 0.0002, 1, None),
        row("atoms", 1000, 0.5, 1, None),
        row("svcca", 20, 12.0, 60000, 20.0),
        {"method": "matrix_products", "networks": 20},  # what the page has no use for
    ]
    file = folder / "results.json"
    file.write_text(json.dumps({"similarity": {"threads": 1, "rows": rows} | change}))
    return file


def test_costs_are_those_that_were_measured(tmp_path, rendered):
    part = cost_part(speed_file(tmp_path))
    assert "cosine of atoms **200 µs**, SVCCA 12.0 s (60,000 times as long; 100,000 times with the forward" in part.lead
    assert "1,000 networks, in blocks of bounded memory: 500 ms." in part.lead
    text = rendered(part)
    assert "12.0 s*" in text
    assert "takes none" in text


def test_a_file_without_costs_is_refused(tmp_path):
    with pytest.raises(FsclError, match=r"nothing\.json: cannot be read"):
        cost_part(tmp_path / "nothing.json")
    for change in ({"rows": []}, {"rows": [{"method": "atoms"}]}, {"rows": None}):
        with pytest.raises(
            FsclError, match=r"results.json: no similarity measured by python -m benchmarks.speed in it"
        ):
            cost_part(speed_file(tmp_path, **change))
