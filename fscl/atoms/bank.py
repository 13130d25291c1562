"""AtomBank: stores what belongs to each task, apart from what all tasks share."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fscl.atoms.bank_file import read_bank, write_bank
from fscl.atoms.decompose import with_atom_layers
from fscl.atoms.entries import copied, live_state, moved_to, put_entries, within
from fscl.atoms.layers import atom_layers
from fscl.atoms.learning import check_finite, resettable, train_only
from fscl.atoms.ownership import KINDS, Ownership, unkept_values, warn_of_unkept
from fscl.atoms.replacing import copied_network
from fscl.atoms.swapping import check_built_alike, pointed_at
from fscl.atoms.tasks import HeldTask, Task, as_label, entry_of_all
from fscl.errors import FsclError
from fscl.similarity.filters import gram_matrix

__all__ = ["AtomBank"]


class AtomBank:
    """The atoms, normalisation, biases and head of each task, over coefficients that all tasks share.

    Make it from a network that has learned its first task. The bank then freezes what all tasks share: it fixes the
    gauge of the coefficients (:func:`fscl.atoms.freeze_coefficients`), which changes no output, and sets
    ``requires_grad`` of every shared parameter to False. For each further task call :meth:`begin`, train
    :meth:`parameters`, and :meth:`store` the network; :meth:`store` refuses it if a shared parameter has changed.
    :meth:`restore` puts a task back: outputs are then bit for bit what they were.

    A task owns its atoms, its normalisation layers (affine and running statistics), the biases of convolutions, the
    head, and the buffers and plain tensors of any other module. All other parameters are shared and stored once,
    1x1 convolutions and hidden linear layers included.

    Args:
        model: a network with atom layers.
        heads: dotted names of the modules or entries that are heads; None takes the last ``nn.Linear``.
        own: dotted names of further modules or entries that each task keeps for itself, such as 1x1 convolutions.

    Raises:
        FsclError: the network has no atom layers, a parameter is not finite, or a name matches no entry.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> from fscl.atoms import decompose
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        >>> model = decompose(net).model  # to be trained on the first task
        >>> bank = AtomBank(model)
        >>> bank.store(model, task=0, name="cats")
        >>> bank.begin(model, start=0)
        >>> optimizer = torch.optim.SGD(bank.parameters(model), lr=0.05)  # to train the second task with
        >>> bank.store(model, task=1, name="dogs")
        >>> bank.tasks, bank.layers, tuple(bank.stack("0").shape), bank.memory()["atoms"]
        ([0, 1], ['0'], (2, 4, 3, 3), 144)
        >>> bank.network(model, 0)(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, model: nn.Module, heads: Sequence[str] | None = None, own: Collection[str] = ()) -> None:
        self._ownership = Ownership.frozen_in(model, heads, own)
        self._unkept: dict[str, str] | None = unkept_values(model)
        self._tasks: dict[int, Task] = {}

    # contents

    @property
    def tasks(self) -> list[int]:
        """Task labels in the order in which they were first stored."""
        return list(self._tasks)

    @property
    def layers(self) -> list[str]:
        """Dotted names of the atom layers, from input to output."""
        return list(self._ownership.layers)

    @property
    def names(self) -> list[str]:
        """The name of each task, in the order of :attr:`tasks`."""
        return [task.name for task in self._tasks.values()]

    @property
    def shared(self) -> dict[str, Tensor]:
        """The tensors that all tasks share: coefficients and every other frozen entry of the network."""
        return dict(self._ownership.shared)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shared coefficients. Atoms of two banks can be compared only if it is equal."""
        return self._ownership.fingerprint

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: object) -> bool:
        return hasattr(task, "__index__") and as_label(task) in self._tasks

    def __repr__(self) -> str:
        return f"AtomBank({len(self)} tasks, {len(self.layers)} layers, {sum(self.memory().values())} bytes a task)"

    def __iter__(self) -> Iterator[int]:
        return iter(self.tasks)

    def __delitem__(self, task: int) -> None:
        self._task(task)
        del self._tasks[as_label(task)]

    def _repr_html_(self) -> str:
        """A table of the tasks and their bytes, for a notebook."""
        from fscl.text import html_table  # needed for nothing else that a bank does

        sizes = ((task, self._tasks[task].name, *self.memory(task).values()) for task in self)
        return html_table(repr(self), ("task", "name", *(f"{kind}, bytes" for kind in KINDS)), sizes)

    def entries(self, task: int) -> dict[str, Tensor]:
        """The bank's own tensors of one task, by their names in the ``state_dict``; ``bank[task]`` is short for it."""
        return dict(self._task(task).tensors)

    __getitem__ = entries

    def atoms(self, task: int) -> dict[str, Tensor]:
        """The atoms of one task: layer name -> (m, height, width)."""
        tensors = self._task(task).tensors
        return {layer: tensors[f"{layer}.atoms"] for layer in self._ownership.layers}

    def stack(self, layer: str) -> Tensor:
        """The atoms of one layer for all tasks, (tasks, m, height, width), in the order of :attr:`tasks`."""
        self._ownership.check_layer(layer)
        if not self._tasks:
            raise FsclError("the bank is empty; store a task first")
        return torch.stack([t.detach() for t in entry_of_all(self._tasks.values(), f"{layer}.atoms")])

    def gram(self, layer: str) -> Tensor:
        """The (m, m) Gram matrix of the layer's coefficients; a multiple of the identity once the gauge is fixed."""
        self._ownership.check_layer(layer)
        return gram_matrix(self._ownership.shared[f"{layer}.coefficients"].double())

    # learning a task

    @torch.no_grad()
    def begin(
        self, model: nn.Module, start: int | None = None, head: Sequence[str] | None = None, fresh_head: bool = True
    ) -> None:
        """Prepares a network to learn a task: everything that belongs to the task is trained, all else is frozen.

        Make the optimizer afterwards, from :meth:`parameters`. All gradients are dropped.

        Args:
            model, head: as in :meth:`store`.
            start: the task whose atoms, normalisation and biases the new task starts from; None keeps the network's.
            fresh_head: True initialises the head anew, False leaves it as it is.

        Raises:
            FsclError: a shared parameter of the network differs from the bank's, the task or the head is unknown, or
                the head cannot be initialised. The network is then unchanged.
        """
        trained = self._ownership.parameters(model, head)
        self._ownership.check_shared(model)
        heads = self._ownership.heads
        fresh = resettable(model, heads if head is None else head) if fresh_head else []
        if start is not None:
            put_entries(model, {n: t for n, t in self._task(start).tensors.items() if not within(n, heads)})
        for module in fresh:
            module.reset_parameters()
        train_only(model, trained)

    def parameters(self, model: nn.Module, head: Sequence[str] | None = None) -> list[nn.Parameter]:
        """The parameters that a task trains, for the optimizer: all that are not shared. Arguments as in :meth:`store`.

        Raises:
            FsclError: the network lacks a shared entry of the bank, or the head is unknown.
        """
        return self._ownership.parameters(model, head)

    def network(self, model: nn.Module, task: int) -> nn.Module:
        """A separate network for a task, in evaluation mode: a copy of ``model``, decomposed first if it was not yet.

        Raises:
            FsclError: as in :meth:`restore`; or it cannot be copied, for instance because a hook holds a part of it.
        """
        if not atom_layers(model):
            model = with_atom_layers(model, {layer: len(atoms) for layer, atoms in self.atoms(task).items()})
        parts = {**dict(model.named_modules()), **dict(model.named_parameters())}
        network = copied_network(model, parts, "use `restore` or `swapped` instead of a copy")
        self.restore(network, task)
        return network.eval()

    # storing and restoring

    def store(self, model: nn.Module, task: int, name: str | None = None, head: Sequence[str] | None = None) -> None:
        """Stores the network's present state as a task. A task that has this label already is replaced.

        Warns of values that may decide the network's outputs but cannot be stored: floating-point numbers and NumPy
        arrays that a module holds as plain attributes, if they have changed since the bank was made.

        Args:
            model: the network, with the shared parameters that the bank was made with.
            task, name: the task's label, an integer, and its name in figures, which is the label by default.
            head: names of the modules or entries that are this task's head, for a network that holds the heads of
                several tasks (multi-head); all heads by default.

        Raises:
            FsclError: a shared parameter of the network differs from the bank's, an entry is not finite, the network
                has a parameter that the bank does not know, or the label is not an integer.
        """
        label = as_label(task)
        self._ownership.check_shared(model)
        kinds = self._ownership.kinds_in(model, head)
        state = live_state(model)
        stored = {entry: copied(state[entry]) for entry in kinds}
        check_finite(stored)
        self._unkept = warn_of_unkept(model, self._unkept)
        self._tasks[label] = HeldTask(str(label) if name is None else str(name), kinds, stored)

    @torch.no_grad()
    def restore(self, model: nn.Module, task: int) -> None:
        """Copies a task and the shared entries into a network, in place. Outputs are then what they were when stored.

        The network may lack the task's head, as with ``ModuleDict`` heads that are added when tasks arrive. The head is
        then made as a copy of another task's head.

        Raises:
            FsclError: the task is unknown, the network has no place for an entry, it has a parameter that the task did
                not have, or its numbers are of another type than the bank's.
        """
        tensors = self._task(task).tensors
        check_built_alike(model, self._ownership, tensors)
        put_entries(model, {**self._ownership.shared, **tensors})

    @contextmanager
    def swapped(self, model: nn.Module, task: int) -> Iterator[nn.Module]:
        """Within the block the network computes what it did when the task was stored; after it, all is as before.

        The network's own tensors are not touched: within the block it uses the bank's tensors, the shared ones
        included. What the block writes to tensors of the task is undone at its end. A bank on another device is copied
        in each call; :meth:`to` moves it once.

        Raises:
            FsclError: as in :meth:`restore`; or the network lacks an entry, or the block wrote to a shared tensor.
        """
        tensors = self._task(task).tensors
        check_built_alike(model, self._ownership, tensors)
        with pointed_at(model, self._ownership.shared, tensors):
            yield model

    # comparing

    def similarity(self, metric: str = "cosine", aggregate: str = "product", **options: Any) -> Tensor:
        """Task-to-task similarity without data, (tasks, tasks): :func:`fscl.similarity.similarity_matrix`."""
        from fscl.similarity.subspace import similarity_matrix  # needed for nothing else that a bank does

        return similarity_matrix(self, metric=metric, aggregate=aggregate, **options)

    def nearest(self, task: int, k: int = 1, metric: str = "cosine", aggregate: str = "product") -> list[int]:
        """The k tasks most similar to a task, most similar first.

        Raises:
            FsclError: the task is unknown, or the bank holds fewer than k other tasks.
        """
        self._task(task)
        if not 1 <= k < len(self):
            raise FsclError(f"k is {k}; the bank holds {len(self) - 1} other tasks")
        order = self.similarity(metric, aggregate)[self.tasks.index(task)].argsort(descending=True, stable=True)
        return [other for i in order.tolist() if (other := self.tasks[i]) != task][:k]

    def memory(self, task: int | None = None) -> dict[str, int]:
        """Bytes of a task's own entries by kind (atoms, normalisation, head, other); the mean over tasks by default."""
        chosen = self.tasks if task is None else [task]
        total = dict.fromkeys(KINDS, 0)
        for t in chosen:
            for kind, size in self._task(t).sizes():
                total[kind] += size
        return {kind: round(total[kind] / max(len(chosen), 1)) for kind in KINDS}

    def shared_memory(self) -> dict[str, int]:
        """Bytes stored once for all tasks: coefficients, and every other shared entry."""
        shared = self._ownership.shared
        coefficients = sum(shared[f"{layer}.coefficients"].nbytes for layer in self.layers)
        return {"coefficients": coefficients, "other": sum(t.nbytes for t in shared.values()) - coefficients}

    def merge(self, *others: "AtomBank") -> "AtomBank":
        """A bank of all tasks of this and further banks with equal coefficients. A taken label becomes the next free.

        Raises:
            FsclError: the banks differ in their coefficients or in another shared entry.
        """
        tasks = dict(self._tasks)
        for other in others:
            self._ownership.check_mergeable(other._ownership)
            for label, task in other._tasks.items():
                tasks[label if label not in tasks else max(tasks) + 1] = task
        return self._made_of(self._ownership, tasks, self._unkept)

    def to(self, device: str | torch.device) -> "AtomBank":
        """The same bank on another device. Tensors that are on that device already are not copied."""
        shared = {name: moved_to(tensor, device) for name, tensor in self._ownership.shared.items()}
        tasks: dict[int, Task] = {label: task.to(device) for label, task in self._tasks.items()}
        return self._made_of(replace(self._ownership, shared=shared), tasks, self._unkept)

    # on disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file. It has a temporary name first, so that a failure leaves the old file whole.

        Raises:
            FsclError: the file cannot be written.
        """
        write_bank(path, self._ownership, self._tasks)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> "AtomBank":
        """Reads a bank that :meth:`save` wrote. A task's tensors are read when they are first used.

        No code is executed. The file stays open: it may be renamed, deleted or replaced, also by :meth:`save`. Once it
        was written to in place, tasks that were not read before are refused. On Windows, where an open file cannot be
        replaced, all tasks are read at once. Copies and pickles of the bank hold all tasks.

        Raises:
            FsclError: the file does not exist, is damaged, is not a bank, or has another format. A task's tensors are
                checked when they are read: a damaged task is refused then, and the other tasks can still be used.
        """
        return cls._made_of(*read_bank(path, device))

    @classmethod
    def _made_of(cls, ownership: Ownership, tasks: dict[int, Task], unkept: dict[str, str] | None = None) -> Self:
        bank = cls.__new__(cls)
        bank._ownership, bank._tasks, bank._unkept = ownership, tasks, unkept
        return bank

    def __getstate__(self) -> dict[str, Any]:  # plain data, which torch.load(weights_only=True) accepts
        ownership = {f"_{name}": value for name, value in vars(self._ownership).items()}
        tasks = {label: (task.name, dict(task.kinds), task.held().tensors) for label, task in self._tasks.items()}
        return {**ownership, "_tasks": tasks, "_unkept": self._unkept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ownership = Ownership(**{field.name: state[f"_{field.name}"] for field in fields(Ownership)})
        self._tasks = {label: HeldTask(*task) for label, task in state["_tasks"].items()}
        self._unkept = state["_unkept"]

    def _task(self, task: int) -> Task:
        if (label := as_label(task)) not in self._tasks:
            raise FsclError(f"task {label} is not in the bank; tasks: {', '.join(map(str, self)) or 'none yet'}")
        return self._tasks[label]
