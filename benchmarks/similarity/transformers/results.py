"""What a unit of the section on transformers measured."""

from benchmarks.similarity.agreement.results import Correlations
from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Number, Result

__all__ = ["AllLayers"]


class AllLayers(Result):
    """How a population of ordinary networks came about, and how far each method agrees with CKA and CCA on it."""

    images: str
    architecture: str
    regime: str
    networks: int
    probe: int  # images that the yardsticks see
    budget: Budget
    accuracies: list[float]  # of networks that were trained to the end
    training_seconds: float
    seconds: dict[str, float]  # by method
    layers: list[str]
    compared_share: float  # of a network's parameters
    explained: float  # by the atoms, least over networks
    groups: list[int]  # sizes of the groups of networks that share a start
    agreement: dict[str, dict[str, Correlations]]  # by method and yardstick
    by_layer: dict[str, list[Number]]  # by yardstick, Pearson's correlation of atoms over depth in each layer
    yardsticks_agree: Correlations  # linear CKA with mean CCA

    def pearson(self, method: str, yardstick: str) -> float:
        return self.agreement[method][yardstick].pearson.r

    def spearman(self, method: str, yardstick: str) -> float:
        return self.agreement[method][yardstick].spearman.r
