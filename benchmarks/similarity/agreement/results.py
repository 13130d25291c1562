"""What a unit of the section on agreement measured."""

from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Number, Result

__all__ = ["Agreement", "Correlation", "Correlations"]


class Correlation(Result):
    """A correlation over all pairs of networks, its 95 % interval over networks, and Mantel's p."""

    r: Number
    low: Number
    high: Number
    p: Number


class Correlations(Result):
    """Pearson's and Spearman's correlation of two similarities."""

    pearson: Correlation
    spearman: Correlation


class Agreement(Result):
    """How a population came about, and how far each method agrees with each yardstick on it.

    Pairs of networks are in the order of :func:`benchmarks.similarity.populations.below_diagonal`.
    """

    images: str
    architecture: str
    regime: str
    networks: int
    probe: int  # images that the yardsticks see
    layers: list[str]
    budget: Budget
    accuracies: list[float]  # of networks on their own tasks
    training_seconds: float
    seconds: dict[str, float]  # by method, and by what a method needs
    values: dict[str, list[float]]  # by yardstick, of each pair
    methods: dict[str, list[float]]  # by method, of each pair
    levels: dict[str, list[float]]  # by yardstick, the mean of each layer
    agreement: dict[str, dict[str, Correlations]]  # by method and yardstick
    by_layer: dict[str, dict[str, list[Number]]]  # by method and yardstick, Pearson's correlation in each layer
    yardsticks_agree: Correlations  # linear CKA with mean CCA

    def pearson(self, method: str, yardstick: str) -> float:
        return self.agreement[method][yardstick].pearson.r

    def spearman(self, method: str, yardstick: str) -> float:
        return self.agreement[method][yardstick].spearman.r
