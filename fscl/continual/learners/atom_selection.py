"""Atom swapping for test images without a task label: the experience that is most certain of an image answers."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.models import IncrementalClassifier, avalanche_forward
from avalanche.models.utils import avalanche_model_adaptation
from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.continual.avalanche_private import criterion_of
from fscl.continual.learner import UNSEEN, with_arguments_of
from fscl.continual.learners.atoms import AtomBankPlugin, BankStrategy
from fscl.continual.task_switch import multi_heads
from fscl.errors import FsclError

__all__ = ["AtomSelection", "AtomSelectionPlugin"]


class AtomSelectionPlugin(AtomBankPlugin):
    """Stores and chooses the atoms of experiences for :class:`AtomSelection`. It does not work with other strategies.

    Args:
        num_atoms, warm_start, skip: as in :class:`~fscl.continual.AtomSwappingPlugin`.

    Attributes:
        bank: the :class:`~fscl.atoms.AtomBank`, whose tasks are the numbers of experiences.
        classes: the classes of each experience, in the order of its outputs.
    """

    scenarios = ("class", "domain")

    @with_arguments_of(AtomBankPlugin)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.classes: dict[int, list[int]] = {}
        self._is_multi_head = False

    def tasks_of(self, experience: Any) -> list[int]:
        return [experience.current_experience]

    def attach(self, strategy: Any) -> None:
        super().attach(strategy)
        self._is_multi_head = bool(multi_heads(strategy.model))
        if not self._is_multi_head and any(isinstance(m, IncrementalClassifier) for m in strategy.model.modules()):
            raise FsclError(
                f"{type(strategy.model).__name__} has one head that grows with the classes, but each experience needs "
                "a head of its own; use a linear layer of all classes, or avalanche.models.as_multitask"
            )

    def resume(self, strategy: Any, bank: AtomBank, classes: Mapping[int, Sequence[int]] | None = None) -> None:
        """Continues from a saved bank.

        Args:
            strategy, bank: as in :meth:`AtomSwappingPlugin.resume`.
            classes: the classes of each experience, :attr:`classes` of the learner that made the bank. The bank does
                not hold them.

        Raises:
            FsclError: the classes of an experience are missing.
        """
        if missing := [task for task in bank.tasks if task not in (classes or {})]:
            raise FsclError(
                f"the classes of experiences {missing} are missing; give them as classes={{experience: [...]}}"
            )
        self.classes = {task: sorted((classes or {})[task]) for task in bank.tasks}
        super().resume(strategy, bank)

    # training

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuses an experience of one class, before anything is made for it."""
        number, classes = strategy.experience.current_experience, sorted(strategy.experience.classes_in_this_experience)
        if len(classes) < 2:
            raise FsclError(
                f"experience {number} has only class {classes[0]}; it needs two or more, because a network of one "
                "class is certain of every image"
            )
        self.classes[number] = classes

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Leaves out images, such as replayed ones, whose class is not one of the experience."""
        classes = torch.tensor(self._classes_of(strategy.experience), device=strategy.mb_y.device)
        rows = torch.isin(strategy.mb_y, classes)
        if not bool(rows.all()):
            strategy.mbatch = [part[rows] for part in strategy.mbatch]

    def adapt(self, strategy: Any, model: nn.Module) -> None:
        """Adds a head for the classes of the experience."""
        experience = strategy.experience
        if self._is_multi_head:
            classes = list(range(len(experience.classes_in_this_experience)))
            experience = SimpleNamespace(task_labels=self.tasks_of(experience), classes_in_this_experience=classes)
        avalanche_model_adaptation(model, experience)

    def own_part(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """A training mini-batch's outputs for the experience's classes, and its targets counted among these classes."""
        classes = torch.tensor(self._classes_of(strategy.experience), device=strategy.mb_y.device)
        return strategy.mb_output[:, classes], torch.searchsorted(classes, strategy.mb_y)

    # answering

    def answers(self, strategy: Any) -> Tensor:
        """(n, classes so far): outputs of the network in training; in evaluation, of the most certain experience.

        The most certain experience is the one with the least entropy. Entropy is divided by its maximum, so that
        experiences of few classes have no advantage.
        """
        model, known = strategy.model, [task for task in self.classes if self._can_answer(task)]
        width = 1 + max(c for task in known for c in self.classes[task]) if known else 0
        width = max(width, 1 + max(strategy.experience.classes_in_this_experience))
        if strategy.is_training:
            number = strategy.experience.current_experience
            return self._widen(self._outputs(strategy, number), number, width)
        least_entropy = strategy.mb_x.new_full((len(strategy.mb_x),), float("inf"), dtype=torch.float32)
        output = least_entropy.new_full((len(least_entropy), width), UNSEEN)
        for task in known:
            self._show(model, task)
            answers = self._outputs(strategy, task)
            log_shares = answers.float().log_softmax(1)
            entropy = -(log_shares.exp() * log_shares).sum(1) / math.log(answers.shape[1])
            more_certain = entropy < least_entropy
            least_entropy = torch.where(more_certain, entropy, least_entropy)
            output = torch.where(more_certain[:, None], self._widen(answers, task, width), output)
        self._show(model, None)
        return output

    def _can_answer(self, task: int) -> bool:
        return task in self._training or (self.bank is not None and task in self.bank)

    def _classes_of(self, experience: Any) -> list[int]:
        return self.classes[experience.current_experience]

    def _outputs(self, strategy: Any, task: int) -> Tensor:
        """(n, classes of the experience): the outputs of the network that is shown, for the experience's classes."""
        if self._is_multi_head:
            return avalanche_forward(strategy.model, strategy.mb_x, task)[:, : len(self.classes[task])]
        return avalanche_forward(strategy.model, strategy.mb_x, strategy.mb_task_id)[:, self.classes[task]]

    def _widen(self, answers: Tensor, task: int, width: int) -> Tensor:
        """(n, width): the outputs in the columns of their classes, and ``UNSEEN`` in all other columns."""
        output = answers.new_full((len(answers), width), UNSEEN)
        output[:, self.classes[task]] = answers
        return output


