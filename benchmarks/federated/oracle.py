"""Writes what fluke-fl makes of a small federation, the numbers that ``tests/federated/test_fluke.py`` asks of fscl.

    uv run --no-project --with fluke-fl==0.8.1 python benchmarks/federated/oracle.py

fluke-fl brings 18 packages that fscl does not need, so it has an environment of its own and its numbers are kept. Two
runs write equal files.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["WANDB_MODE"] = "disabled"

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms import PersonalizedFL
from fluke.algorithms.ditto import Ditto
from fluke.algorithms.fedavg import FedAVG
from fluke.algorithms.fedper import FedPer
from fluke.algorithms.fedprox import FedProx
from fluke.algorithms.fedrep import FedRep
from fluke.data import FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.nets import EncoderHeadNet
from torch import Tensor, nn

FILE = Path(__file__).parents[2] / "tests/federated/fluke.json"
ROUNDS, EPOCHS, BATCH, LR = 2, 2, 4, 0.1
TAU, PULL = 3, 0.7  # second number of epochs of FedRep and Ditto; strength of the pull
MEAN, STD = 0.5, 0.25  # of pixels from 0 to 1
SIZES = (10, 12, 14)  # images of each client: no last batch has one image, which fluke would leave out


class OwnHeads(FedRep):
    """FedRep gives one network object to all clients, who then share their heads. PersonalizedFL copies it."""

    init_clients = PersonalizedFL.init_clients


# fscl's arguments: the algorithm, and what fluke calls them
ALGORITHMS: dict[str, tuple[type, dict[str, Any]]] = {
    "fedavg": (FedAVG, {}),
    "fedprox": (FedProx, {"mu": PULL}),
    "fedper": (FedPer, {}),
    "fedrep": (OwnHeads, {"tau": TAU}),
    "ditto": (Ditto, {"tau": TAU, "lam": PULL}),
}


class Network(EncoderHeadNet):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def start() -> Network:
    torch.manual_seed(0)
    return Network()


def images() -> list[tuple[Tensor, Tensor]]:
    """Each client's images, uint8 (n, 1, 2, 2), and labels (n)."""
    numbers = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, 256, (size, 1, 2, 2), generator=numbers, dtype=torch.uint8),
            torch.randint(0, 3, (size,), generator=numbers),
        )
        for size in SIZES
    ]


class Given:
    """What fluke asks to split the data. Without shuffling, batches come in the order of the images."""

    def assign(self, clients: int, batch_size: int) -> Any:
        train = [
            FastDataLoader(
                (pixels / 255 - MEAN) / STD, labels, num_labels=3, batch_size=batch_size, shuffle=False,
                single_batch=False,
            )
            for pixels, labels in images()
        ]  # fmt: skip
        return (train, [None] * clients), None


def run(algorithm: type, arguments: dict[str, Any]) -> Any:
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_device("cpu")
    environment.set_inmemory(True)
    environment.set_evaluator(ClassificationEval(eval_every=10**9, n_classes=3))
    environment.set_eval_cfg(pre_fit=False, post_fit=False, server=False, locals=False)
    client = {
        "batch_size": BATCH,
        "local_epochs": EPOCHS,  # FedRep: of the head
        "loss": nn.CrossEntropyLoss,
        "optimizer": DDict(name="SGD", lr=LR),
        "scheduler": DDict(name="StepLR", step_size=1, gamma=1),
        **arguments,
    }
    shares_encoder = algorithm in (FedPer, OwnHeads)
    if shares_encoder or algorithm is Ditto:
        client["model"] = start()
    settings = DDict(
        client=DDict(**client), server=DDict(weighted=True), model=start().encoder if shares_encoder else start()
    )
    federation = algorithm(len(SIZES), Given(), settings)
    # CentralizedFL.run without its progress bar, and without a last round of evaluation
    for number in range(1, ROUNDS + 1):
        chosen = federation.server.get_eligible_clients(1)
        federation.server.broadcast_model(chosen)
        for one in chosen:
            one.local_update(number)
        federation.server.aggregate(chosen, federation.server.receive_client_models(chosen, state_dict=False))
    return federation


def values(model: nn.Module) -> list[Any]:
    """The entries of a network, in order."""
    return [tensor.tolist() for tensor in model.state_dict().values()]


def main() -> None:
    torch.set_num_threads(1)
    content: dict[str, Any] = {
        "made by": f"benchmarks/federated/oracle.py with fluke-fl {version('fluke-fl')}",
        "rounds": ROUNDS, "epochs": EPOCHS, "batch_size": BATCH, "lr": LR, "tau": TAU, "pull": PULL, "mean": MEAN,
        "std": STD,
        "start": values(start()),
        "images": [pixels.tolist() for pixels, _ in images()],
        "labels": [labels.tolist() for _, labels in images()],
    }  # fmt: skip
    for name, (algorithm, arguments) in ALGORITHMS.items():
        federation = run(algorithm, arguments)
        content[name] = {
            "server": values(federation.server.model),
            "clients": [values(client.local_model) for client in federation.clients],
        }
    FILE.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
