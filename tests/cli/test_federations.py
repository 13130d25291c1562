"""What commands print and report of federations that are finished already: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fscl import load_runs
from fscl.runs.recipe import load_any_benchmark, load_strategy, names_of, with_overrides
from fscl.runs.spec import RunSpec

Fscl = Callable[..., Any]  # the fixture, see conftest.py
pytestmark = pytest.mark.usefixtures("undrawn")

GROUPS = [0, 1, 2] * 4
ROUNDS = "federation.rounds=20"


def finished(method: str, seed: int = 0, **changes: Any) -> Path:
    """A finished run of federated_digits, which ``fscl run`` does not do again."""
    pair = with_overrides(load_any_benchmark("federated_digits"), load_strategy(method), [ROUNDS])
    spec = RunSpec(*pair, seed)
    file = spec.folder(Path("runs")) / "run.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    accuracy = np.linspace(0.5, 1.0, 12) if method == "atoms" else np.full(12, 0.5)
    data = {
        "format": 1,
        "status": "finished",
        "benchmark": spec.benchmark.model_dump(by_alias=True),
        "strategy": spec.strategy.model_dump(by_alias=True),
        "recipe_hash": spec.hash,
        "seed": seed,
        "started": f"2026-01-01T00:00:0{seed}+00:00",
        "classes": list("0123456789"),
        "counts": [[30] * 10] * 12,
        "tested": [20] * 12,
        "groups": GROUPS,
        "rounds": [
            {"number": number, "chosen": [0, 1], "answered": [0, 1], "sent": 700, "received": 300, "seconds": 1.0}
            for number in range(1, 21)
        ],
        "evaluated": [
            {"round": 20, "sent": 90, "received": 10, "seconds": 1.0, "groups": GROUPS if method == "atoms" else []}
        ],
        "accuracy": [accuracy.tolist()],
        "sizes": {"atoms": 400, "head": 320, "shared": 4000} if method == "atoms" else {"head": 320, "shared": 4000},
        "stays": ["head"],
        "travels": ["atoms"] if method == "atoms" else ["shared"],
        **changes,
    }
    file.write_text(json.dumps(data))
    return file


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fscl_run_prints_the_table_of_federations_and_writes_their_report(fscl: Fscl) -> None:
    for method in ("atoms", "fedavg"):
        finished(method)
    ended = fscl("run", "federated_digits", "-s", "atoms", "-s", "fedavg", "--seeds", 1, "--set", ROUNDS)
    assert (ended.code, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if "FedAvg" in line]
    assert line.split()[1:3] == ["1", "50.0"]
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    assert ended.out.endswith("Report: runs/federated_digits/report/index.html\n")
    assert [run.strategy.name for run in load_runs("runs/federated_digits/report")] == ["atoms", "fedavg"]


def test_json_of_federations_has_their_measures_and_the_paths_of_the_report(fscl: Fscl) -> None:
    finished("atoms")
    finished("fedavg", status="failed", error="out of luck")
    ended = fscl("report", "runs", "--json")
    assert (ended.code, ended.err) == (0, "")
    printed = json.loads(ended.out)
    atoms, fedavg = printed["runs"]
    assert (atoms["strategy"], atoms["accuracy"], atoms["bytes_in_all"]) == ("atoms", 0.75, 20_000)
    assert (atoms["worst_tenth"], atoms["rand_index"], atoms["error"]) == (0.5, 1.0, None)
    assert (fedavg["status"], fedavg["accuracy"], fedavg["error"]) == ("failed", None, "out of luck")
    assert [Path(file).name for file in printed["report"]["tables"]] == ["federations.csv", "clients.csv", "rounds.csv"]
    assert all(Path(file).is_file() for file in printed["report"]["tables"])


def test_show_has_the_clients_of_a_federation(fscl: Fscl) -> None:
    ended = fscl("show", finished("atoms").parent)
    assert ended.code == 0
    shown = " ".join(ended.out.split())
    for text in ("finished, 20 of 20 rounds", "Sent in all 20.0 kB", "Travels (in the last round) atoms 400 B"):
        assert text in shown
    rows = [line.split() for line in ended.out.splitlines()[-12:]]
    assert [row[0] for row in rows] == [str(client) for client in range(12)]
    assert [row[1] for row in rows] == [str(group) for group in GROUPS]
    assert [row[-1] for row in rows] == [f"{100 * value:.2f}" for value in np.linspace(0.5, 1.0, 12)]


def test_show_names_the_answers_that_were_left_out_of_an_unfinished_federation(fscl: Fscl) -> None:
    rounds = [{"number": 1, "chosen": [0, 1], "answered": [0], "left_out": {"1": "it failed"}, "sent": 1, "received": 1,
               "seconds": 1.0}]  # fmt: skip
    folder = finished("atoms", status="running", rounds=rounds, evaluated=[], accuracy=[]).parent
    shown = " ".join(fscl("show", folder).out.split())
    assert "running, 1 of 20 rounds" in shown
    assert "1 answers of clients" not in shown
    assert "1 answer of a client" in shown
    assert fscl("show", folder).out.splitlines()[-1].split()[-1] == "–"


def test_list_has_headings_of_their_own_for_federations_and_their_methods(fscl: Fscl) -> None:
    lines = fscl("list").out.splitlines()
    headings = ["Benchmarks", "Strategies", "Federations", "Methods of federations"]
    assert [line.strip() for line in lines if line.strip() in headings] == headings
    first = next(place for place, line in enumerate(lines) if line.strip() == "Federations")
    names = {line.split()[0] for line in lines[first:] if line.split()}
    others = {line.split()[0] for line in lines[:first] if line.split()}
    for kind in ("benchmarks", "strategies"):
        assert set(names_of(kind, federated=True)) <= names
        assert set(names_of(kind, federated=False)) <= others
        assert not set(names_of(kind, federated=True)) & others
