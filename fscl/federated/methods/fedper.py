"""FedPer and FedRep: a representation that travels, and a head that each client keeps."""

from fscl.federated.client import Client
from fscl.federated.method import Method

__all__ = ["FedPer", "FedRep"]


class FedPer(Method):
    """Averages all but head and normalisation, which stay at each client. All is trained together.

    References:
        Arivazhagan, Aggarwal, Singh, Choudhary. Federated learning with personalization layers. 2019.
    """

    stays = ("normalisation", "head")


class FedRep(FedPer):
    """FedPer whose clients first train the head, with the representation frozen, and then the representation.

    Args:
        head_epochs: local epochs of the head, before the recipe's local epochs of the representation.

    References:
        Collins et al. Exploiting shared representations for personalized federated learning. ICML 2021.
    """

    def __init__(self, head_epochs: int = 5) -> None:
        self.head_epochs = head_epochs

    def train(self, client: Client) -> float:
        client.fit(["head"], epochs=self.head_epochs)
        return client.fit([part for part in client.packing.entries if part != "head"])

    def prepare_answers(self, client: Client) -> None:
        client.fit(["head"], epochs=self.head_epochs)
