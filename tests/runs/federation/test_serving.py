"""The networks that a finished federation serves are those with which its clients answered."""

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl import load_network
from fscl.runs.federation.building import images_of, split_of
from fscl.runs.recipe import load_any_benchmark, load_strategy, with_overrides
from fscl.runs.results import load_run
from fscl.runs.run import run_one
from fscl.runs.spec import RunSpec

SMALL = [
    "federation.clients=6", "federation.fraction=0.5", "federation.rounds=2", "federation.most_images=30",
    "training.epochs=1",
]  # fmt: skip


@pytest.mark.parametrize("own_classes", [False, True])
def test_a_clients_network_answers_as_in_the_run(own_classes, tmp_path):
    settings = [*SMALL, f"federation.own_classes={str(own_classes).lower()}"]
    spec = RunSpec(*with_overrides(load_any_benchmark("federated_digits"), load_strategy("fedavg"), settings), 0)
    folder = run_one(spec, tmp_path)
    accuracies = load_run(folder / "run.json").accuracy[-1]
    (train, test), split = images_of("digits", None, None), split_of(spec)
    for client in range(6):
        probabilities = load_network(folder, client).probabilities(test.images[split.test[client]])
        if own_classes:
            others = sorted(set(range(10)) - set(train.labels[split.train[client]].tolist()))
            assert (probabilities[:, others] == 0).all()
            assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities)))
        right = probabilities.argmax(1) == test.labels[split.test[client]]
        assert float(right.double().mean()) == accuracies[client]
    assert len(torch.tensor(accuracies).unique()) > 1
