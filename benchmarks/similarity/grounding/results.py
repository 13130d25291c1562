"""What the grounding tests measured."""

from benchmarks.similarity.lab import Budget
from benchmarks.similarity.units import Array, Number, Result

__all__ = ["Chance", "Damage", "Grounding", "GroupScores", "Groups", "RunScore", "Score", "Transfer", "TransferScores"]


class Score(Result):
    """A statistic of a similarity, how far it is above the rival's, and 95 % intervals; NaN where it is undefined."""

    score: Number
    low: Number
    high: Number
    less: Number  # score less the rival's
    less_low: Number
    less_high: Number


class RunScore(Score):
    """A rank correlation, mean over runs."""

    each: list[Number]  # of each run
    p: list[Number]  # Mantel's, of each run


Scores = dict[str, Score]  # by similarity
RunScores = dict[str, RunScore]


class GroupScores(Result):
    """How well similarities tell which networks are of one group."""

    separation: Scores  # AUPRC
    nearest: Scores  # how often the most similar network is of the own group


class Chance(Result):
    """What a partner drawn at random scores."""

    top: float
    rank: float
    regret: float


class TransferScores(Result):
    """Similarities against how well features transfer, and against what is known of the tasks."""

    transfer: RunScores
    transfer_less: RunScores  # transfer less each task's own mean
    top: Scores  # as advice: how often the most similar task is the best partner,
    rank: Scores  # its mean rank among all partners,
    regret: Scores  # and how much accuracy it loses to the best
    chance: Chance
    angle: RunScores | None = None  # the angle between tasks
    line: RunScores | None = None  # the same where upside down is upright
    shared: RunScores | None = None  # classes in common
    separation: Scores | None = None
    nearest: Scores | None = None


class Grounding(Result):
    """What all grounding tests share: how their networks came about."""

    kind: str
    images: str
    budget: Budget
    first_images: int
    first_accuracy: float
    first_networks: int  # each with all tasks learned from it
    recalled: int  # images
    probed: int  # images that the rivals see
    positions: int  # in each image


class Groups(Grounding):
    """Networks in groups: of one level of label noise, or of one task."""

    groups: list[str]  # of each network
    accuracy: list[float]
    similarity: dict[str, Array]  # (T, T)
    scores: GroupScores


class Damage(Grounding):
    """One network with noise on its atoms."""

    accuracy: list[float]  # of the undamaged network
    draws: int
    where: list[str]  # of each damaged network: the layer
    size: list[float]  # of the noise, in root mean squares of the atoms
    lost: list[float]  # accuracy
    similarity: dict[str, Array]  # to the undamaged network
    scores: dict[str, Scores]  # by layer


class Transfer(Grounding):
    """Tasks of known geometry, whose features are tried on each other."""

    groups: list[str]  # names of the tasks
    per_class: int  # training images that a class mean takes
    accuracy: list[list[float]]  # by run
    similarity: dict[str, Array]  # (R, T, T)
    truths: dict[str, Array]  # (T, T): what is known of the tasks
    transfer: Array  # (R, T, T): accuracy on task i of the features of network j
    scores: TransferScores
    angles: list[int] | None = None

    def known(self) -> dict[str, RunScores]:
        """The scores against each truth."""
        scores = {"angle": self.scores.angle, "line": self.scores.line, "shared": self.scores.shared}
        return {name: of_truth for name, of_truth in scores.items() if of_truth is not None}
