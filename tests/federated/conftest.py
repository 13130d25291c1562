"""A federation of a few clients on scikit-learn's digits, in this process, of which every message is seen."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


@dataclass
class Small:
    """Clients of digits: client ``c`` has the images ``c``, ``c + clients``, ... of ``chosen``.

    ``tampered`` maps (round, client) to a function that changes the client's reply, or raises in its place.
    """

    make: Callable[[], Any]
    clients: int = 3
    each: int = 20
    chosen: list[int] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    start: Callable[[], nn.Module] = small_network

    def __post_init__(self) -> None:
        from fscl.data.datasets import load_images
        from fscl.data.transforms import ImageTransform
        from fscl.federated import Federation, LabelledImages, LocalGrid, client_app
        from fscl.settings import Training

        train, test = load_images("digits")
        order = torch.arange(len(train.labels)) if self.chosen is None else torch.tensor(self.chosen)
        method = self.make()
        training = {"epochs": 1, "batch_size": 8, "lr": 0.05, "schedule": "constant"} | self.training
        transform = ImageTransform([0.3], [0.3])
        self.federation = Federation(
            method,
            method.prepare(self.start()),
            Training(**training),
            [LabelledImages(train.images, train.labels, order[c :: self.clients][: self.each + c])
             for c in range(self.clients)],
            [LabelledImages(test.images, test.labels, torch.arange(c, 60, self.clients)) for c in range(self.clients)],
            transform,
            transform,
            folder=self.folder,
        )  # fmt: skip
        small = self

        class Grid(LocalGrid):
            def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
                replies = []
                for message in messages:
                    (reply,) = super().send_and_receive([message])
                    kind, client = message.metadata.message_type, message.metadata.dst_node_id - 2
                    if kind == "train":
                        round = int(message.metadata.group_id)
                        reply = small.tampered.get((round, client), lambda reply: reply)(reply)
                    small.passed.append((kind, client, message, reply))
                    replies += [] if reply is None else [reply]
                return replies

        self.tampered: dict[tuple[int, int], Callable[[Any], Any]] = {}
        self.passed: list[tuple[str, int, Any, Any]] = []  # kind, client, message, reply
        self.grid = Grid(client_app(lambda context: self.federation), self.clients)

    def server(self, **options: Any) -> Any:
        from fscl.federated import FederatedStrategy

        return FederatedStrategy(self.make(), self.start(), self.clients, **{"evaluate_every": 0} | options)

    def run(self, rounds: int = 1, **options: Any) -> Any:
        """The server after some rounds."""
        server = self.server(**options)
        server.start(self.grid, num_rounds=rounds)
        return server

    def sent(self, kind: str = "train") -> list[tuple[int, int, dict[str, Tensor], dict[str, Tensor]]]:
        """Of all messages of a kind: round, client, the parts that it brought, and the parts that were returned."""
        from fscl.federated.messages import parts_in

        return [
            (int(message.metadata.group_id), client, parts_in(message.content), parts_in(reply.content))
            for its_kind, client, message, reply in self.passed
            if its_kind == kind
        ]

    def client(self, number: int = 0, round: int = 1, net: nn.Module | None = None, **options: Any) -> Any:
        """A client that has received the whole of a network, without messages."""
        from fscl.atoms.packing import Packing
        from fscl.federated import Client

        federation = self.federation
        net = federation.method.prepare(self.start()) if net is None else net
        packing = Packing(net)
        return Client(
            number, round, net, packing, federation.training, federation.train[number], federation.test[number],
            federation.augmented, federation.plain, **{"received": packing.packed(net)} | options,
        )  # fmt: skip


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    """Makes a small network from a seed."""
    return small_network


@pytest.fixture
def small() -> type[Small]:
    return Small


@pytest.fixture
def equal_parts() -> Callable[[dict[str, Tensor], dict[str, Tensor]], bool]:
    """Whether packed parts are equal to the last bit."""
    return lambda first, second: (
        first.keys() == second.keys() and all(torch.equal(values, second[part]) for part, values in first.items())
    )
