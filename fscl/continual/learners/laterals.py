"""Lateral connections: the inputs of a convolution in former columns contribute to its output in the present one."""

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

INITIAL_SCALE = 0.1  # factor of former columns' activations: small, so that a new column starts almost on its own


def connect(
    model: nn.Module,
    convolutions: Sequence[nn.Conv2d],
    columns: int | None,
    former: Callable[[], Sequence[Mapping[str, Tensor]]],
) -> None:
    """Adds a :class:`Lateral` to each convolution, and makes each batch pass through the former columns first.

    Args:
        model: the network.
        convolutions: the convolutions of the network at which columns are connected.
        columns: number of columns, from the first one, that feed later columns; None for all.
        former: returns the entries of the columns that exist, in the order in which they were learned.
    """
    laterals = [Lateral(convolution, columns) for convolution in convolutions]
    hooks = _ColumnHooks(laterals, former)
    for convolution, lateral in zip(convolutions, laterals, strict=True):
        convolution.lateral = lateral.train(convolution.training)
        convolution.register_forward_pre_hook(partial(hooks.collect, lateral))
        convolution.register_forward_hook(partial(_add_lateral, lateral))
    model.register_forward_pre_hook(hooks.pass_columns)
    model.register_forward_hook(hooks.forget)


class Lateral(DynamicModule):
    """Turns the inputs of one convolution in former columns into a summand of its output in the present column.

    It is an adapter with one hidden layer, as in the paper. The input in each former column is multiplied by a learned
    number. A 1x1 convolution maps all of them to the convolution's input channels; after a ReLU, a second 1x1
    convolution maps these to its output channels. Stride and padding match the convolution, so that positions match.
    Without former columns the adapter is empty.

    Args:
        convolution: the convolution to which the adapter belongs.
        columns: number of columns, from the first one, that feed later columns; None for all.

    Attributes:
        fed: the inputs of the convolution in each former column for the present batch, each (N, C, H, W).
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
        """Makes the adapter of a new task. Avalanche calls this before the optimizer collects parameters."""
        task = next(iter(experience.task_labels))
        if self.training and task not in self.tasks:
            former = len(self.tasks)
            self._make(former if self.columns is None else min(self.columns, former), self.scale)
            self.tasks = [*self.tasks, task]

    def forward(self) -> Tensor | None:
        count = len(self.scale)  # of the column that the network points at, which need not be the latest
        if not count or not self.fed:
            return None
        channels = self.channels[0]
        inputs = F.pad(torch.cat(self.fed[:count], 1), self.margins)
        weight = self.down * self.scale.repeat_interleave(channels).view(1, -1, 1, 1)
        return F.conv2d(F.relu(F.conv2d(inputs, weight, self.bias, self.stride)), self.up)

    @torch.no_grad()
    def _make(self, count: int, like: Tensor) -> None:
        inputs, outputs = self.channels if count else (0, 0)
        self.scale = nn.Parameter(like.new_full((count,), INITIAL_SCALE))
        self.down = nn.Parameter(like.new_empty(inputs, count * inputs, 1, 1))
        self.bias = nn.Parameter(like.new_zeros(inputs))
        self.up = nn.Parameter(like.new_empty(outputs, inputs, 1, 1))
        if count:
            nn.init.kaiming_normal_(self.down, nonlinearity="relu")
            nn.init.kaiming_normal_(self.up, nonlinearity="relu")


class _ColumnHooks:
    """Hooks that pass each batch through the former columns first, up to the last convolution with a lateral."""

    def __init__(self, laterals: Sequence[Lateral], former: Callable[[], Sequence[Mapping[str, Tensor]]]) -> None:
        self.laterals, self.former = laterals, former
        self.waiting = 0  # convolutions that the batch has not reached yet in the former column that it passes

    @torch.no_grad()
    def pass_columns(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.waiting:  # this call is the pass through a former column
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
                    model(inputs[0], *[0 for _ in inputs[1:]])  # any task label will do: the pass ends before the heads
                except _LastInputCollected:
                    pass
                finally:
                    self.waiting = 0
                    point_entries(model, before)

    def collect(self, lateral: Lateral, convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.waiting:
            lateral.fed.append(inputs[0])
            self.waiting -= 1
            if not self.waiting:
                raise _LastInputCollected  # no lateral needs the rest of the column

    def forget(self, *_: Any) -> None:
        for lateral in self.laterals:
            lateral.fed.clear()


class _LastInputCollected(Exception):
    """Ends a pass through a former column early."""


def _add_lateral(lateral: Lateral, convolution: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    summand = lateral()
    return None if summand is None else output + summand


def _of_one_task(inputs: tuple[Any, ...]) -> bool:
    """Whether all samples have one task. Outputs of a mixture are replaced later, see ``LabelSwitchPlugin``."""
    if len(inputs) < 2 or isinstance(inputs[1], int) or task_of(inputs[1]) is not None:
        return True
    return len(torch.unique(inputs[1])) == 1


def _margins(convolution: nn.Conv2d) -> tuple[int, ...]:
    """The padding (negative: cropping) after which a 1x1 convolution sees the centres of this convolution's filters."""
    margins: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last axis
        reach = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1)
        if convolution.padding == "same":
            margins += [0, 0]
        else:
            padding = 0 if isinstance(convolution.padding, str) else int(convolution.padding[axis])
            margins += [padding - reach // 2, padding - (reach - reach // 2)]
    return tuple(margins)
