"""Federated averaging: one network for all clients, by itself or fine-tuned by each client."""

from fscl.federated.client import Client
from fscl.federated.method import Method

__all__ = ["FedAvg", "FedAvgFineTuned"]


class FedAvg(Method):
    """Averages the clients' networks.

    Args:
        normalisation: whether normalisation is averaged, too. By default it stays at each client, as in FedBN.

    References:
        McMahan et al. Communication-efficient learning of deep networks from decentralized data. AISTATS 2017;
        Li et al. FedBN. ICLR 2021.

    Example:
        >>> FedAvg().stays
        ('normalisation',)
    """

    def __init__(self, normalisation: bool = False) -> None:
        self.stays = () if normalisation else ("normalisation",)


class FedAvgFineTuned(FedAvg):
    """FedAvg whose network each client trains on its own images before it answers. The result is not kept.

    Args:
        epochs: epochs of fine-tuning; by default the local epochs of a round.
        lr: its learning rate; by default that of a round.
        normalisation: as for :class:`FedAvg`.

    References:
        Collins, Hassani, Mokhtari, Shakkottai. FedAvg with fine tuning: local updates lead to representation learning.
        NeurIPS 2022.
    """

    def __init__(self, epochs: int | None = None, lr: float | None = None, normalisation: bool = False) -> None:
        super().__init__(normalisation)
        self.epochs, self.lr = epochs, lr

    def prepare_answers(self, client: Client) -> None:
        client.fit(epochs=self.epochs, lr=self.lr)
