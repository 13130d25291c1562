"""What a unit of the section on robustness measured."""

from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Number, Result

__all__ = ["Draws", "Moved", "Probe", "Robustness", "Stimuli", "WithoutData"]


class Moved(Result):
    """One similarity of all pairs of networks against another one of the same networks."""

    level: Number  # its mean
    shift: Number  # mean absolute difference from the other one
    rho: Number  # Spearman's correlation with the other one


class Draws(Result):
    """Lists of the numbers of Moved, one entry for each draw."""

    level: list[Number]
    shift: list[Number]
    rho: list[Number]


class Probe(Result):
    """Images, and what each yardstick says of the networks on each draw of them, against the reference."""

    name: str
    n: int  # images
    measures: dict[str, Draws]


class Stimuli(Result):
    """How synthetic images were made."""

    images: int
    steps: int  # of recalling


class WithoutData(Draws):
    """A measure that needs no data, on other seeds of the synthetic images, against the first seed."""

    agrees: dict[str, Number]  # Spearman's correlation with yardsticks on the reference probe


class Robustness(Result):
    """The same networks on every probe."""

    images: str
    networks: int
    budget: Budget
    accuracies: list[float]
    draws: int  # of each probe but the reference and the training images
    places: tuple[int, int]  # positions in an image of the largest probes, and of the smallest
    probes: list[Probe]  # the reference first
    stimuli: Stimuli
    ours: dict[str, WithoutData]
