"""The tasks of a bank: in memory, or in a file from which each is read when it is first used."""

import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fscl.atoms.entries import digest_of, moved_to
from fscl.errors import FsclError

__all__ = ["FiledTask", "HeldTask", "Stack", "Task", "TaskFile", "as_label", "entry_of_all"]


def as_label(task: object) -> int:
    """A task's label as a plain integer; integers of NumPy and torch are accepted."""
    try:
        return int(operator.index(task))  # type: ignore[arg-type]  # anything else raises
    except (TypeError, RuntimeError, ValueError) as error:
        raise FsclError(f"task label is {task!r}; an integer would do, and `name` may be any text") from error


@dataclass(frozen=True)
class HeldTask:
    """A task whose tensors are in memory."""

    name: str
    kinds: Mapping[str, str]
    tensors: dict[str, Tensor]

    def sizes(self) -> Iterator[tuple[str, int]]:
        """The kind and the bytes of each entry."""
        return ((self.kinds[entry], tensor.nbytes) for entry, tensor in self.tensors.items())

    def held(self) -> "HeldTask":
        return self

    def to(self, device: str | torch.device) -> "HeldTask":
        return HeldTask(self.name, self.kinds, {n: moved_to(t, device) for n, t in self.tensors.items()})


@dataclass(frozen=True)
class Stack:
    """One entry of several tasks in the file, with a row for each task."""

    entry: str
    kind: str
    parameter: bool
    dtype: torch.dtype
    shape: tuple[int, ...]  # of one row
    start: int  # position in the file, in bytes
    tasks: Sequence[int]  # for each row, the number of its task
    digest: str  # of the bytes of all rows

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape)


class TaskFile:
    """The tasks of a bank file. The file stays open, so it may be renamed, replaced or deleted.

    It is read and never mapped into memory: a mapped file that is cut short kills the process.
    """

    def __init__(self, path: str | os.PathLike[str], labels: Sequence[int], digests: Sequence[str]) -> None:
        self.path, self.labels, self.digests = path, labels, digests
        self.stacks: list[Stack] = []
        self._rows: dict[int, list[tuple[Stack, int]]] = {}  # by task, of stacks that only some tasks have
        self._whole: list[Stack] = []  # of stacks that all tasks have
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - __del__ closes it, after the last task that needs it
        self._written = self._stamp()

    def add(self, stack: Stack) -> None:
        self.stacks.append(stack)
        if stack.tasks == range(len(self.labels)):
            self._whole.append(stack)  # by task, 10,000 tasks would take eight times the memory
        else:
            for row, task in enumerate(stack.tasks):
                self._rows.setdefault(task, []).append((stack, row))

    def rows_of(self, task: int) -> list[tuple[Stack, int]]:
        """The stacks that a task has a row in, each with the number of this row."""
        return [(stack, task) for stack in self._whole] + self._rows.get(task, [])

    def read(self, stack: Stack) -> Tensor:
        """All rows of a stack, (rows, ...).

        Raises:
            FsclError: the file cannot be read, was written to, or holds other values than were saved.
        """
        self._check()
        data = self._rows_from(stack, 0, len(stack.tasks))
        if digest_of(data) != stack.digest:
            raise self._damaged(f"{stack.entry!r} of the tasks")
        return _as_tensor(data, stack, len(stack.tasks))

    def read_task(self, number: int) -> dict[str, Tensor]:
        """The tensors of one task, by entry.

        Raises:
            FsclError: the file cannot be read, was written to, or holds other values than were saved.
        """
        self._check()
        rows = {stack.entry: (stack, self._rows_from(stack, row, 1)) for stack, row in self.rows_of(number)}
        if digest_of(*(rows[entry][1] for entry in sorted(rows))) != self.digests[number]:
            raise self._damaged(f"task {self.labels[number]}")
        return {entry: _as_tensor(data, stack, 1)[0] for entry, (stack, data) in rows.items()}

    def _damaged(self, part: str) -> FsclError:
        return FsclError(
            f"{self.path}: damaged, {part} differs from what was saved; restore the file from a copy, or train again"
        )

    def _rows_from(self, stack: Stack, first: int, rows: int) -> bytearray:
        data = bytearray(rows * stack.nbytes)
        self.read_into(data, stack.start + first * stack.nbytes)
        return data

    def read_into(self, data: bytearray, start: int) -> None:
        done = 0
        try:
            while done < len(data):
                if not (chunk := self._read_at(start + done, len(data) - done)):
                    raise FsclError(f"{self.path}: damaged or truncated, it ends after {start + done} bytes")
                data[done : done + len(chunk)] = chunk
                done += len(chunk)
        except OSError as error:
            raise FsclError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _read_at(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # threads and forked processes share the position that `seek` sets
            return os.pread(self._file.fileno(), size, start)
        self._file.seek(start)
        return self._file.read(size)

    def _check(self) -> None:
        try:
            changed = self._stamp() != self._written
        except OSError as error:
            raise FsclError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if changed:
            raise FsclError(f"{self.path}: written to since it was loaded; load it again")

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if "_file" in self.__dict__:  # missing if the file could not be opened
            self._file.close()


class FiledTask:
    """A task whose tensors are read when they are first used."""

    def __init__(self, name: str, file: TaskFile, number: int, device: torch.device) -> None:
        self.name = name
        self.file = file
        self.number = number
        self.device = device

    @property
    def kinds(self) -> dict[str, str]:
        return {stack.entry: stack.kind for stack, _ in self.file.rows_of(self.number)}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return self._read()

    @property
    def is_read(self) -> bool:
        return "tensors" in self.__dict__

    def sizes(self) -> Iterator[tuple[str, int]]:
        """The kind and the bytes of each entry. Nothing is read."""
        return ((stack.kind, stack.nbytes) for stack, _ in self.file.rows_of(self.number))

    def held(self) -> HeldTask:
        return HeldTask(self.name, self.kinds, self.tensors if self.is_read else self._read())  # not kept

    def to(self, device: str | torch.device) -> "FiledTask":
        if torch.device(device) == self.device:
            return self
        return FiledTask(self.name, self.file, self.number, torch.device(device))

    def _read(self) -> dict[str, Tensor]:
        tensors = {entry: tensor.to(self.device) for entry, tensor in self.file.read_task(self.number).items()}
        parameters = {stack.entry for stack, _ in self.file.rows_of(self.number) if stack.parameter}
        return {n: nn.Parameter(t, requires_grad=False) if n in parameters else t for n, t in tensors.items()}


Task = HeldTask | FiledTask


def _as_tensor(data: bytearray, stack: Stack, rows: int) -> Tensor:
    shape = (rows, *stack.shape)
    return torch.frombuffer(data, dtype=stack.dtype).view(shape) if data else torch.empty(shape, dtype=stack.dtype)


def entry_of_all(tasks: Iterable[Task], entry: str) -> list[Tensor]:
    """One entry of each task. For tasks that are still on disk it is read for all of them at once, and not kept."""
    tensors: list[Tensor] = []
    read: dict[TaskFile, dict[int, Tensor]] = {}
    for task in tasks:
        if isinstance(task, HeldTask) or task.is_read:
            tensors.append(task.tensors[entry])
            continue
        if task.file not in read:
            stacks = [stack for stack in task.file.stacks if stack.entry == entry]
            read[task.file] = {n: row for s in stacks for n, row in zip(s.tasks, task.file.read(s), strict=True)}
        tensors.append(read[task.file][task.number].to(task.device))
    return tensors