class AtomSelection(BankStrategy, atom_selection=AtomSelectionPlugin):
    """Filter atom swapping without task labels at test time, for streams of new classes or of new domains.

    Each experience learns its own atoms, normalisation and head, with the loss over its own classes. Coefficients are
    frozen after the first experience. A test image passes through the network of every experience; the network whose
    output has the least entropy gives the class. No network is ever forgotten. But each new network is one more that
    can be chosen by mistake.

    Evaluation takes one forward pass for each experience. There is one output for each class so far.

    Args:
        num_atoms, warm_start, skip: as in :class:`~fscl.continual.AtomSwappingPlugin`.
        plugins: more plugins. They run after the atoms are stored.
        **arguments: as in ``avalanche.training.Naive``. The model is multi-head (see
            :func:`fscl.continual.build_network` and ``avalanche.models.as_multitask``) and gets a head for each
            experience, or it ends in a linear layer of all classes.

    Raises:
        FsclError: the model has no spatial convolutions, the model has one head that grows, an experience has only one
            class, or an argument does not fit.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> strategy = AtomSelection(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.bank is None, strategy.model[0]
        (True, AtomConv2d(1, 8, kernel_size=(3, 3), num_atoms=8))
    """

    atom_selection: AtomSelectionPlugin

    def model_adaptation(self, model: Any = None) -> Any:
        """Adds a head for the experience in training. In evaluation the network does not change."""
        model = self.model if model is None else model
        if self.is_training:
            self.atom_selection.adapt(self, model)
        return model.to(self.device)

    def forward(self) -> Tensor:
        return self.atom_selection.answers(self)

    def criterion(self) -> Tensor:
        if not self.is_training:
            return super().criterion()
        return criterion_of(self)(*self.atom_selection.own_part(self))
