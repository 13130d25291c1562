"""Lateral connections: what a network's convolutions received in former columns is added to what they give."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.atoms.entries import point_entries
from fscl.continual.loader import task_of
from fscl.modes import evaluating

__all__ = ["Lateral", "connect"]

SCALE = 0.1  # of former columns' activations at first: a new column begins almost by itself, and learns what helps


def connect(
    model: nn.Module,
    convolutions: Sequence[nn.Conv2d],
    columns: int | None,
    former: Callable[[], Sequence[Mapping[str, Tensor]]],
) -> None:
    """Puts a :class:`Lateral` beside convolutions, and has each batch pass through the former columns first.

    Args:
        model: the network.
        convolutions: those of the network's convolutions at which columns are connected.
        columns: how many columns feed later ones, None for all.
        former: the entries of the columns that there are, in the order in which they were learned.
    """
    laterals = [Lateral(convolution, columns) for convolution in convolutions]
    feeding = _Feeding(laterals, former)
    for convolution, lateral in zip(convolutions, laterals, strict=True):
        convolution.lateral = lateral.train(convolution.training)
        convolution.register_forward_pre_hook(partial(feeding.collect, lateral))
        convolution.register_forward_hook(partial(_add, lateral))
    model.register_forward_pre_hook(feeding.pass_columns)
    model.register_forward_hook(feeding.forget)


class Lateral(DynamicModule):
    """What one convolution receives in former columns, made into a share of what it gives in the present one.

    An adapter with one hidden layer, as in the paper: each former column's input times a learned number, together
    through a 1x1 convolution to as many channels as the convolution takes, ReLU, and a 1x1 convolution to as many as it
    gives. Strides and margins are the convolution's, so that places are the same. Without former columns it is empty.

    Args:
        convolution: the convolution beside which it is.
        columns: how many columns feed later ones, None for all.

    Attributes:
        fed: what the convolution received in each former column, (N, C, H, W), of the batch that passes.
    """

    def __init__(self, convolution: nn.Conv2d, columns: int | None = None) -> None:
        super().__init__()
        self.channels = convolution.in_channels, convolution.out_channels
        self.stride, self.margins = convolution.stride, _margins(convolution)
        self.columns = columns
        self.tasks: list[int] = []
        self.fed: list[Tensor] = []
        self._make(0, convolution.weight)

    def adaptation(self, experience: Any) -> None:
        """A new task's laterals are made here, before the optimizer looks for parameters."""
        task = next(iter(experience.task_labels))
        if self.training and task not in self.tasks:
            former = len(self.tasks)
            self._make(former if self.columns is None else min(self.columns, former), self.scale)
            self.tasks = [*self.tasks, task]

    def forward(self) -> Tensor | None:
        count = len(self.scale)  # of the column at which the network points, not always the latest
        if not count or not self.fed:
            return None
        channels = self.channels[0]
        inputs = F.pad(torch.cat(self.fed[:count], 1), self.margins)
        weight = self.down * self.scale.repeat_interleave(channels).view(1, -1, 1, 1)
        return F.conv2d(F.relu(F.conv2d(inputs, weight, self.bias, self.stride)), self.up)

    @torch.no_grad()
    def _make(self, count: int, like: Tensor) -> None:
        taken, given = self.channels if count else (0, 0)
        self.scale = nn.Parameter(like.new_full((count,), SCALE))
        self.down = nn.Parameter(like.new_empty(taken, count * taken, 1, 1))
        self.bias = nn.Parameter(like.new_zeros(taken))
        self.up = nn.Parameter(like.new_empty(given, taken, 1, 1))
        if count:
            nn.init.kaiming_normal_(self.down, nonlinearity="relu")
            nn.init.kaiming_normal_(self.up, nonlinearity="relu")


class _Feeding:
    """Hooks by which each batch passes through the former columns first, as far as laterals lead out of them."""

    def __init__(self, laterals: Sequence[Lateral], former: Callable[[], Sequence[Mapping[str, Tensor]]]) -> None:
        self.laterals, self.former = laterals, former
        self.waiting = 0  # convolutions of the former column in passing that have not received anything yet

    @torch.no_grad()
    def pass_columns(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.waiting:  # this is a former column
            return
        self.forget()
        count = len(self.laterals[0].scale)
        if not count or not _of_one_task(inputs):
            return
        with evaluating(model):
            for network in self.former()[:count]:
                before = point_entries(model, network)
                self.waiting = len(self.laterals)
                try:
                    model(inputs[0], *[0 for _ in inputs[1:]])  # of whatever task: it ends before the heads
                except _Enough:
                    pass
                finally:
                    self.waiting = 0
                    point_entries(model, before)

    def collect(self, lateral: Lateral, convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.waiting:
            lateral.fed.append(inputs[0])
            self.waiting -= 1
            if not self.waiting:
                raise _Enough  # nothing leads out of what is left of the column

    def forget(self, *_: Any) -> None:
        for lateral in self.laterals:
            lateral.fed.clear()


class _Enough(Exception):
    """Ends a pass through a former column."""


def _add(lateral: Lateral, convolution: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    share = lateral()
    return None if share is None else output + share


def _of_one_task(inputs: tuple[Any, ...]) -> bool:
    """The answers for a mixture are of no use: each task's part follows by itself, see ``TaskSwitchPlugin``."""
    if len(inputs) < 2 or isinstance(inputs[1], int) or task_of(inputs[1]) is not None:
        return True
    return len(torch.unique(inputs[1])) == 1


def _margins(convolution: nn.Conv2d) -> tuple[int, ...]:
    """Padding, or cropping where it is negative, after which a 1x1 convolution sees the centres that this one sees."""
    margins: list[int] = []
    for axis in (1, 0):  # torch's padding begins with the last
        reach = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1)
        if convolution.padding == "same":
            margins += [0, 0]
        else:
            padding = 0 if isinstance(convolution.padding, str) else int(convolution.padding[axis])
            margins += [padding - reach // 2, padding - (reach - reach // 2)]
    return tuple(margins)
