"""What a learner answers for images of a task, as a network that can be called."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from fscl.continual.training.trainer import Trainer
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError

__all__ = ["TaskNetwork", "random_states_kept"]


class TaskNetwork(nn.Module):
    """What a run answers for images of one task: its network and all that its learner adds to it in evaluation.

    It answers in evaluation mode and records no gradients. :func:`fscl.load_network` makes it.

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
        with random_states_kept():
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


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """A trainer seeds all generators, and an evaluation draws numbers; a user's own draws must not depend on it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries draw from it
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
