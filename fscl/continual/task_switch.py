"""Base classes of learners that store a network for each task, and evaluate each task with its stored network."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from avalanche.models import DynamicModule, MultiHeadClassifier, avalanche_forward
from torch import Tensor, nn

from fscl.atoms.entries import point_entries, within
from fscl.atoms.layers import AtomConv2d
from fscl.continual.avalanche_private import head_entries
from fscl.continual.learner import UNSEEN, LearnerPlugin
from fscl.continual.loader import task_of
from fscl.errors import FsclError

__all__ = ["LabelSwitchPlugin", "TaskSwitchPlugin", "head_names", "multi_heads"]


class TaskSwitchPlugin(LearnerPlugin):
    """Base class of plugins that store a network, or part of one, for each task.

    In evaluation the strategy's network points at the tensors that are stored for a task. A task in training, and a
    task that was never learned, is evaluated with the network as training left it. Evaluation changes neither the
    network, nor its heads, nor the random states.
    """

    transient: ClassVar[tuple[str, ...]] = ("_before", "_random", "_heads", "_shown")

    def __init__(self) -> None:
        super().__init__()
        self._training: set[int] = set()  # tasks of the experience in training
        self._before: dict[str, Tensor] = {}  # the network's own tensors while it points at stored ones
        self._shown: int | None = None
        self._random: list[Tensor] = []
        self._heads: list[tuple[nn.Module, dict[str, Any]]] = []  # the heads as they were before the evaluation

    def tasks_of(self, experience: Any) -> list[int]:
        """The tasks under which the network of an experience is stored."""
        return list(experience.task_labels)

    def stored(self, task: int) -> Mapping[str, Tensor] | None:
        """The tensors of a task, or None if it was never learned."""
        raise NotImplementedError

    def former(self, experience: Any) -> dict[str, Tensor]:
        """The network that is stored for the tasks of an experience, with the heads of all of them; empty if none is.

        Raises:
            FsclError: the tasks were trained apart, so that no one network fits all of them.
        """
        known = {task: entries for task in self.tasks_of(experience) if (entries := self.stored(task)) is not None}
        network: dict[str, Tensor] = {}
        for entries in known.values():
            for name, tensor in entries.items():
                first = network.setdefault(name, tensor)
                if first is not tensor and not torch.equal(first, tensor):
                    raise FsclError(
                        f"experience {experience.current_experience} has the task labels "
                        f"{', '.join(map(str, known))}, which were trained apart: their stored networks differ in "
                        f"{name}, and only one of them could be trained further; train each of these tasks in an "
                        "experience of its own"
                    )
        return network

    def memory(self) -> dict[str, int]:
        """Bytes stored for each task (mean over tasks), by kind."""
        raise NotImplementedError

    def shared_memory(self) -> dict[str, int]:
        """Bytes stored once for all tasks, by kind."""
        raise NotImplementedError

    @property
    def shown(self) -> int | None:
        """The task whose stored tensors the network points at; None if it is as training left it."""
        return self._shown

    # evaluation

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)  # an interrupted evaluation may have left the network pointing at a task
        self._random = [torch.get_rng_state()]
        if strategy.device.type == "cuda":
            self._random.append(torch.cuda.get_rng_state(strategy.device))
        heads = [strategy.model.get_submodule(name) for name in head_names(strategy.model) or []]
        self._heads = [(module, _structure(module)) for head in heads for module in head.modules()]

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)  # Avalanche grows a head next: it must be the network's own

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)
        for module, before in self._heads:  # Avalanche added heads and classes of tasks that were only evaluated
            vars(module).update(before)
        self._heads = []
        torch.set_rng_state(self._random[0])
        if len(self._random) > 1:
            torch.cuda.set_rng_state(self._random[1], strategy.device)

    # training

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self._show(strategy.model, None)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.former(strategy.experience)  # refuses tasks that were trained apart
        self._training = set(self.tasks_of(strategy.experience))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._training = set()

    # private

    def _show(self, model: nn.Module, task: int | None) -> None:
        """Points the network at a task's stored tensors, or at its own if ``task`` is None, in training or unknown."""
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
    """Base class of plugins that evaluate each sample with its own task's network. Mini-batches may mix tasks."""

    scenarios = ("task",)

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        labels = self._labels(strategy)
        if len(labels) == 1:
            self._show(strategy.model, labels[0])

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        labels = self._labels(strategy)
        if len(labels) < 2:
            return
        parts = []
        for label in labels:  # so far one network computed all outputs: each task needs its own network
            self._show(strategy.model, label)
            rows = strategy.mb_task_id == label
            parts.append((rows, avalanche_forward(strategy.model, strategy.mb_x[rows], strategy.mb_task_id[rows])))
        # a head that grows is narrower for earlier tasks
        width = max(part.shape[1] for _, part in parts)
        strategy.mb_output = strategy.mb_output.new_full((len(strategy.mb_x), width), UNSEEN)
        for rows, part in parts:
            strategy.mb_output[rows, : part.shape[1]] = part

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Leaves out samples, such as replayed ones, of other tasks that are stored: their networks must not change."""
        if len(self._labels(strategy)) > 1:
            task_ids = strategy.mb_task_id
            trained = torch.tensor([int(t) in self._training or self.stored(int(t)) is None for t in task_ids])
            if bool(trained.any()) and not bool(trained.all()):
                rows = trained.to(task_ids.device)
                strategy.mbatch = [part[rows] for part in strategy.mbatch]

    def _labels(self, strategy: Any) -> list[int]:
        """The task labels of the mini-batch. Reads the tensor only if needed, because this synchronises a GPU."""
        task = task_of(strategy.mb_task_id)
        labels = list(strategy.experience.task_labels) if task is None else [task]
        if len(labels) == 1 and (task is not None or not strategy.is_training):
            return labels
        return [int(t) for t in torch.unique(strategy.mb_task_id)]


def head_names(model: nn.Module, task: int | None = None) -> list[str] | None:
    """Names of the entries or modules that are heads, of one task or of all; None if no module's class marks a head.

    A multi-head module has a head for each task. Any other dynamic module without convolutions, such as Avalanche's
    ``IncrementalClassifier``, is one head that grows and that all tasks have.
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
    """A module's attributes, with copies of its tables; ``vars(module).update`` with them undoes later additions."""
    tables = ("_parameters", "_buffers", "_modules")
    return {**vars(module), **{table: dict(vars(module)[table]) for table in tables}}
