"""Base classes of learners with atoms for each task: decomposition, the bank, and the start of a task."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from fscl.atoms.bank import AtomBank
from fscl.atoms.decompose import decompose
from fscl.atoms.entries import put_entries
from fscl.atoms.layers import atom_layers
from fscl.continual.learner import PluginStrategy
from fscl.continual.task_switch import TaskSwitchPlugin, head_names
from fscl.errors import FsclError

__all__ = ["AtomBankPlugin", "BankStrategy"]

WARM_STARTS = ("previous", "first")


class AtomBankPlugin(TaskSwitchPlugin):
    """Base class of plugins that learn new atoms for each task over coefficients frozen after the first task.

    What it does, its arguments and its attributes are those of :class:`fscl.continual.AtomSwappingPlugin`; a subclass
    says how a test image finds its task's network.
    """

    def __init__(
        self,
        num_atoms: int = 9,
        warm_start: Literal["previous", "first"] = "previous",
        skip: Collection[str] = (),
    ) -> None:
        super().__init__()
        if warm_start not in WARM_STARTS:
            raise FsclError(f"warm_start is {warm_start!r}; known: {', '.join(WARM_STARTS)}")
        if num_atoms < 1:
            raise FsclError(f"num_atoms is {num_atoms}; it must be at least 1")
        self.num_atoms = num_atoms
        self.warm_start = warm_start
        self.skip = tuple(skip)
        self.bank: AtomBank | None = None
        self._last: int | None = None
        self._owners: dict[int, int] = {}  # task -> the experience that trained it last

    def stored(self, task: int) -> Mapping[str, Tensor] | None:
        return self.bank.entries(task) if self.bank is not None and task in self.bank else None

    def memory(self) -> dict[str, int]:
        return {} if self.bank is None else self.bank.memory()

    def shared_memory(self) -> dict[str, int]:
        return {} if self.bank is None else self.bank.shared_memory()

    def prepare(self, model: nn.Module) -> nn.Module:
        """The decomposition of the network; a network that has atom layers is returned unchanged."""
        return model if atom_layers(model) else decompose(model, self.num_atoms, self.skip).model

    def attach(self, strategy: Any) -> None:
        """Decomposes the strategy's model, once, and points the optimizer at its new parameters."""
        model = self.prepare(strategy.model)
        if model is not strategy.model:
            _repoint_optimizer(
                strategy.optimizer, dict(strategy.model.named_parameters()), dict(model.named_parameters())
            )
            strategy.model = model

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training(strategy, **kwargs)
        self.attach(strategy)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.attach(strategy)
        super().before_eval(strategy, **kwargs)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_exp(strategy, **kwargs)
        if self.bank is None:
            return
        tasks = self.tasks_of(strategy.experience)
        known = [t for t in tasks if t in self.bank]
        number = strategy.experience.current_experience
        if known and self._owners.get(known[0], number) != number:
            warnings.warn(
                f"experience {number} has task label {known[0]}, which experience {self._owners[known[0]]} had, too: "
                "it trains the atoms of that task further, and their former values are lost. To keep them, give each "
                "experience its own task label, with return_task_id=True or task_incremental_benchmark",
                stacklevel=2,
            )
        heads = head_names(strategy.model)
        task_heads = (
            None if heads is None else [name for task in tasks for name in head_names(strategy.model, task) or []]
        )
        start = None
        if known:  # trained before: training continues from its stored tensors
            start = known[0]
        elif self.bank.tasks:
            start = self.bank.tasks[0] if self.warm_start == "first" or self._last is None else self._last
        self.bank.begin(strategy.model, start, task_heads, fresh_head=False)
        if known:  # their heads are trained further, too
            put_entries(strategy.model, self.former(strategy.experience))
        elif start is not None and heads is None:
            put_entries(strategy.model, self.bank.entries(start))
        strategy.optimizer.state.clear()  # it holds momentum of another task's atoms

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        model, experience = strategy.model, strategy.experience
        heads = head_names(model)
        if self.bank is None:
            self.bank = AtomBank(model, heads)
        for task in self.tasks_of(experience):
            name = getattr(experience, "task_name", None)
            self.bank.store(model, task, name, None if heads is None else head_names(model, task))
            self._last, self._owners[task] = task, experience.current_experience
        super().after_training_exp(strategy, **kwargs)

    def resume(self, strategy: Any, bank: AtomBank) -> None:
        """Continues from a saved bank: the next experience is trained as if the bank's tasks had been learned here.

        Args:
            strategy: the strategy, with a network that was built like the bank's.
            bank: the bank, which does not change. Its last task is put into the network.
        """
        self.attach(strategy)
        self.bank, self._last = bank.to(strategy.device), bank.tasks[-1]
        for task in bank.tasks:
            bank.restore(strategy.model, task)
        strategy.model.to(strategy.device)


class BankStrategy(PluginStrategy):
    """Base class of strategies whose built-in plugin has a bank."""

    @property
    def bank(self) -> AtomBank | Any:  # not "| None": type checkers would ask to rule None out after training, too
        """The bank of the tasks learned so far; None before the first experience has ended."""
        return next(plugin.bank for plugin in self.plugins if isinstance(plugin, AtomBankPlugin))


def _repoint_optimizer(optimizer: Optimizer, old: dict[str, nn.Parameter], new: dict[str, nn.Parameter]) -> None:
    """Replaces the old network's parameters in each parameter group by those of the new network.

    Coefficients and atoms go into the group of their filters. A parameter that was in no group is not added to one.
    """
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    groups: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
    old_ids = {id(p) for p in old.values()}
    for i, group in enumerate(optimizer.param_groups):
        groups[i] = [p for p in group["params"] if id(p) not in old_ids]  # for example parameters of a criterion
    for name, parameter in new.items():
        owner, _, leaf = name.rpartition(".")
        source = old.get(name) if leaf not in ("coefficients", "atoms") else old.get(f"{owner}.weight", old.get(name))
        if source is not None and id(source) in group_of:
            groups[group_of[id(source)]].append(parameter)
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = parameters
    optimizer.state.clear()
