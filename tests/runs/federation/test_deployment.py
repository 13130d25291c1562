"""Recipes on a real deployment of Flower: the numbers of one process, and clients that are killed and come back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl.errors import FsclError
from fscl.runs.federation.flower_app import spec_of
from fscl.runs.results import load_run
from fscl.runs.run import run_one

APP = Path(__file__).resolve().parents[3] / "examples" / "flower_recipe"
SMALL = "federation.clients=3;federation.fraction=1;federation.most_images=60;federation.most_test_images=30;" \
    "training.epochs=1;args.coefficient_rounds=1"  # fmt: skip
CONFIG: dict[str, Any] = {"benchmark": "federated_digits", "strategy": "atoms", "seed": 1}
MEASURED = ("accuracy", "counts", "tested", "groups", "sizes", "stays", "travels", "similarity")


def test_an_app_needs_the_recipe_of_a_federation() -> None:
    with pytest.raises(FsclError, match="benchmark = 'split_digits' is no federation; known: federated_"):
        spec_of(CONFIG | {"benchmark": "split_digits"})
    spec = spec_of(CONFIG | {"settings": " federation.rounds=7; training.epochs=3;", "data": "there"}, data="here")
    assert (spec.benchmark.federation.rounds, spec.benchmark.training.epochs) == (7, 3)
    assert (spec.seed, spec.data) == (1, "here")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployment_gives_the_numbers_of_one_process(deployment: Any, tmp_path: Path) -> None:
    settings = f"{SMALL};federation.rounds=3;federation.evaluate_every=3"
    for client in range(3):
        deployment.node(client, 3, **({"folder": tmp_path / "kept"} if client == 0 else {}))
    printed = deployment.run(APP, **CONFIG, settings=settings, out=str(tmp_path / "out"))
    assert "3 of 3 rounds are finished" in printed
    spec = spec_of(CONFIG | {"settings": settings})
    found, expected = (
        load_run(folder / "run.json").to_json()
        for folder in (spec.folder(tmp_path / "out"), run_one(spec, tmp_path / "one"))
    )
    for key in MEASURED:
        assert found.get(key) == expected.get(key), key
    assert [r | {"seconds": 0} for r in found["rounds"]] == [r | {"seconds": 0} for r in expected["rounds"]]
    assert list((tmp_path / "kept").rglob("*.safetensors"))  # of the client that has a folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_nodes_cost_a_round_and_come_back(deployment: Any, tmp_path: Path, wait_for: Callable[..., Any]) -> None:
    settings = f"{SMALL};federation.rounds=4;federation.evaluate_every=4"
    folders = {1: {"folder": tmp_path / "kept"}}
    for client in range(3):
        deployment.node(client, 3, **folders.get(client, {}))
    job = deployment.begin(APP, **CONFIG, settings=settings, out=str(tmp_path / "out"), timeout=60.0)
    folder = spec_of(CONFIG | {"settings": settings}).folder(tmp_path / "out")

    def rounds() -> int:
        try:
            return len(json.loads((folder / "run.json").read_text())["rounds"])
        except (OSError, ValueError):
            return 0

    wait_for(lambda: rounds() == 1, 200)
    for client in (1, 2):
        wait_for(lambda client=client: deployment.works(client))
        deployment.kill(client)
        deployment.node(client, 3, **folders.get(client, {}))
    deployment.ended(job, 500)
    record = load_run(folder / "run.json")
    late, lost = "it did not answer in time", "it had lost what it kept, and begins anew the next time"
    print([(r.answered, r.left_out, round(r.seconds, 1)) for r in record.rounds])
    assert [r.left_out for r in record.rounds] == [{}, {"1": late, "2": late}, {"2": lost}, {}]
    assert [r.answered for r in record.rounds] == [[0, 1, 2], [0], [0, 1], [0, 1, 2]]
    assert sorted(record.evaluated[-1].failed) == []
