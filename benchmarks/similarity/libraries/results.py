"""What a unit of the section on other libraries measured."""

from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Result, Spread

__all__ = ["Recovered", "start_of"]


class Recovered(Result):
    """Which starts ``fscl similarity`` found in the files of a library, and what it said."""

    library: str
    version: str  # of the library
    images: str
    parameters: int  # of a network
    budget: Budget
    start_accuracies: list[float]
    accuracies: list[float]  # of the fine-tuned networks, each on its own task
    training_seconds: float
    megabytes: float  # of all files
    seconds: float  # of the command
    networks: list[str]  # names of files; each begins with the name of its start
    groups: list[list[str]]  # that the command found
    within: Spread  # relatedness of pairs of one start
    across: Spread  # relatedness of pairs of two starts
    explained: float  # of each start's weights, by its own atoms; least over networks
    layers: int  # compared
    compared_share: float  # of the parameters
    left_out: dict[str, int]  # by layer, values
    trusted: bool
    verdict: str

    @property
    def starts(self) -> list[list[str]]:
        """The networks of each start."""
        names = dict.fromkeys(map(start_of, self.networks))
        return [[network for network in self.networks if start_of(network) == name] for name in names]

    @property
    def exact(self) -> bool:
        """Whether the groups are the starts."""
        return sorted(map(sorted, self.groups)) == sorted(map(sorted, self.starts))


def start_of(network: str) -> str:
    """The name of a network's start.

    >>> start_of("start0-task3/last")
    'start0'
    """
    return network.partition("-")[0]
