"""The network that a finished run learned for a task, to be used on new images."""

import contextlib
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from pydantic import ValidationError
from torch import Tensor, nn

from fscl.continual.stream import Stream, Task, TaskImages, assemble
from fscl.continual.trainer import Trainer
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.runs.building import build_trainer, check_trusted
from fscl.runs.record import RunRecord
from fscl.runs.results import find_task
from fscl.runs.resume import line
from fscl.runs.run import WEIGHTS
from fscl.runs.schema import BenchmarkRecipe, StrategyRecipe
from fscl.runs.spec import RunSpec
from fscl.runs.weights import read_weights

__all__ = ["TaskNetwork", "load_network"]


class TaskNetwork(nn.Module):
    """What a run answers for images of one task: its network and all that its learner adds to it in evaluation.

    It is used under ``torch.no_grad``, in evaluation mode. :func:`load_network` makes it.

    Attributes:
        task: the number of the task; None if one network answers for all classes.
        classes: the name of each output.
        image_shape: (C, H, W) of an image.
        transform: what must be applied to uint8 images before they are passed, see
            :class:`fscl.data.transforms.ImageTransform`.
    """

    def __init__(self, trainer: Trainer, task: int | None, classes: Sequence[str], transform: ImageTransform) -> None:
        super().__init__()
        self.task, self.classes, self.transform = task, list(classes), transform
        self.image_shape = trainer.stream.image_shape
        self.network = trainer.strategy.model
        self._strategy, self._stream = trainer.strategy, trainer.stream
        self._outputs = _Outputs()
        trainer.strategy.plugins.append(self._outputs)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The outputs of every class.

        Args:
            images: (N, C, H, W), transformed.

        Returns:
            (N, number of classes): logits; for iCaRL, cosines with the mean feature of each class.

        Raises:
            FsclError: images of another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            shape = "x".join(map(str, images.shape))
            raise FsclError(f"images are {shape}; the network takes N x {' x '.join(map(str, self.image_shape))}")
        if not len(images):
            return images.new_empty(0, len(self.classes))
        with _random_states_kept():
            self._strategy.eval([self._stream.to_answer(self.task or 0, images)])
        return torch.cat(self._outputs.seen)[:, : len(self.classes)].to(images.device)

    def probabilities(self, images: Tensor) -> Tensor:
        """(N, number of classes), the softmax of the outputs for uint8 images (N, C, H, W) that are not transformed."""
        return self(self.transform(images)).float().softmax(1)

    def extra_repr(self) -> str:
        return f"task={self.task}, classes={self.classes}, image_shape={self.image_shape}"


class _Outputs(SupervisedPlugin):
    """Keeps the outputs of an evaluation. It comes last, when all other plugins have changed them."""

    supports_distributed = False

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.seen = []

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append(strategy.mb_output)


def load_network(
    run: str | Path, task: int | str | None = None, *, device: str | torch.device = "cpu", trust: bool = False
) -> TaskNetwork:
    """The network that a finished run learned for a task, of any learner, in evaluation mode.

    Args:
        run: the run's folder.
        task: the number or the name of a task, counted from 0. None if the run has one task, or one network for the
            classes of all tasks (``split.scenario=class``).
        device: where the network goes.
        trust: whether a learner or a network that is neither of fscl nor of a known library may be imported.

    Raises:
        FsclError: the folder has no finished run or no weights, the task is unknown or missing, or the run cannot be
            built by these versions.

    Example:
        >>> network = load_network("runs/split_digits/atom_swapping/seed_0", task=2)  # doctest: +SKIP
        >>> network.classes  # doctest: +SKIP
        ['1', '6']
        >>> network.probabilities(images)  # uint8 (N, 1, 8, 8)  # doctest: +SKIP
    """
    folder = Path(run)
    record, number, classes = find_task(folder, task)
    spec = _spec(record, str(device))
    if not trust:
        for recipe in (spec.benchmark, spec.strategy):
            recipe._stranger = str(folder / "run.json")
    check_trusted(spec)
    saved = read_weights(folder / WEIGHTS)
    try:
        with _random_states_kept():
            trainer: Trainer = build_trainer(spec, _placeholder(record, saved["image_shape"]), None)
            trainer.load_served_state(saved["learner"])
        return TaskNetwork(trainer, number, classes, ImageTransform.of_constants(saved["scale"], saved["shift"]))
    except Exception as error:  # a learner of another version, or of a user, may raise anything
        made = record.versions.get("fscl", "unknown")
        raise FsclError(f"{folder}: made by fscl {made}, it cannot be built by this one: {line(error)}") from error


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """A trainer seeds all generators, and an evaluation draws numbers; a user's own draws must not depend on it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries draw from it
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _spec(record: RunRecord, device: str) -> RunSpec:
    """The specification of a recorded run.

    Raises:
        FsclError: with the record's recipes, this version of fscl would do another run.
    """
    try:
        benchmark = BenchmarkRecipe.model_validate(record.benchmark.model_dump(by_alias=True))
        strategy = StrategyRecipe.model_validate(record.strategy.model_dump(by_alias=True))
    except ValidationError as error:
        raise FsclError(f"{record.path}: its recipe does not fit this fscl: {line(error)}") from error
    recorded = RunSpec(benchmark, strategy, record.seed, validation=record.validation, first=record.first)
    if recorded.hash != record.recipe_hash:
        raise FsclError(
            f"{record.path}: its recipes have hash {recorded.hash}, and the run had {record.recipe_hash}; it was "
            "changed, or made by another fscl"
        )
    # what has no use in evaluation, and does not fit a black image of each class
    training = benchmark.training.model_copy(update={"drop_last": False, "compile": False})
    return replace(recorded, benchmark=benchmark.model_copy(update={"training": training}), device=device)


def _placeholder(record: RunRecord, image_shape: tuple[int, int, int]) -> Stream:
    """A stream with the tasks of the run, and a black image of each class, because images decide nothing any more."""
    tasks = []
    for part in record.tasks:
        count = len(part.classes)
        images = TaskImages(torch.zeros(count, *image_shape, dtype=torch.uint8), torch.arange(count))
        tasks.append(Task(part.name, list(map(str, part.classes)), images, images))
    scenario = record.benchmark.split.get("scenario", "task")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return assemble(tasks, tasks[0].train.images, scenario, 0, 0, False, 0.0)
