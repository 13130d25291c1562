"""Atom swapping with an ensemble: networks of similar former tasks, with new heads, help to answer for a task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.atoms.bank import AtomBank
from fscl.atoms.entries import point_entries, within
from fscl.choices import METRICS
from fscl.continual.avalanche_private import criterion_of
from fscl.continual.evaluate import features_of
from fscl.continual.learner import with_arguments_of
from fscl.continual.learners.atom_swapping import AtomSwappingPlugin
from fscl.continual.learners.atoms import BankStrategy
from fscl.continual.loader import batches
from fscl.continual.task_switch import head_names, multi_heads
from fscl.errors import FsclError

__all__ = ["AtomEnsemble", "AtomEnsemblePlugin"]


class AtomEnsemblePlugin(AtomSwappingPlugin):
    """Atom swapping in which a task is answered by its own network and by members, networks of similar former tasks.

    When a task has been learned, the most similar earlier tasks become its members; similarity is computed from atoms.
    Each member's network gets a new head for the task. Nothing else of it is trained. For a test image the
    probabilities of the task's own network and of the members are averaged. The output is the logarithm of this
    average, shifted to the scale of the own network's logits.

    Training a head is a convex problem. It is solved on features of the training images, computed in evaluation mode,
    from zero and without random numbers. So members change neither the bank nor anything else that atom swapping
    learns: both are equal, bit for bit, to those without members.

    If a former task is trained again, it is removed from the members of all other tasks, because their heads do not fit
    its new network.

    Args:
        members: number of members of each task; fewer if there are fewer former tasks.
        head_epochs: maximum number of passes over the features of a task's training images to train a head (L-BFGS).
        head_decay: weight decay of these heads. It limits how certain a head becomes of images that it can separate.
        metric: the metric by which tasks are compared, see :meth:`fscl.AtomBank.nearest`.
        num_atoms, warm_start, skip: as in :class:`~fscl.continual.AtomSwappingPlugin`.

    Attributes:
        heads: task -> member -> the entries of the head with which the member answers for the task.

    Raises:
        FsclError: an argument does not fit.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022 (inter-task ensemble).

    Example:
        >>> plugin = AtomEnsemblePlugin(members=2)
        >>> # Naive(model=model, optimizer=optimizer, plugins=[plugin]).train(experience)
        >>> plugin.heads
        {}
    """

    @with_arguments_of(AtomSwappingPlugin)
    def __init__(
        self,
        members: int = 3,
        head_epochs: int = 100,
        head_decay: float = 1e-3,
        metric: str = "cosine",
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        for name, value in (("members", members), ("head_epochs", head_epochs)):
            if value < 1:
                raise FsclError(f"{name} is {value}; it must be at least 1")
        if head_decay < 0:
            raise FsclError(f"head_decay is {head_decay}; it must be at least 0")
        if metric not in METRICS:
            raise FsclError(f"metric is {metric!r}; known: {', '.join(METRICS)}")
        self.members, self.head_epochs, self.head_decay, self.metric = members, head_epochs, head_decay, metric
        self.heads: dict[int, dict[int, dict[str, Tensor]]] = {}

    def resume(
        self,
        strategy: Any,
        bank: AtomBank,
        heads: Mapping[int, Mapping[int, Mapping[str, Tensor]]] | None = None,
    ) -> None:
        """Continues from a saved bank.

        Args:
            strategy, bank: as in :meth:`AtomSwappingPlugin.resume`.
            heads: :attr:`heads` of the learner that made the bank. A task without heads here is answered only by its
                own network.
        """
        super().resume(strategy, bank)
        self.heads = {
            task: {member: {n: t.to(strategy.device) for n, t in head.items()} for member, head in members.items()}
            for task, members in (heads or {}).items()
        }

    def memory(self) -> dict[str, int]:
        """Bytes stored for each task (mean over tasks), by kind; ``members`` are the heads of members."""
        if self.bank is None:
            return {}
        size = sum(t.nbytes for heads in self.heads.values() for head in heads.values() for t in head.values())
        return {**super().memory(), "members": round(size / len(self.bank))}

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        tasks = self.tasks_of(strategy.experience)
        for task in tasks:
            for members in self.heads.values():
                members.pop(task, None)
        for task in tasks:
            self.heads[task] = {
                member: self._fit_head(strategy, member, task) for member in self._choose_members(task, tasks)
            }

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        super().after_eval_forward(strategy, **kwargs)
        labels = self._labels(strategy)
        for task in labels:
            if task in self._training or not self.heads.get(task):
                continue
            x, ids, rows = strategy.mb_x, strategy.mb_task_id, slice(None)
            if len(labels) > 1:
                rows = ids == task
                x, ids = x[rows], ids[rows]
            output = strategy.mb_output.clone()
            width = len(next(iter(self.heads[task].values()))[self._head_entries(strategy.model, task)[0]])
            own_logits = output[rows, :width].float()
            logits = [
                own_logits,
                *(self._member_logits(strategy.model, member, task, x, ids)[:, :width] for member in self.heads[task]),
            ]
            log_shares = torch.stack([a.float().log_softmax(1) for a in logits])
            # on the scale of the own logits: log shares are negative, and further columns of a mixed mini-batch are 0
            output[rows, :width] = (
                log_shares.logsumexp(0)
                - log_shares.new_tensor(len(logits)).log()
                + own_logits.logsumexp(1, keepdim=True)
            ).to(output.dtype)
            strategy.mb_output = output

    # private

    def _choose_members(self, task: int, same_experience: Sequence[int]) -> list[int]:
        """The members of a task: the most similar of the tasks of earlier experiences."""
        assert self.bank is not None
        former = [t for t in self.bank.tasks[: self.bank.tasks.index(task)] if t not in same_experience]
        if not former:
            return []
        order = self.bank.nearest(task, len(self.bank) - 1, self.metric)
        return [t for t in order if t in former][: self.members]

    def _fit_head(self, strategy: Any, member: int, task: int) -> dict[str, Tensor]:
        """Trains a head for a task on the features of a member's network."""
        assert self.bank is not None
        features_of_batches, labels_of_batches = [], []
        data = strategy.experience.dataset.eval()
        with self.bank.swapped(strategy.model, member), torch.no_grad(), torch.random.fork_rng(devices=[]):
            for x, y, *_, ids in batches(data, strategy.eval_mb_size, strategy.device):
                if bool((rows := ids == task).any()):
                    features_of_batches.append(features_of(strategy.model, x[rows].to(strategy.device)))
                    labels_of_batches.append(y[rows].to(strategy.device))
        features, labels = torch.cat(features_of_batches), torch.cat(labels_of_batches)
        entries = self.bank.entries(task)
        names = [name for name in self._head_entries(strategy.model, task) if name in entries]  # it may have no bias
        head = [torch.zeros_like(entries[name], requires_grad=True) for name in names]
        solver = torch.optim.LBFGS(
            head, max_iter=self.head_epochs, max_eval=self.head_epochs, line_search_fn="strong_wolfe"
        )

        criterion = criterion_of(strategy)

        def loss() -> Tensor:
            solver.zero_grad()
            value = criterion(F.linear(features, *head), labels)
            value = value + self.head_decay / 2 * head[0].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)
        return {name: tensor.detach() for name, tensor in zip(names, head, strict=True)}

    def _member_logits(self, model: nn.Module, member: int, task: int, x: Tensor, ids: Tensor) -> Tensor:
        """The logits of a member for images of a task."""
        assert self.bank is not None
        heads = head_names(model) or [self._head_entries(model, task)[0].rpartition(".")[0]]
        entries = {n: t for n, t in self.bank.entries(member).items() if not within(n, heads)}
        entries |= {n: t for n, t in self.bank.entries(task).items() if within(n, heads)}
        before = point_entries(model, {**entries, **self.heads[task][member]})
        try:
            return avalanche_forward(model, x, ids)
        finally:
            point_entries(model, before)

    @staticmethod
    def _head_entries(model: nn.Module, task: int) -> list[str]:
        """The names of weight and bias of a task's head, or of the last linear layer."""
        heads = list(multi_heads(model))
        if heads:
            owner = f"{heads[-1]}.classifiers.{task}.classifier"
        else:
            owner = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        return [f"{owner}.weight", f"{owner}.bias"]


class AtomEnsemble(BankStrategy, atom_ensemble=AtomEnsemblePlugin):
    """Filter atom swapping with an ensemble across tasks: a strategy with :class:`AtomEnsemblePlugin` built in.

    Args:
        members, head_epochs, head_decay, metric, num_atoms, warm_start, skip: as in :class:`AtomEnsemblePlugin`.
        plugins: more plugins. They run after the atoms are stored.
        **arguments: as in ``avalanche.training.Naive``.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022 (inter-task ensemble).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
        >>> strategy = AtomEnsemble(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
        >>> strategy.bank is None, strategy.atom_ensemble.members
        (True, 3)
    """

    atom_ensemble: AtomEnsemblePlugin
