import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import Tensor, nn

from fscl.continual import AtomSwapping, FromScratch, Stream, build_network, split_classes
from fscl.data.datasets import ImageSet, load_images

STRATEGIES = {"atom_swapping": AtomSwapping, "naive": Naive, "from_scratch": FromScratch}


class Outputs(SupervisedPlugin):
    """Records the outputs of a strategy's evaluation for each experience."""

    supports_distributed = False

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, list[Tensor]] = {}

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.of.setdefault(strategy.experience.current_experience, []).append(strategy.mb_output.clone())

    def say(self, strategy: Any, experiences: Any) -> list[Tensor]:
        """Evaluates, and returns the outputs, one tensor for each experience."""
        self.of = {}
        strategy.eval(list(experiences))
        return [torch.cat(self.of[e.current_experience]) for e in experiences]


class Starts(SupervisedPlugin):
    """Records the network at the start of each training experience, after all other plugins have prepared it."""

    supports_distributed = False

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, Tensor]] = []
        self._new = False

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._new = True

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self._new:
            self.states.append({n: t.clone() for n, t in strategy.model.state_dict().items()})
        self._new = False


def few(images: ImageSet, per_class: int) -> ImageSet:
    keep = torch.cat([(images.labels == c).nonzero()[:per_class, 0] for c in range(len(images.classes))])
    return ImageSet(images.images[keep], images.labels[keep], images.classes)


@pytest.fixture(scope="session")
def digits() -> tuple[ImageSet, ImageSet]:
    train, test = load_images("digits")
    return few(train, 36), few(test, 20)


@pytest.fixture(scope="session")
def stream(digits) -> Stream:
    """Three tasks of two digits."""
    return split_classes(*digits, tasks=[["0", "1"], ["2", "3"], ["4", "5"]])


def small_network() -> nn.Module:
    return build_network("convnet", (1, 8, 8), 2, {"widths": [8, 8], "pool_after": [0], "dropout": 0.1})


@pytest.fixture
def network() -> Callable[[], nn.Module]:
    """Builds the 8-channel network with a head for each task."""
    return small_network


@pytest.fixture
def learner() -> Callable[..., Any]:
    """Builds a strategy by name, always from the same seed."""

    def build(
        kind: str = "atom_swapping",
        model: nn.Module | None = None,
        optimizer: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> Any:
        torch.manual_seed(seed)
        model = small_network() if model is None else model
        if optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        defaults = {"train_mb_size": 16, "train_epochs": 2, "eval_mb_size": 64, "evaluator": None}
        return STRATEGIES[kind](
            model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **{**defaults, **options}
        )

    return build


@pytest.fixture
def outputs() -> Outputs:
    return Outputs()


@pytest.fixture
def starts() -> Starts:
    return Starts()


@pytest.fixture
def same_bank() -> Callable[[Any, Any], bool]:
    """Whether two banks are equal to the bit."""

    def compare(a: Any, b: Any) -> bool:
        pairs = [(a.shared, b.shared), *((a.entries(t), b.entries(t)) for t in a.tasks)]
        return a.tasks == b.tasks and all(
            x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in pairs
        )

    return compare


@pytest.fixture
def interrupted() -> Callable[..., tuple[Any, Any]]:
    """Trains some tasks and one more; then that one again in a new trainer that resumes, with the same accuracy."""

    def train(build: Callable[[], Any], tasks: int) -> tuple[Any, Any]:
        through = build()
        for _ in range(tasks):
            through.train_next()
        state = io.BytesIO()
        torch.save(through.state_dict(), state)
        last = through.train_next()
        state.seek(0)
        resumed = build()
        resumed.load_state_dict(torch.load(state, weights_only=True))
        assert resumed.train_next().accuracy == last.accuracy
        return through, resumed

    return train
