"""fscl's methods against fluke-fl's, from the same start with the same batches: an oracle that fscl had no part in."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from fscl.data.transforms import ImageTransform
from fscl.federated import (
    Ditto,
    FedAvg,
    FederatedStrategy,
    Federation,
    FedPer,
    FedProx,
    FedRep,
    LabelledImages,
    LocalGrid,
    client_app,
)
from fscl.settings import Training

FLUKE = json.loads((Path(__file__).parent / "fluke.json").read_text())
METHODS = {
    "fedavg": (FedAvg, FLUKE["epochs"]),
    "fedprox": (lambda: FedProx(mu=FLUKE["pull"]), FLUKE["epochs"]),
    "fedper": (FedPer, FLUKE["epochs"]),
    "fedrep": (lambda: FedRep(head_epochs=FLUKE["epochs"]), FLUKE["tau"]),
    "ditto": (lambda: Ditto(pull=FLUKE["pull"], epochs=FLUKE["tau"]), FLUKE["epochs"]),
}


def network():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net.load_state_dict({name: torch.tensor(v) for name, v in zip(net.state_dict(), FLUKE["start"], strict=True)})
    return net


@pytest.mark.parametrize("name", METHODS)
def test_servers_and_clients_have_fluke_s_networks_after_two_rounds(name, monkeypatch):
    make, epochs = METHODS[name]
    monkeypatch.setattr(torch, "randperm", torch.arange)  # batches in the order of the images, as in fluke
    own = [
        LabelledImages(torch.tensor(pixels, dtype=torch.uint8), torch.tensor(labels), torch.arange(len(labels)))
        for pixels, labels in zip(FLUKE["images"], FLUKE["labels"], strict=True)
    ]
    training = Training(
        epochs=epochs, batch_size=FLUKE["batch_size"], lr=FLUKE["lr"], momentum=0.0, weight_decay=0.0,
        schedule="constant",
    )  # fmt: skip
    transform = ImageTransform([FLUKE["mean"]], [FLUKE["std"]])
    federation = Federation(make(), network(), training, own, own, transform, transform)
    grid = LocalGrid(client_app(lambda context: federation), len(own))
    server = FederatedStrategy(make(), network(), len(own), evaluate_every=0)
    server.start(grid, num_rounds=FLUKE["rounds"])

    method, expected = server.method, FLUKE[name]
    entries = list(method.packing.entries_of(method.parts_for(0, 3)).items())
    order = list(network().state_dict())
    entries.sort(key=lambda entry: order.index(entry[0]))
    assert len(entries) == len(expected["server"])
    for (entry, values), flukes in zip(entries, expected["server"], strict=True):
        assert torch.allclose(values, torch.tensor(flukes), rtol=0, atol=1e-6), entry
    for client, flukes in enumerate(expected["clients"]):
        kept = grid._states[client].array_records[f"fscl.kept.{FLUKE['rounds']}"]
        kept = {part: torch.from_numpy(array.numpy().copy()) for part, array in kept.items()}
        if name == "ditto":
            kept = {part.removeprefix("own."): values for part, values in kept.items() if part.startswith("own.")}
        mine = method.packing.entries_of(kept)
        compared = {"ditto": order, "fedper": order[2:], "fedrep": order[2:]}.get(name, [])
        for entry in compared:
            assert torch.allclose(mine[entry], torch.tensor(flukes[order.index(entry)]), rtol=0, atol=1e-6), entry
    # it could have failed: the networks have moved far from the start
    moved = [(values - torch.tensor(s)).abs().max() for (_, values), s in zip(entries, FLUKE["start"], strict=False)]
    assert min(moved) > 0.01
