"""Filter atom swapping as an Avalanche strategy, and as a plugin for others."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from fscl.atoms.bank import AtomBank
from fscl.atoms.decompose import decompose
from fscl.atoms.entries import put_entries
from fscl.atoms.layers import atom_layers
from fscl.continual.task_switch import TaskSwitchPlugin, head_names
from fscl.errors import FsclError

__all__ = ["AtomSwapping", "AtomSwappingPlugin"]

WARM_STARTS = ("previous", "first")


class AtomSwappingPlugin(TaskSwitchPlugin):
    """Learns a new set of atoms a task over coefficients frozen after the first; use beside other plugins.

    On the first experience the whole network is trained. Then the coefficients' gauge is fixed, everything shared is
    frozen, and each later task trains its own atoms, normalisation, biases and head, which end up in :attr:`bank`.
    During evaluation each sample is seen by its own task's network, so no task is ever forgotten.

    The strategy's model is decomposed (:func:`fscl.decompose`) if it is not already; its optimizer is pointed at the
    new parameters, group by group.

    Args:
        num_atoms: atoms of a 3x3 layer, if the model is to be decomposed, see :func:`fscl.decompose`.
        warm_start: a new task starts from the ``"previous"`` task's atoms or from the ``"first"`` task's. Heads of
            Avalanche's multi-head modules always start fresh.
        skip: modules that are not decomposed, by dotted name.

    Attributes:
        bank: the :class:`~fscl.atoms.AtomBank`, or None before the first experience has ended.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> plugin = AtomSwappingPlugin(num_atoms=9)
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.bank is None
        True
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

    def attach(self, strategy: Any) -> None:
        """Decomposes the strategy's model, once, and hands its new parameters to the optimizer."""
        if not atom_layers(strategy.model):
            old = dict(strategy.model.named_parameters())
            strategy.model = decompose(strategy.model, self.num_atoms, self.skip).model
            _hand_over(strategy.optimizer, old, dict(strategy.model.named_parameters()))

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
                f"experience {number} has task label {known[0]}, which experience {self._owners[known[0]]} had: it "
                "trains that task's atoms further, and what they did before is gone. For atoms of its own give each "
                "experience a task label of its own, as with return_task_id=True or task_incremental_benchmark",
                stacklevel=2,
            )
        heads = head_names(strategy.model)
        mine = None if heads is None else [name for task in tasks for name in head_names(strategy.model, task) or []]
        start = None
        if known:  # trained before: it is taken up where it ended
            start = known[0]
        elif self.bank.tasks:
            start = self.bank.tasks[0] if self.warm_start == "first" or self._last is None else self._last
        self.bank.begin(strategy.model, start, mine, fresh_head=False)
        if start is not None and (known or heads is None):  # the head that start had goes on, too
            put_entries(strategy.model, self.bank.entries(start))
        strategy.optimizer.state.clear()  # momentum of another task's atoms

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
        """Takes up a saved bank: the next experience is trained as if all its tasks had just been learned here.

        Args:
            strategy: the strategy, with a network built as the bank's was.
            bank: the bank, whose last task becomes the network's present one; it is not changed.
        """
        self.attach(strategy)
        self.bank, self._last = bank.to(strategy.device), bank.tasks[-1]
        for task in bank.tasks:
            bank.restore(strategy.model, task)
        strategy.model.to(strategy.device)


class AtomSwapping(SupervisedTemplate):
    """Filter atom swapping: an Avalanche strategy to put in the place of ``Naive``.

    Takes the keyword arguments that every Avalanche strategy takes, and :class:`AtomSwappingPlugin`'s. The model may be
    any network with spatial convolutions; ``strategy.model`` is its decomposition, the model passed in stays as it is.

    Args:
        model, optimizer, criterion, train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator, eval_every:
            as in ``avalanche.training.Naive``.
        num_atoms, warm_start, skip: as in :class:`AtomSwappingPlugin`.

    Raises:
        FsclError: the model has no spatial convolutions, or an argument does not fit.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> from avalanche.models import as_multitask
        >>> net = nn.Sequential()
        >>> net.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten())
        >>> net.classifier = nn.Linear(288, 2)
        >>> model = as_multitask(net, "classifier")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> strategy = AtomSwapping(model=model, optimizer=optimizer, num_atoms=9, evaluator=None)
        >>> strategy.model.model.features[0]
        AtomConv2d(1, 8, kernel_size=(3, 3), num_atoms=8)
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any = None,
        num_atoms: int = 9,
        warm_start: Literal["previous", "first"] = "previous",
        skip: Collection[str] = (),
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[SupervisedPlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        **base_kwargs: Any,
    ) -> None:
        self.atom_swapping = AtomSwappingPlugin(num_atoms, warm_start, skip)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            # first, so that whatever other plugins read after an experience is already archived
            plugins=[self.atom_swapping, *(plugins or [])],
            evaluator=evaluator,
            eval_every=eval_every,
            **base_kwargs,
        )
        self.atom_swapping.attach(self)

    @property
    def bank(self) -> AtomBank | None:
        """The bank of the tasks learned so far; None before the first experience has ended."""
        return self.atom_swapping.bank


def _hand_over(optimizer: Optimizer, old: dict[str, nn.Parameter], new: dict[str, nn.Parameter]) -> None:
    """Points each parameter group at the new network's parameters in place of the old ones'.

    Coefficients and atoms go where their filters were; a parameter that was in no group goes into none.
    """
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    groups: list[list[nn.Parameter]] = [[] for _ in optimizer.param_groups]
    ours = {id(p) for p in old.values()}
    for i, group in enumerate(optimizer.param_groups):
        groups[i] = [p for p in group["params"] if id(p) not in ours]  # of another network: a criterion's, say
    for name, parameter in new.items():
        owner, _, leaf = name.rpartition(".")
        source = old.get(name) if leaf not in ("coefficients", "atoms") else old.get(f"{owner}.weight", old.get(name))
        if source is not None and id(source) in group_of:
            groups[group_of[id(source)]].append(parameter)
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = parameters
    optimizer.state.clear()
