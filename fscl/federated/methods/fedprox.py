"""FedProx: federated averaging with a pull towards the server's network."""

from fscl.federated.client import Client
from fscl.federated.method import Method

__all__ = ["FedProx"]


class FedProx(Method):
    """FedAvg whose clients are pulled towards the network that the server sent.

    Args:
        mu: strength of the pull: ``mu / 2`` times the squared distance is added to the loss.

    References:
        Li et al. Federated optimization in heterogeneous networks. MLSys 2020.
    """

    def __init__(self, mu: float = 0.01) -> None:
        self.mu = mu

    def train(self, client: Client) -> float:
        return client.fit(pull=self.mu, towards=client.received)
