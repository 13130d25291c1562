"""A bank on disk: one safetensors file that holds, for each entry, the tensors of all tasks as one; read task by task.

Format 2, after the header, whose metadata ``bank`` is JSON: ``shared/<entry>`` as it is, and ``tasks/<entry>`` of shape
(tasks, ...). Where tasks differ in the shape of an entry there are several, ``tasks/<entry>@1`` and so on; ``tasks`` of
its description then says whose tensor each row is. Format 1 had one tensor for each task and entry.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fscl.atoms.tasks import FiledTask, HeldTask, Stack, Task, TaskFile
from fscl.errors import FsclError
from fscl.files import write_atomically

__all__ = ["Contents", "read_bank", "write_bank"]

FORMAT = 2


@dataclass(frozen=True)
class Contents:
    """All of a bank."""

    layers: list[str]
    kinds: dict[str, str]
    fingerprint: str
    shared: dict[str, Tensor]
    tasks: Mapping[int, Task]


def write_bank(path: str | os.PathLike[str], bank: Contents) -> None:
    """Writes a bank; :class:`FsclError` if it cannot be written, and the old file is whole then."""
    rows: dict[tuple[Any, ...], tuple[list[int], list[Tensor]]] = {}
    for number, task in enumerate(bank.tasks.values()):
        held = task.held()
        for entry, tensor in held.tensors.items():
            same = (entry, held.kinds[entry], isinstance(tensor, nn.Parameter), tensor.dtype, tensor.shape)
            numbers, tensors = rows.setdefault(same, ([], []))
            numbers.append(number)
            tensors.append(tensor.detach().cpu())
    file = {f"shared/{name}": t.detach().cpu().contiguous() for name, t in bank.shared.items()}
    stacks: dict[str, dict[str, Any]] = {}
    variants: dict[str, int] = {}
    for (entry, kind, parameter, dtype, _), (numbers, tensors) in rows.items():
        variants[entry] = variants.get(entry, -1) + 1
        key = f"tasks/{entry}" + (f"@{variants[entry]}" if variants[entry] else "")
        stacks[key] = {"entry": entry, "kind": kind, "dtype": str(dtype).removeprefix("torch."), "parameter": parameter}
        if len(numbers) < len(bank.tasks):
            stacks[key]["tasks"] = numbers
        file[key] = torch.stack(tensors)
    meta = {
        "tasks": list(bank.tasks),
        "names": [task.name for task in bank.tasks.values()],
        "layers": bank.layers,
        "kinds": bank.kinds,
        "fingerprint": bank.fingerprint,
        "stacks": stacks,
    }
    header = {"format": "fscl.AtomBank", "version": str(FORMAT), "bank": json.dumps(meta, separators=(",", ":"))}

    def write(temporary: os.PathLike[str]) -> None:
        try:
            save_file(file, temporary, header)
        except SafetensorError as error:  # a full disk arrives wrapped
            raise OSError(None, str(error)) from error

    write_atomically(path, write)


def read_bank(path: str | os.PathLike[str], device: str | torch.device, check: Callable[[Contents], bool]) -> Contents:
    """Reads a bank but its tasks' tensors.

    Raises:
        FsclError: there is no such file, it is damaged (or ``check`` finds it so), not a bank, or of a newer format.
    """
    if not os.path.isfile(path):
        raise FsclError(f"{path}: no such bank")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # refuses a file that is not as long as it says
            header = file.metadata() or {}
            if header.get("format") != "fscl.AtomBank":
                raise FsclError(f"{path}: a safetensors file, but not an atom bank")
            version = int(header["version"])
            if version > FORMAT:
                raise FsclError(f"{path}: bank format {version}, and this fscl reads up to {FORMAT}; upgrade fscl")
            meta = json.loads(header["bank"])
            shared = {
                key.removeprefix("shared/"): file.get_tensor(key).to(device, copy=True)  # not the mapped file itself
                for key in file.keys()  # noqa: SIM118 - not a dict
                if key.startswith("shared/")
            }
            tasks = _tasks_of_format_1(file, meta, device) if version == 1 else _filed_tasks(path, header, device)
        found = Contents(meta["layers"], meta["kinds"], meta["fingerprint"], shared, tasks)
        if not check(found):
            raise ValueError("the coefficients are not those that were saved")
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise FsclError(f"{path}: damaged or truncated, not readable as a bank ({error})") from error
    return found


def _filed_tasks(path: str | os.PathLike[str], metadata: dict[str, str], device: str | torch.device) -> dict[int, Task]:
    file = TaskFile(path)
    file.read_into(size := bytearray(8), 0)
    file.read_into(text := bytearray(int.from_bytes(size, "little")), 8)
    header = json.loads(text)
    if header["__metadata__"] != metadata:
        raise ValueError("replaced while it was read")
    meta = json.loads(metadata["bank"])
    data = 8 + len(text)
    names = dict(zip(meta["tasks"], meta["names"], strict=True))
    for key, about in meta["stacks"].items():
        (start, end), (rows, *shape) = header[key]["data_offsets"], header[key]["shape"]
        dtype = getattr(torch, about["dtype"])
        tasks = about.get("tasks", range(len(names)))
        stack = Stack(about["entry"], about["kind"], about["parameter"], dtype, tuple(shape), data + start, tasks)
        if len(tasks) != rows or stack.nbytes * rows != end - start:
            raise ValueError(f"{key} has another size than it should have")
        file.add(stack, len(names))
    device = torch.device(device)
    filed = {task: FiledTask(name, file, number, device) for number, (task, name) in enumerate(names.items())}
    if os.name == "nt":  # where an open file can be neither replaced nor deleted
        return {label: task.held() for label, task in filed.items()}
    return dict(filed)


def _tasks_of_format_1(file: Any, meta: dict[str, Any], device: str | torch.device) -> dict[int, Task]:
    return {
        task["id"]: HeldTask(
            task["name"],
            task["kinds"],
            {entry: file.get_tensor(f"task/{task['id']}/{entry}").to(device, copy=True) for entry in task["kinds"]},
        )
        for task in meta["tasks"]
    }
