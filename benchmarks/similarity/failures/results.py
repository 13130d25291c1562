"""What the units of the section on failures measured."""

from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Number, Result, Spread

__all__ = [
    "Across",
    "Compared",
    "CosineAgainstCka",
    "Gauge",
    "Level",
    "MovedCoefficients",
    "Order",
    "Permuted",
    "Starts",
]


class Compared(Result):
    """Pairs of networks: their CKA and CCA, their cosines over depth, and what warns of these."""

    cka: Spread
    cca: Spread
    stored: Spread  # atoms as they are, whatever their coefficients
    joint: Spread  # atoms of a joint decomposition
    filters: Spread  # whole filters
    related: Spread  # the joint decomposition's relatedness
    explained: Spread  # the share of both networks that coefficients made for the two explain
    projected: Spread  # the share that the coefficients of either network explain of the other


class Order(Result):
    """Spearman's correlation with CKA."""

    stored: Number
    joint: Number
    filters: Number


class Across(Result):
    """Pairs of networks of different starts."""

    pairs: int
    order: Order


class Gauge(Result):
    """Networks of one start in other gauges, over the draws of these."""

    outputs: Spread  # the largest difference, in deviations of the outputs
    cosine: Spread  # mean absolute difference of the cosine of atoms
    level: Spread  # mean cosine of atoms
    filter: Spread  # the largest difference of the metric `filter`
    order: Spread  # Spearman's correlation of the cosine with CKA
    alone: Spread  # one network in a gauge of its own, against itself: cosine of atoms
    alone_joint: Spread
    alone_cka: Spread
    alone_refused: Spread  # 1 where a bank refuses
    networks: int
    draws: int
    level_before: Number
    cka: Number
    order_before: Number


class Permuted(Compared):
    """Networks against themselves with permuted channels, over the draws of these."""

    outputs: Spread  # the largest difference, in deviations of the outputs
    refused: Spread  # 1 where a bank refuses
    draws: int


class Starts(Result):
    """The same tasks from several random starts, and the networks of one start written otherwise."""

    networks: int
    starts: int
    tasks: int
    budget: Budget
    accuracies: list[float]
    probe: int  # images
    pairs: dict[str, Compared]  # by whether the start and the task are the same
    across: Across
    refused: bool  # whether a bank refuses networks of another start
    gauge: Gauge
    permuted: Permuted


class CosineAgainstCka(Result):
    """One cosine of all pairs of a population against CKA and CCA."""

    level: Number
    difference: Number  # mean absolute difference from CKA
    rho: Number  # Spearman's correlation with CKA
    rho_cca: Number


class Level(Result):
    """A population whose coefficients learn at some rate."""

    rate: float  # as a share of the atoms' rate
    times: int  # how many times as long training lasts
    accuracy: Number
    explained: Number  # share of the filters that the first network's coefficients explain, mean over networks, layers
    least_explained: Number
    joint_explained: Number
    cka: Number
    cca: Number
    ours: dict[str, CosineAgainstCka]  # first: filters projected on the first network's coefficients; joint; filters


class MovedCoefficients(Result):
    """Populations of one start whose coefficients learn ever faster."""

    regime: str
    seed: int
    networks: int
    probe: int  # images
    budget: Budget
    levels: list[Level]
