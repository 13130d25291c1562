"""Atom swapping where a test image comes without the label of its task: the atoms that are surest of it answer."""

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
    """What :class:`AtomSelection` keeps of each experience, and how it chooses among them; no use to other strategies.

    Args:
        num_atoms, warm_start, skip: as in :class:`~fscl.continual.AtomSwappingPlugin`.

    Attributes:
        bank: the :class:`~fscl.atoms.AtomBank`, by number of the experience.
        classes: the classes of each experience, in the order of its answers.
    """

    scenarios = ("class", "domain")

    @with_arguments_of(AtomBankPlugin)
    def __init__(self, **atoms: Any) -> None:
        super().__init__(**atoms)
        self.classes: dict[int, list[int]] = {}
        self._headed = False

    def tasks_of(self, experience: Any) -> list[int]:
        return [experience.current_experience]

    def attach(self, strategy: Any) -> None:
        super().attach(strategy)
        self._headed = bool(multi_heads(strategy.model))
        if not self._headed and any(isinstance(m, IncrementalClassifier) for m in strategy.model.modules()):
            raise FsclError(
                f"{type(strategy.model).__name__} has one head that grows with the classes, and each experience keeps "
                "a head of its own; use a linear layer of all classes, or avalanche.models.as_multitask"
            )

    def resume(self, strategy: Any, bank: AtomBank, classes: Mapping[int, Sequence[int]] | None = None) -> None:
        """Takes up a saved bank.

        Args:
            strategy, bank: as in :meth:`AtomSwappingPlugin.resume`.
            classes: of each experience, which a bank does not tell: :attr:`classes` of the learner that made it.

        Raises:
            FsclError: those of an experience are missing.
        """
        if missing := [task for task in bank.tasks if task not in (classes or {})]:
            raise FsclError(
                f"the classes of experiences {missing} are missing; give them as classes={{experience: [...]}}"
            )
        self.classes = {task: sorted((classes or {})[task]) for task in bank.tasks}
        super().resume(strategy, bank)

    # training

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuses an experience before anything is made for it."""
        number, classes = strategy.experience.current_experience, sorted(strategy.experience.classes_in_this_experience)
        if len(classes) < 2:
            raise FsclError(
                f"experience {number} has nothing but class {classes[0]}: a network of one class is sure of every image"
            )
        self.classes[number] = classes

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Leaves out images of classes that are not the experience's (a replay plugin's)."""
        mine = torch.isin(strategy.mb_y, torch.tensor(self._own(strategy), device=strategy.mb_y.device))
        if not bool(mine.all()):
            strategy.mbatch = [part[mine] for part in strategy.mbatch]

    def adapt(self, strategy: Any, model: nn.Module) -> None:
        """Makes the experience's head, of its own classes."""
        experience = strategy.experience
        if self._headed:
            own = range(len(experience.classes_in_this_experience))
            experience = SimpleNamespace(task_labels=self.tasks_of(experience), classes_in_this_experience=list(own))
        avalanche_model_adaptation(model, experience)

    def own_part(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """Of a training mini-batch the answers for the experience's own classes, and the targets among these."""
        classes = torch.tensor(self._own(strategy), device=strategy.mb_y.device)
        return strategy.mb_output[:, classes], torch.searchsorted(classes, strategy.mb_y)

    # answering

    def answers(self, strategy: Any) -> Tensor:
        """(n, classes so far): in training the network's own answers; in evaluation those of the surest experience.

        Entropy is in units of the most that there can be, so that experiences of few classes have no advantage.
        """
        model, known = strategy.model, [task for task in self.classes if self._is_there(task)]
        width = 1 + max(c for task in known for c in self.classes[task]) if known else 0
        width = max(width, 1 + max(strategy.experience.classes_in_this_experience))
        if strategy.is_training:
            number = strategy.experience.current_experience
            return self._spread(self._ask(strategy, number), number, width)
        best = strategy.mb_x.new_full((len(strategy.mb_x),), float("inf"), dtype=torch.float32)
        output = best.new_full((len(best), width), UNSEEN)
        for task in known:
            self._show(model, task)
            answers = self._ask(strategy, task)
            shares = answers.float().log_softmax(1)
            entropy = -(shares.exp() * shares).sum(1) / math.log(answers.shape[1])
            surer = entropy < best
            best = torch.where(surer, entropy, best)
            output = torch.where(surer[:, None], self._spread(answers, task, width), output)
        self._show(model, None)
        return output

    def _is_there(self, task: int) -> bool:
        return task in self._training or (self.bank is not None and task in self.bank)

    def _own(self, strategy: Any) -> list[int]:
        return self.classes[strategy.experience.current_experience]

    def _ask(self, strategy: Any, task: int) -> Tensor:
        """(n, classes of the experience): what the network as it stands answers."""
        if self._headed:
            return avalanche_forward(strategy.model, strategy.mb_x, task)[:, : len(self.classes[task])]
        return avalanche_forward(strategy.model, strategy.mb_x, strategy.mb_task_id)[:, self.classes[task]]

    def _spread(self, answers: Tensor, task: int, width: int) -> Tensor:
        """(n, width): answers in the places of their classes, and next to nothing for all others."""
        output = answers.new_full((len(answers), width), UNSEEN)
        output[:, self.classes[task]] = answers
        return output


class AtomSelection(BankStrategy, atom_selection=AtomSelectionPlugin):
    """Filter atom swapping without task labels at test time: for streams of new classes, or of the same in new domains.

    Each experience learns atoms, normalisation and a head of its own, over coefficients frozen after the first, by the
    loss over its own classes. A test image is seen by the network of every experience; the one whose answer has the
    least entropy gives the class. Networks are never forgotten, but with each there is one more to be mistaken for.

    Evaluation takes as many forward passes as there are experiences. Outputs are as wide as there are classes so far.

    Args:
        num_atoms, warm_start, skip: as in :class:`~fscl.continual.AtomSwappingPlugin`.
        plugins: more plugins; they run after the atoms are kept.
        **arguments: as in ``avalanche.training.Naive``. The model has a head a task, see
            :func:`fscl.continual.build_network` and ``avalanche.models.as_multitask``, and gets one an experience; or
            it ends in a linear layer of all classes.

    Raises:
        FsclError: the model has no spatial convolutions or one head that grows, an experience has a single class, or an
            argument does not fit.

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
        """Gives the network a head for the experience; in evaluation it stays as it is."""
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
