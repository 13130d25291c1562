"""What happened in each round of a federation."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

__all__ = ["Evaluation", "History", "Round"]


@dataclass
class Round:
    """One round of training.

    Attributes:
        number: from 1.
        chosen: numbers of the clients that were asked.
        answered: those whose answers count.
        left_out: why the other answers do not count, by client.
        sent, received: bytes from the server to clients and back, with Flower's headers.
        loss: mean of the clients' losses, weighted by images; None if nobody gave one.
        seconds: from the first message to the combined parts.
    """

    number: int
    chosen: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    loss: float | None = None
    seconds: float = 0.0


@dataclass
class Evaluation:
    """Clients tested on their own images after a round.

    Attributes:
        round: the number of the round.
        correct, images: by client, the images classified correctly and all images tested.
        failed: why the other clients were not tested.
        sent, received: bytes from the server to clients and back, with Flower's headers.
        seconds: that the evaluation took.
    """

    round: int
    correct: dict[int, int] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> dict[int, float]:
        """Accuracy of each client, from 0 to 1."""
        return {client: self.correct[client] / images for client, images in self.images.items() if images}


@dataclass
class History:
    """All rounds and evaluations so far."""

    rounds: list[Round] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        return cls([Round(**r) for r in state["rounds"]], [Evaluation(**e) for e in state["evaluations"]])
