"""Images with channels last, for the networks that stand it."""

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

__all__ = ["Layout", "channels_last"]


class Layout:
    """A hook before a network's forward pass that lays images out with channels last.

    Convolutions adapt to it whatever the layout of their filters, and hand it on. Most networks do not mind. Those that
    reckon with strides do: ``view`` fails, in the forward pass or in the backward one, and ``as_strided`` reads other
    values. A copy of the network is tried on two images, in both layouts, before the layout is settled; of all that is
    drawn or counted on the way nothing is left.
    """

    def __init__(self) -> None:
        self.last, self.decided = True, False

    @staticmethod
    def of(model: nn.Module) -> "Layout | None":
        """That of a network, if it has one."""
        return next((hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Layout)), None)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.last:
            return inputs
        return tuple(channels_last(x) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs)

    def decide(self, model: nn.Module, experience: Any, device: Any, tolerance: float) -> None:
        """Once: whether the network stands the layout, on images of the experience.

        Args:
            model: the network that this is a hook of.
            experience: an Avalanche experience.
            device: where the network is.
            tolerance: of the largest output, by which outputs may differ between the layouts.
        """
        if self.decided:
            return
        self.decided = True
        with _as_before(device):
            try:
                samples = [experience.dataset[i] for i in range(min(2, len(experience.dataset)))]
                images = torch.stack([sample[0] for sample in samples]).to(device)
                tasks = torch.tensor([int(sample[-1]) for sample in samples], device=device)
                trial = copy.deepcopy(model)
            except Exception:  # no images, or a network that cannot be copied: nothing is known
                return
            if images.ndim == 4 and (reason := _misfit(trial, images, tasks, tolerance)):
                self.last = False
                warnings.warn(
                    f"{_called(model)} is trained without channels last, with which {reason}; to avoid this, flatten "
                    "maps with x.flatten(1) in place of x.view, or say channels_last=False (in recipes "
                    "training.channels_last = false)",
                    stacklevel=2,
                )


def channels_last(x: Tensor) -> Tensor:
    """Images (N, C, H, W) laid out with channels last, also where there is one channel and both layouts are the same
    memory: strides tell a convolution which one is meant."""
    if x.shape[1] > 1 or not x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    return x.as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))


def _misfit(model: nn.Module, images: Tensor, tasks: Tensor, tolerance: float) -> str:
    """What a network does with channels last that it does not do without; empty if it does the same."""
    layout = Layout.of(model)
    assert layout is not None
    answers: dict[bool, Any] = {}
    for training in (False, True):
        for last in (True, False):
            layout.last = last
            model.train(training)
            _seed(images.device)
            try:
                with torch.set_grad_enabled(training):
                    answers[last] = avalanche_forward(model, images, tasks)
                    if training and isinstance(answers[last], Tensor):
                        answers[last].float().square().sum().backward()
            except Exception as error:
                answers[last] = error
            if training and not isinstance(answers[True], Exception):
                break  # the other layout has nothing to explain
        failed = answers[True]
        if isinstance(failed, Exception):
            # what fails in both is no matter of layout, and will be said when it fails
            return "" if isinstance(answers[False], Exception) else f"it fails ({' '.join(str(failed).split())[:150]})"
        if not training and _differ(failed, answers[False], tolerance):
            return "it computes something else"
    return ""


def _differ(one: Any, other: Any, tolerance: float) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return False
    largest = other.abs().nan_to_num().max() if other.numel() else other.new_zeros(())
    return not torch.allclose(one, other, rtol=0, atol=float(tolerance * largest) + 1e-6, equal_nan=True)


def _seed(device: torch.device) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.random.default_generator.manual_seed(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)


@contextmanager
def _as_before(device: Any) -> Iterator[None]:
    """Random states of torch, numpy and Python are afterwards what they were."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - what networks may draw from
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002


def _called(model: nn.Module) -> str:
    """Of a network with a head a task the network within, which is the one that people wrote."""
    return type(getattr(model, "model", model)).__name__
