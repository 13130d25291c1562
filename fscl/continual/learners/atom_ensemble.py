"""Atom swapping with an ensemble across tasks: the atoms of similar former tasks answer too, under new heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.atoms.bank import AtomBank
from fscl.atoms.entries import point_entries, within
from fscl.continual.avalanche_private import criterion_of
from fscl.continual.evaluate import features_of
from fscl.continual.learner import with_arguments_of
from fscl.continual.learners.atom_swapping import AtomSwappingPlugin
from fscl.continual.learners.atoms import BankStrategy
from fscl.continual.loader import batches
from fscl.continual.task_switch import head_names, multi_heads
from fscl.errors import FsclError
from fscl.similarity.subspace import METRICS

__all__ = ["AtomEnsemble", "AtomEnsemblePlugin"]


class AtomEnsemblePlugin(AtomSwappingPlugin):
    """Atom swapping whose tasks are answered by their own network and those of similar former tasks.

    Once a task is learned, the networks of the most similar tasks before it, as their atoms tell, each get a new head
    for it; nothing else of them is trained. A test image's probabilities are averaged over the task's own network and
    these members, and the output is their logarithm, up to what the network's own answers have in common. Heads are
    convex problems, solved on the features of the training images as they are tested, from zero and without random
    numbers: what atom swapping learns, and the bank, stay as they are without members, bit for bit.

    A former task that is trained again is no longer a member of others: their heads were made for what it was.

    Args:
        members: how many former tasks are asked; fewer where there are fewer.
        head_epochs: passes over a task's training images' features, at most, by which a head is found (L-BFGS).
        head_decay: weight decay of these heads, which bounds how sure they are of images that they tell apart.
        metric: by which tasks are compared, see :meth:`fscl.AtomBank.nearest`.
        num_atoms, warm_start, skip: as in :class:`~fscl.continual.AtomSwappingPlugin`.

    Attributes:
        heads: by task and member, the entries of the head under which that member answers for the task.

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
        **atoms: Any,
    ) -> None:
        super().__init__(**atoms)
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
        """Takes up a saved bank.

        Args:
            strategy, bank: as in :meth:`AtomSwappingPlugin.resume`.
            heads: :attr:`heads` of the learner that made the bank; a task without them is answered by its own network.
        """
        super().resume(strategy, bank)
        self.heads = {
            task: {member: {n: t.to(strategy.device) for n, t in head.items()} for member, head in members.items()}
            for task, members in (heads or {}).items()
        }

    def memory(self) -> dict[str, int]:
        """Mean bytes kept of a task, by kind; ``members`` are the heads under which former tasks answer for it."""
        if self.bank is None:
            return {}
        extra = sum(t.nbytes for own in self.heads.values() for head in own.values() for t in head.values())
        return {**super().memory(), "members": round(extra / len(self.bank))}

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        tasks = self.tasks_of(strategy.experience)
        for task in tasks:
            for others in self.heads.values():
                others.pop(task, None)
        for task in tasks:
            self.heads[task] = {member: self._fit(strategy, member, task) for member in self._nearest(task, tasks)}

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
            width = len(next(iter(self.heads[task].values()))[self._head(strategy.model, task)[0]])
            own = output[rows, :width].float()
            answers = [
                own,
                *(self._ask(strategy.model, member, task, x, ids)[:, :width] for member in self.heads[task]),
            ]
            shares = torch.stack([a.float().log_softmax(1) for a in answers])
            # on the scale of the own answers, beside which a mini-batch of wider tasks has columns of zeros
            output[rows, :width] = (
                shares.logsumexp(0) - shares.new_tensor(len(answers)).log() + own.logsumexp(1, keepdim=True)
            ).to(output.dtype)
            strategy.mb_output = output

    # private

    def _nearest(self, task: int, together: Sequence[int]) -> list[int]:
        """The members for a task: the most similar of those before it, and not learned along with it."""
        assert self.bank is not None
        former = [t for t in self.bank.tasks[: self.bank.tasks.index(task)] if t not in together]
        if not former:
            return []
        order = self.bank.nearest(task, len(self.bank) - 1, self.metric)
        return [t for t in order if t in former][: self.members]

    def _fit(self, strategy: Any, member: int, task: int) -> dict[str, Tensor]:
        """A head for a task on the features of a member's network."""
        assert self.bank is not None
        found, targets = [], []
        data = strategy.experience.dataset.eval()
        with self.bank.swapped(strategy.model, member), torch.no_grad(), torch.random.fork_rng(devices=[]):
            for x, y, *_, ids in batches(data, strategy.eval_mb_size, strategy.device):
                if bool((rows := ids == task).any()):
                    found.append(features_of(strategy.model, x[rows].to(strategy.device)))
                    targets.append(y[rows].to(strategy.device))
        features, labels = torch.cat(found), torch.cat(targets)
        entries = self.bank.entries(task)
        names = [name for name in self._head(strategy.model, task) if name in entries]  # a bias, or none
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

    def _ask(self, model: nn.Module, member: int, task: int, x: Tensor, ids: Tensor) -> Tensor:
        """What a member answers for a task."""
        assert self.bank is not None
        heads = head_names(model) or [self._head(model, task)[0].rpartition(".")[0]]
        entries = {n: t for n, t in self.bank.entries(member).items() if not within(n, heads)}
        entries |= {n: t for n, t in self.bank.entries(task).items() if within(n, heads)}
        before = point_entries(model, {**entries, **self.heads[task][member]})
        try:
            return avalanche_forward(model, x, ids)
        finally:
            point_entries(model, before)

    @staticmethod
    def _head(model: nn.Module, task: int) -> list[str]:
        """Weight and bias of a task's head, or of the last linear layer."""
        heads = list(multi_heads(model))
        if heads:
            owner = f"{heads[-1]}.classifiers.{task}.classifier"
        else:
            owner = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        return [f"{owner}.weight", f"{owner}.bias"]


class AtomEnsemble(BankStrategy, atom_ensemble=AtomEnsemblePlugin):
    """Filter atom swapping with an ensemble across tasks: an Avalanche strategy with :class:`AtomEnsemblePlugin` in it.

    Args:
        members, head_epochs, head_decay, metric, num_atoms, warm_start, skip: as in :class:`AtomEnsemblePlugin`.
        plugins: more plugins; they run after the atoms are kept.
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
