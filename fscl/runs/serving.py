"""The network that a finished run learned for a task, to be used on new images."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from fscl.continual.stream import Stream, Task, TaskImages, assemble
from fscl.continual.trainer import Trainer
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.runs.building import build_trainer, check_trusted
from fscl.runs.record import RunRecord
from fscl.runs.results import load_run
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
    record = load_run(folder / "run.json")
    if not record.finished:
        raise FsclError(
            f"{folder}: the run is {record.status} after {len(record.accuracy)} of {len(record.tasks)} tasks"
        )
    number, classes = _task_and_classes(record, task)
    spec = _spec(record, str(device))
    if not trust:
        for recipe in (spec.benchmark, spec.strategy):
            recipe._stranger = str(folder / "run.json")
    check_trusted(spec)
    saved = read_weights(folder / WEIGHTS)
    trainer: Trainer = build_trainer(spec, _placeholder(record, tuple(saved["image_shape"])), None)
    try:
        trainer.load_served_state(saved["learner"])
    except Exception as error:  # another version of a learner may raise anything
        made = record.versions.get("fscl", "unknown")
        raise FsclError(
            f"{folder / WEIGHTS}: does not fit this version of its learner ({error}); made by fscl {made}"
        ) from error
    transform = ImageTransform.of_constants(saved["scale"], saved["shift"])
    return TaskNetwork(trainer, number, classes, transform)


def _task_and_classes(record: RunRecord, task: int | str | None) -> tuple[int | None, list[str]]:
    """The number of the task, or None for all classes together; and the names of its outputs."""
    names = [list(map(str, part.classes)) for part in record.tasks]
    if record.benchmark.split.get("scenario", "task") == "class":
        if task is not None:
            raise FsclError("the run has one network for the classes of all tasks; leave out the task")
        return None, [name for classes in names for name in classes]
    listing = "; ".join(f"{i}: {name}" for i, name in enumerate(record.task_names))
    if task is None:
        if len(names) > 1:
            raise FsclError(f"the run has {len(names)} tasks; give one of them: {listing}")
        task = 0
    if isinstance(task, str) and not task.isdecimal():
        if record.task_names.count(task) != 1:
            raise FsclError(f"task {task!r} is unknown; tasks: {listing}")
        task = record.task_names.index(task)
    number = int(task)
    if not 0 <= number < len(names):
        raise FsclError(f"task {number} is unknown; tasks: {listing}")
    return number, names[number]


def _spec(record: RunRecord, device: str) -> RunSpec:
    """The specification of a recorded run.

    Raises:
        FsclError: this version of fscl would do another run.
    """
    benchmark = BenchmarkRecipe.model_validate(record.benchmark.model_dump(by_alias=True))
    strategy = StrategyRecipe.model_validate(record.strategy.model_dump(by_alias=True))
    spec = RunSpec(benchmark, strategy, record.seed, None, device, validation=record.validation, first=record.first)
    if spec.hash != record.recipe_hash:
        raise FsclError(
            f"{record.path}: made by another recipe or another fscl (hash {record.recipe_hash}, now {spec.hash})"
        )
    plain = benchmark.training.model_copy(update={"drop_last": False, "compile": False})
    return RunSpec(benchmark.model_copy(update={"training": plain}), strategy, record.seed, None, device)


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
