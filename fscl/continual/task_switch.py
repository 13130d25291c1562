"""What the learners that keep a network a task have in common: in evaluation the network points at the stored ones."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from avalanche.models import DynamicModule, MultiHeadClassifier, avalanche_forward
from torch import Tensor, nn

from fscl.atoms.entries import point_entries, within
from fscl.atoms.layers import AtomConv2d
from fscl.continual.avalanche_private import head_entries
from fscl.continual.learner import LearnerPlugin
from fscl.continual.loader import task_of

__all__ = ["LabelSwitchPlugin", "TaskSwitchPlugin", "head_names", "multi_heads"]


class TaskSwitchPlugin(LearnerPlugin):
    """Base of plugins that store a network, or part of one, for each task, and evaluate with the stored ones.

    A task in training is evaluated as it stands; one that was never learned, with what is in the network. Evaluation
    leaves no trace: not in the network, not in the heads, not in the random number generators.
    """

    transient: ClassVar[tuple[str, ...]] = ("_before", "_random", "_heads", "_shown")

    def __init__(self) -> None:
        super().__init__()
        self._training: set[int] = set()  # tasks of the experience in training
        self._before: dict[str, Tensor] = {}  # what the network held before it was pointed elsewhere
        self._shown: int | None = None
        self._random: list[Tensor] = []
        self._heads: list[tuple[nn.Module, dict[str, Any]]] = []  # what heads were before an evaluation

    def tasks_of(self, experience: Any) -> list[int]:
        """The numbers under which what is learned of an experience is stored."""
        return list(experience.task_labels)

    def stored(self, task: int) -> Mapping[str, Tensor] | None:
        """The tensors of a task, or None if it was never learned."""
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        """Mean bytes kept of a task, by kind."""
        raise NotImplementedError

    def shared_memory(self) -> dict[str, int]:
        """Bytes kept once for all tasks, by kind."""
        raise NotImplementedError

    @property
    def shown(self) -> int | None:
        """The task that the network is pointed at; None where it is as training left it."""
        return self._shown

    # evaluation

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)  # an interrupted evaluation may have left the network pointed elsewhere
        self._random = [torch.get_rng_state()]
        if strategy.device.type == "cuda":
            self._random.append(torch.cuda.get_rng_state(strategy.device))
        heads = [strategy.model.get_submodule(name) for name in head_names(strategy.model) or []]
        self._heads = [(module, _structure(module)) for head in heads for module in head.modules()]

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)  # a head that Avalanche grows next must be the network's own

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)
        for module, before in self._heads:  # Avalanche grew them for tasks and classes that were only evaluated
            vars(module).update(before)
        self._heads = []
        torch.set_rng_state(self._random[0])
        if len(self._random) > 1:
            torch.cuda.set_rng_state(self._random[1], strategy.device)

    # training

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._training = set(self.tasks_of(strategy.experience))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._training = set()

    # inside

    def _show(self, model: nn.Module, task: int | None) -> None:
        """Points the network at a task's tensors; None, or a task in training or unknown, at its own."""
        entries = None if task is None or task in self._training else self.stored(task)
        if entries is None:
            task = None
        if task == self._shown:
            return
        if self._before:
            point_entries(model, self._before)
            self._before = {}
        if entries is not None:
            self._before = point_entries(model, entries)
        self._shown = task


class LabelSwitchPlugin(TaskSwitchPlugin):
    """Base of plugins that evaluate each sample with the network of its task label; mini-batches may mix tasks."""

    scenarios = ("task",)

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        labels = self._labels(strategy)
        if len(labels) == 1:
            self._show(strategy.model, labels[0])

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        labels = self._labels(strategy)
        if len(labels) < 2:
            return
        for label in labels:  # the outputs so far are of one network for all tasks: take each from its own
            self._show(strategy.model, label)
            mask = strategy.mb_task_id == label
            part = avalanche_forward(strategy.model, strategy.mb_x[mask], strategy.mb_task_id[mask])
            strategy.mb_output[mask, : part.shape[1]] = part

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Leaves out samples of other tasks that are already stored (a replay plugin's): nothing may change there."""
        if len(self._labels(strategy)) > 1:
            task_ids = strategy.mb_task_id
            ours = torch.tensor([int(t) in self._training or self.stored(int(t)) is None for t in task_ids])
            if bool(ours.any()) and not bool(ours.all()):
                keep = ours.to(task_ids.device)
                strategy.mbatch = [part[keep] for part in strategy.mbatch]

    def _labels(self, strategy: Any) -> list[int]:
        """Task labels of the mini-batch; of an experience with one task without looking at the device."""
        task = task_of(strategy.mb_task_id)
        labels = list(strategy.experience.task_labels) if task is None else [task]
        if len(labels) == 1 and (task is not None or not strategy.is_training):
            return labels
        return [int(t) for t in torch.unique(strategy.mb_task_id)]


def head_names(model: nn.Module, task: int | None = None) -> list[str] | None:
    """State entries, or modules, that are heads: of one task, or all; None if no head is told by its class.

    A multi-head module has a head for each task. Any other dynamic module without convolutions, such as Avalanche's
    ``IncrementalClassifier``, is one head that grows, and is every task's.
    """
    heads = multi_heads(model)
    if not heads:
        return _growing_heads(model) or None
    if task is None:
        return list(heads)
    return [f"{name}.{part}" for name in heads for part in head_entries(task)]


def multi_heads(model: nn.Module) -> dict[str, MultiHeadClassifier]:
    """The modules that hold a head for each task, by dotted name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, MultiHeadClassifier)}


def _growing_heads(model: nn.Module) -> list[str]:
    names: list[str] = []
    for name, module in model.named_modules():
        has_convolutions = any(isinstance(part, nn.Conv2d | AtomConv2d) for part in module.modules())
        if name and isinstance(module, DynamicModule) and not has_convolutions and not within(name, names):
            names.append(name)
    return names


def _structure(module: nn.Module) -> dict[str, Any]:
    """What a module is made of; given back to ``vars``, it undoes what was added or replaced since."""
    tables = ("_parameters", "_buffers", "_modules")
    return {**vars(module), **{table: dict(vars(module)[table]) for table in tables}}
