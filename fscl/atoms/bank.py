"""AtomBank: what is stored of each task, kept apart from what all tasks share."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fscl.atoms.bank_file import Contents, read_bank, write_bank
from fscl.atoms.entries import copied, entry_kinds, fingerprint_of, live_state, point_entries, put_entries
from fscl.atoms.layers import atom_layers
from fscl.atoms.tasks import HeldTask, Task, entry_of_all
from fscl.errors import FsclError
from fscl.similarity.subspace import gram_matrix, similarity_matrix

__all__ = ["KINDS", "AtomBank"]

KINDS = ("atoms", "normalisation", "head", "other")


class AtomBank:
    """The atoms of each task, with the normalisation, biases and head that belong to them, over shared coefficients.

    Create it from a network whose coefficients are frozen (:func:`fscl.atoms.freeze_coefficients`), :meth:`store` the
    network's present state as a task, and :meth:`restore` any task later: outputs are then bit for bit what they were.

    Per task are: atoms, normalisation layers (affine and running statistics), biases of convolutions, and the head.
    Everything else is shared, is kept once, and must not be trained after the bank is made, but for what ``own`` names.

    Args:
        model: a network with atom layers.
        heads: dotted names of the modules or entries that are heads; None takes the last ``nn.Linear``.
        own: dotted names of further modules or entries that differ from task to task, as 1x1 convolutions do between
            networks that were trained whole.

    References:
        Miao, Wang, Chen, Qiu. Continual Learning with Filter Atom Swapping. ICLR 2022.

    Example:
        >>> from fscl.atoms import decompose, freeze_coefficients
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        >>> model = decompose(net).model
        >>> freeze_coefficients(model)
        >>> bank = AtomBank(model)
        >>> bank.store(model, task=0, name="cats")
        >>> bank.tasks, bank.layers, tuple(bank.stack("0").shape)
        ([0], ['0'], (1, 4, 3, 3))
        >>> bank.memory()["atoms"]
        144
    """

    def __init__(self, model: nn.Module, heads: Sequence[str] | None = None, own: Collection[str] = ()) -> None:
        if not atom_layers(model):
            raise FsclError(f"{type(model).__name__} has no atom layers; call fscl.decompose on it first")
        self._kinds = entry_kinds(model, heads, own)
        self._shared = {name: copied(t) for name, t in live_state(model).items() if name not in self._kinds}
        self._layers = list(atom_layers(model))
        self._tasks: dict[int, Task] = {}
        self._fingerprint = _fingerprint(self._layers, self._shared)

    # what is in it

    @property
    def tasks(self) -> list[int]:
        """Task labels in the order in which they were first stored."""
        return list(self._tasks)

    @property
    def layers(self) -> list[str]:
        """Dotted names of the atom layers, from input to output."""
        return list(self._layers)

    @property
    def names(self) -> list[str]:
        """What each task is called, in the order of :attr:`tasks`."""
        return [task.name for task in self._tasks.values()]

    @property
    def shared(self) -> dict[str, Tensor]:
        """What all tasks share: coefficients and every other frozen entry of the network."""
        return dict(self._shared)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the shared coefficients: atoms of two banks can be compared only where it is the same."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def __repr__(self) -> str:
        return f"AtomBank({len(self)} tasks, {len(self._layers)} layers, {sum(self.memory().values())} bytes a task)"

    def entries(self, task: int) -> dict[str, Tensor]:
        """All tensors stored for one task, by their names in the network's ``state_dict``."""
        return dict(self._task(task).tensors)

    def atoms(self, task: int) -> dict[str, Tensor]:
        """The atoms of one task: layer name -> (m, height, width)."""
        tensors = self._task(task).tensors
        return {layer: tensors[f"{layer}.atoms"] for layer in self._layers}

    def stack(self, layer: str) -> Tensor:
        """The atoms of one layer for all tasks, (tasks, m, height, width), in the order of :attr:`tasks`."""
        self._check_layer(layer)
        if not self._tasks:
            raise FsclError("the bank is empty; store a task first")
        return torch.stack([t.detach() for t in entry_of_all(self._tasks.values(), f"{layer}.atoms")])

    def gram(self, layer: str) -> Tensor:
        """The (m, m) Gram matrix of the layer's coefficients; a multiple of the identity once the gauge is fixed."""
        self._check_layer(layer)
        return gram_matrix(self._shared[f"{layer}.coefficients"].double())

    # storing and restoring

    def store(self, model: nn.Module, task: int, name: str | None = None, head: Sequence[str] | None = None) -> None:
        """Keeps the network's present state as a task; a task stored before is replaced.

        Args:
            model: the network, with the coefficients that the bank was made with.
            task: its label.
            name: what to call it on axes; the label by default.
            head: names of the modules or entries that are this task's head, where the heads of several tasks live in
                one network (multi-head); all heads by default.

        Raises:
            FsclError: the network's coefficients are not the bank's.
        """
        state = live_state(model)
        self._check_coefficients(state)
        kinds = entry_kinds(model, self._of_kind("head") if head is None else head, self._of_kind("other"))
        ours = {n: k for n, k in kinds.items() if k == "head" or self._kinds.get(n) != "head"}
        self._tasks[task] = HeldTask(str(task) if name is None else name, ours, {n: copied(state[n]) for n in ours})

    @torch.no_grad()
    def restore(self, model: nn.Module, task: int) -> None:
        """Puts a task and the shared entries into a network in place; its outputs are then as they were when stored.

        A head that the network lacks (``ModuleDict`` heads made as tasks arrive) is made after a sibling.

        Raises:
            FsclError: the task is unknown, or the network has no place for an entry.
        """
        put_entries(model, {**self._shared, **self._task(task).tensors})

    @contextmanager
    def swapped(self, model: nn.Module, task: int) -> Iterator[nn.Module]:
        """Within the block the network is a task's; nothing is copied, and after it all is as before.

        Raises:
            FsclError: the task is unknown, or the network lacks one of its entries.
        """
        before = point_entries(model, self._task(task).tensors)
        try:
            yield model
        finally:
            point_entries(model, before)

    # comparing

    def similarity(self, metric: str = "cosine", aggregate: str = "product", **options: Any) -> Tensor:
        """Task-to-task similarity without data, (tasks, tasks): :func:`fscl.similarity.similarity_matrix`."""
        return similarity_matrix(self, metric=metric, aggregate=aggregate, **options)

    def nearest(self, task: int, k: int = 1, metric: str = "cosine", aggregate: str = "product") -> list[int]:
        """The k tasks most similar to a task, most similar first.

        Raises:
            FsclError: the task is unknown, or there are not k others.
        """
        self._task(task)
        if not 1 <= k < len(self):
            raise FsclError(f"k is {k}; the bank holds {len(self) - 1} other tasks")
        row = self.similarity(metric, aggregate)[self.tasks.index(task)]
        order = [t for i in row.argsort(descending=True, stable=True).tolist() if (t := self.tasks[i]) != task]
        return order[:k]

    def memory(self, task: int | None = None) -> dict[str, int]:
        """Bytes stored for one task by kind (atoms, normalisation, head, other); the mean over tasks by default.

        What the tasks share is not in it: :meth:`shared_memory`.
        """
        chosen = self.tasks if task is None else [task]
        total = dict.fromkeys(KINDS, 0)
        for t in chosen:
            for kind, size in self._task(t).sizes().items():
                total[kind] += size
        return {kind: round(total[kind] / max(len(chosen), 1)) for kind in KINDS}

    def shared_memory(self) -> dict[str, int]:
        """Bytes stored once for all tasks: coefficients, and every other shared entry."""
        sizes = {"coefficients": 0, "other": 0}
        names = {f"{layer}.coefficients" for layer in self._layers}
        for name, tensor in self._shared.items():
            sizes["coefficients" if name in names else "other"] += tensor.nbytes
        return sizes

    def merge(self, *others: "AtomBank") -> "AtomBank":
        """A bank with the tasks of this one and of others that were learned over the same coefficients.

        Tasks of the others whose labels are taken get the next free ones.

        Raises:
            FsclError: the coefficients differ, so that their atoms cannot be compared, or anything else that is shared.
        """
        merged = self._blank()
        merged._fill(self)
        for other in others:
            if other.fingerprint != self.fingerprint:
                raise FsclError(
                    f"these banks have different coefficients (fingerprints {self.fingerprint[:12]} and "
                    f"{other.fingerprint[:12]}), so their atoms cannot be compared; compare tasks of one bank, or "
                    "train the second from the first one's network"
                )
            for name in {**self._shared, **other._shared}:
                ours, theirs = self._shared.get(name), other._shared.get(name)
                if ours is None or theirs is None or not torch.equal(theirs.to(ours.device), ours):
                    raise FsclError(
                        f"{name!r} differs between these banks although their tasks share it, so one network cannot "
                        "serve them all; their atoms can still be compared with fscl.similarity_matrix"
                    )
            merged._fill(other)
        return merged

    def to(self, device: str | torch.device) -> "AtomBank":
        """A bank with the same tasks whose tensors are on a device; tensors that are there already are not copied."""
        moved = self._blank()
        moved._shared = {name: t.to(device) for name, t in self._shared.items()}
        moved._tasks = {label: task.to(device) for label, task in self._tasks.items()}
        return moved

    # on disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file: to a temporary name first, so that a failure leaves the old file whole.

        Raises:
            FsclError: it cannot be written.
        """
        write_bank(path, Contents(self._layers, self._kinds, self.fingerprint, self._shared, self._tasks))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> "AtomBank":
        """Reads a bank that :meth:`save` wrote; a task's tensors only once they are asked for. No code is executed.

        (On Windows all at once, for an open file could not be replaced there.)

        The file is kept open, so it may be replaced (by :meth:`save` too), renamed or deleted, but not written to in
        place: tasks that were not read yet are then refused. Copies and pickles hold all tasks.

        Raises:
            FsclError: there is no such file, it is damaged, not a bank, or of a newer format.
        """

        def whole(found: Contents) -> bool:
            return _fingerprint(found.layers, found.shared) == found.fingerprint

        found = read_bank(path, device, whole)
        bank = cls.__new__(cls)
        bank._layers, bank._kinds, bank._shared = found.layers, found.kinds, found.shared
        bank._fingerprint, bank._tasks = found.fingerprint, dict(found.tasks)
        return bank

    # inside

    def __getstate__(self) -> dict[str, Any]:  # plain data, that torch.load(weights_only=True) takes
        held = {label: task.held() for label, task in self._tasks.items()}
        return {**self.__dict__, "_tasks": {label: (t.name, dict(t.kinds), t.tensors) for label, t in held.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tasks = {label: HeldTask(*task) for label, task in state["_tasks"].items()}
        self.__dict__.update({**state, "_tasks": tasks})

    def _task(self, task: int) -> Task:
        if task not in self._tasks:
            known = ", ".join(map(str, self.tasks)) or "none yet"
            raise FsclError(f"task {task!r} is not in the bank; tasks: {known}")
        return self._tasks[task]

    def _check_layer(self, layer: str) -> None:
        if layer not in self._layers:
            raise FsclError(f"the bank has no layer {layer!r}; layers: {', '.join(self._layers)}")

    def _check_coefficients(self, state: dict[str, Tensor]) -> None:
        for layer in self._layers:
            name = f"{layer}.coefficients"
            ours = self._shared[name]
            if name not in state or not torch.equal(state[name], ours.to(state[name].device)):
                raise FsclError(
                    f"{name} of this network differs from the bank's; freeze the coefficients before the bank is made, "
                    "and make a new bank for a network with others"
                )

    def _of_kind(self, wanted: str) -> list[str]:
        return [name for name, kind in self._kinds.items() if kind == wanted]

    def _blank(self) -> "AtomBank":
        bank = AtomBank.__new__(AtomBank)
        bank._layers, bank._kinds, bank._shared = self._layers, self._kinds, self._shared
        bank._fingerprint, bank._tasks = self._fingerprint, {}
        return bank

    def _fill(self, other: "AtomBank") -> None:
        for label, task in other._tasks.items():
            self._tasks[label if label not in self._tasks else max(self._tasks) + 1] = task


def _fingerprint(layers: Sequence[str], shared: Mapping[str, Tensor]) -> str:
    return fingerprint_of({f"{layer}.coefficients": shared[f"{layer}.coefficients"] for layer in layers})
