"""Images with channels last, for the networks that compute the same with this layout."""

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from fscl.optimization import channels_last

__all__ = ["Layout"]


class Layout:
    """A hook before a network's forward pass that lays images out with channels last.

    Convolutions take this layout with filters of any layout, and give it to their outputs. Most networks compute the
    same with it. Networks that depend on strides do not: ``view`` fails, in the forward or the backward pass, and
    ``as_strided`` reads other values. So a copy of the network is tried on two images in both layouts before the layout
    is used. The trial changes neither the network nor any random state.
    """

    def __init__(self) -> None:
        self.channels_last, self.decided = True, False

    @staticmethod
    def of(model: nn.Module) -> "Layout | None":
        """The layout hook of a network, or None."""
        return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Layout)), None)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.channels_last:
            return inputs
        return tuple(channels_last(x) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs)

    def decide(self, model: nn.Module, experience: Any, device: Any, tolerance: float) -> None:
        """Tries the layout on images of the experience, and drops it if the network fails. Only the first call does so.

        Args:
            model: the network that has this hook.
            experience: an Avalanche experience.
            device: the device of the network.
            tolerance: share of the largest output by which outputs may differ between the layouts.
        """
        if self.decided:
            return
        self.decided = True
        with _restored_random_states(device):
            try:
                samples = [experience.dataset[i] for i in range(min(2, len(experience.dataset)))]
                images = torch.stack([sample[0] for sample in samples]).to(device)
                tasks = torch.tensor([int(sample[-1]) for sample in samples], device=device)
                trial = copy.deepcopy(model)
            except Exception:  # no images, or a network that cannot be copied: it cannot be tried
                return
            if images.ndim == 4 and (reason := _failure_of_layout(trial, images, tasks, tolerance)):
                self.channels_last = False
                warnings.warn(
                    f"{_class_name(model)} is trained without channels last, because with this layout {reason}; "
                    "flatten maps with x.flatten(1) in place of x.view, or set channels_last=False (in recipes "
                    "training.channels_last = false) to avoid this warning",
                    stacklevel=2,
                )


def _failure_of_layout(model: nn.Module, images: Tensor, tasks: Tensor, tolerance: float) -> str:
    """How a network fails with channels last, in words; empty if it computes the same in both layouts."""
    layout = Layout.of(model)
    assert layout is not None
    answers: dict[bool, Any] = {}
    for training in (False, True):
        for chosen in (True, False):
            layout.channels_last = chosen
            model.train(training)
            _seed(images.device)
            try:
                with torch.set_grad_enabled(training):
                    answers[chosen] = avalanche_forward(model, images, tasks)
                    if training and isinstance(answers[chosen], Tensor):
                        answers[chosen].float().square().sum().backward()
            except Exception as error:
                answers[chosen] = error
            if training and not isinstance(answers[True], Exception):
                break  # it did not fail, so the other layout need not be tried
        answer = answers[True]
        if isinstance(answer, Exception):
            # a failure in both layouts has another cause, which training will report
            return "" if isinstance(answers[False], Exception) else f"it fails ({' '.join(str(answer).split())[:150]})"
        if not training and _differ(answer, answers[False], tolerance):
            return "it computes something else"
    return ""


def _differ(answer: Any, expected: Any, tolerance: float) -> bool:
    if not (isinstance(answer, Tensor) and isinstance(expected, Tensor)) or answer.shape != expected.shape:
        return False
    largest = expected.abs().nan_to_num().max() if expected.numel() else expected.new_zeros(())
    return not torch.allclose(answer, expected, rtol=0, atol=float(tolerance * largest) + 1e-6, equal_nan=True)


def _seed(device: torch.device) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.random.default_generator.manual_seed(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


@contextmanager
def _restored_random_states(device: Any) -> Iterator[None]:
    """Restores the random states of torch, numpy and Python when the block ends."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - networks may draw from it
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _class_name(model: nn.Module) -> str:
    """The class that the user wrote: a multi-head network holds it as ``model``."""
    return type(getattr(model, "model", model)).__name__
