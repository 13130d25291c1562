"""Made-up federations for the tests of reports."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest

SIZES = {"atoms": 400, "normalisation": 80, "head": 320, "shared": 4000}


def federation_data(method: str = "atoms", seed: int = 0, /, **changes: Any) -> dict[str, Any]:
    """The run.json of a federation of eight clients in two groups, tested after rounds 2 and 4, of 1000 bytes each."""
    rng = np.random.default_rng([seed, zlib.crc32(method.encode())])
    clients, groups = 8, [0, 1] * 4
    counts = [[30 + i, 10, 0, 0] if group == 0 else [0, 0, 20, 20 + i] for i, group in enumerate(groups)]
    alike = np.equal.outer(groups, groups) * 0.6 + rng.uniform(-0.1, 0.1, (clients, clients))
    similarity = (alike + alike.T) / 2
    np.fill_diagonal(similarity, 1)
    has_atoms, alone = method.startswith("atom"), method == "local"
    data: dict[str, Any] = {
        "format": 1,
        "status": "finished",
        "benchmark": {
            "name": "federated_made_up",
            "title": "Federated Made-Up",
            "federation": {"rounds": 4, "evaluate_every": 2, "groups": 2},
            "training": {"epochs": 2, "batch_size": 16, "lr": 0.05},
        },
        "strategy": {
            "name": method, "title": method.replace("_", " ").capitalize(), "bound": "lower" if alone else None,
        },
        "recipe_hash": f"{method}0123456789abcdef",
        "seed": seed,
        "versions": {"python": "3.11.7"},
        "machine": {"device": "cpu", "processor": "AMD EPYC", "threads": 1},
        "classes": ["ant", "bee", "cat", "dog"],
        "counts": counts,
        "tested": [12] * clients,
        "groups": groups,
        "rounds": [
            {
                "number": number, "chosen": [0, 1, 2, 3], "answered": [0, 1, 2, 3], "sent": 600, "received": 400,
                "loss": 1 / number, "seconds": 1.5,
            }
            for number in range(1, 5)
        ],
        "evaluated": [
            {
                "round": number, "sent": 80, "received": 20, "seconds": 0.5, "groups": groups if has_atoms else [],
            }
            for number in (2, 4)
        ],
        "accuracy": rng.integers(4, 12, (2, clients)) / 12,
        "sizes": SIZES if has_atoms else {"head": 320, "shared": 4000},
        "stays": ["head", "shared"] if alone else ["normalisation", "head"] if has_atoms else [],
        "travels": [] if alone else ["atoms"] if has_atoms else ["head", "shared"],
        "similarity": similarity if has_atoms else [],
        **changes,
    }  # fmt: skip
    return json.loads(json.dumps({key: _plain(value) for key, value in data.items()}))  # as from a file


def _plain(value: Any) -> Any:
    """Arrays as lists, with null for NaN."""
    if not isinstance(value, np.ndarray):
        return value
    return [[None if np.isnan(number) else number for number in row] for row in value.tolist()]


@pytest.fixture
def federation() -> Any:
    """Makes run.json of federations, see :func:`federation_data`."""
    return federation_data
