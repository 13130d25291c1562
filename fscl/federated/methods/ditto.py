"""Ditto: each client has a network of its own, pulled towards the federation's."""

from fscl.federated.client import Client
from fscl.federated.method import Method

__all__ = ["Ditto"]

OWN = "own."  # begins the names under which a client keeps the parts of its own network


class Ditto(Method):
    """FedAvg, and beside it a network of each client's own that is pulled towards FedAvg's. The own network answers.

    A client that was never chosen answers with FedAvg's network.

    Args:
        pull: strength of the pull: ``pull / 2`` times the squared distance is added to the loss of the own network.
        epochs: local epochs of the own network; by default those of a round.

    References:
        Li, Hu, Beirami, Smith. Ditto: fair and robust federated learning through personalization. ICML 2021.
    """

    def __init__(self, pull: float = 0.1, epochs: int | None = None) -> None:
        self.pull, self.epochs = pull, epochs

    def train(self, client: Client) -> float:
        loss = client.fit()
        trained = client.packing.packed(client.network)
        self.prepare_answers(client)
        client.fit(epochs=self.epochs, pull=self.pull, towards=client.received)
        client.kept = {OWN + part: values for part, values in client.packing.packed(client.network).items()}
        client.packing.unpack(client.network, trained)  # what is returned
        return loss

    def prepare_answers(self, client: Client) -> None:
        own = {name.removeprefix(OWN): part for name, part in client.kept.items() if name.startswith(OWN)}
        client.packing.unpack(client.network, own or client.received)
