"""A bank on disk: one safetensors file. It holds one tensor for each entry, with a row for each task.

``shared/<entry>`` holds a shared tensor. ``tasks/<entry>`` holds the tensors of all tasks, (tasks, ...). Tasks in which
the entry has another shape are in further tensors, ``tasks/<entry>@1`` and so on; ``tasks`` in the description of such
a tensor lists the task of each row.

The metadata ``bank`` is JSON. It describes all tensors, and has digests of the shared tensors, of each task and of each
entry. The metadata ``digest`` is the digest of this JSON. So every flipped bit is noticed: a bit of the description or
of a shared tensor when the bank is loaded, a bit of a task when the task is read.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fscl.atoms.entries import DIGITS, bytes_of, digest_of, fingerprint_of
from fscl.atoms.ownership import KINDS, Ownership
from fscl.atoms.tasks import FiledTask, Stack, Task, TaskFile
from fscl.errors import FsclError
from fscl.files import write_atomically

__all__ = ["copied_tensors", "read_bank", "write_bank", "write_safetensors"]

FORMAT = 3


def write_bank(path: str | os.PathLike[str], ownership: Ownership, tasks: Mapping[int, Task]) -> None:
    """Writes a bank.

    Raises:
        FsclError: the file cannot be written. The old file is then whole.
    """
    rows: dict[tuple[Any, ...], tuple[list[int], list[Tensor]]] = {}
    held = [task.held() for task in tasks.values()]
    for number, task in enumerate(held):
        for entry, tensor in task.tensors.items():
            stack_key = (entry, task.kinds[entry], isinstance(tensor, nn.Parameter), tensor.dtype, tensor.shape)
            numbers, tensors = rows.setdefault(stack_key, ([], []))
            numbers.append(number)
            tensors.append(tensor.detach().cpu())
    file = {f"shared/{name}": t.detach().cpu().contiguous() for name, t in ownership.shared.items()}
    stacks: dict[str, dict[str, Any]] = {}
    variants: dict[str, int] = {}
    for (entry, kind, parameter, dtype, shape), (numbers, tensors) in rows.items():
        variants[entry] = variants.get(entry, -1) + 1
        key = f"tasks/{entry}" + (f"@{variants[entry]}" if variants[entry] else "")
        file[key] = torch.stack(tensors)
        stacks[key] = {
            "entry": entry,
            "kind": kind,
            "dtype": str(dtype).removeprefix("torch."),
            "shape": list(shape),
            "parameter": parameter,
            "digest": digest_of(bytes_of(file[key])),
        }
        if len(numbers) < len(tasks):
            stacks[key]["tasks"] = numbers
    description = json.dumps(
        {
            "tasks": list(tasks),
            "names": [task.name for task in held],
            "digests": "".join(digest_of(*(bytes_of(t) for _, t in sorted(task.tensors.items()))) for task in held),
            "layers": ownership.layers,
            "kinds": ownership.kinds,
            "heads": ownership.heads,
            "shared": fingerprint_of(dict(sorted(ownership.shared.items()))),
            "stacks": stacks,
        },
        separators=(",", ":"),
    )
    header = {
        "format": "fscl.AtomBank",
        "version": str(FORMAT),
        "bank": description,
        "digest": digest_of(description.encode()),
    }

    write_safetensors(path, file, header)


def write_safetensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Writes a safetensors file with metadata. It has a temporary name first.

    Raises:
        FsclError: the file cannot be written. The old file is then whole.
    """

    def write(temporary: os.PathLike[str]) -> None:
        try:
            save_file(tensors, temporary, header)
        except SafetensorError as error:  # safetensors wraps the OSError of a full disk
            raise OSError(None, str(error)) from error

    write_atomically(path, write)


def copied_tensors(file: Any) -> dict[str, Tensor]:
    """All tensors of a file that ``safe_open`` opened. They are copied: it maps the file, which could be cut short."""
    return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict


def read_bank(path: str | os.PathLike[str], device: str | torch.device) -> tuple[Ownership, dict[int, Task]]:
    """Reads a bank, but not yet the tensors of its tasks.

    Raises:
        FsclError: the file does not exist, is damaged, is not a bank, or has another format.
    """
    if not os.path.isfile(path):
        raise FsclError(f"{path}: no such bank")
    try:
        # safe_open refuses a file of another length than its header says
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            if header.get("format") != "fscl.AtomBank":
                raise FsclError(f"{path}: a safetensors file, but not an atom bank")
            if header.get("version") != str(FORMAT):
                raise FsclError(
                    f"{path}: bank format {header.get('version', '')[:20]}, and this fscl reads format {FORMAT}; "
                    "use the fscl that wrote it, or train the bank again"
                )
            if digest_of(header["bank"].encode()) != header["digest"]:
                raise ValueError("its description differs from what was saved")
            meta = _checked(json.loads(header["bank"]))
            shared = {
                key.removeprefix("shared/"): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 - not a dict
                if key.startswith("shared/")
            }
        # copied, for `get_tensor` maps the file: it could be cut short later
        shared = {name: nn.Parameter(t.to(device, copy=True), requires_grad=False) for name, t in shared.items()}
        if fingerprint_of(dict(sorted(shared.items()))) != meta["shared"]:
            raise ValueError("the shared tensors differ from what was saved")
        if missing := next((layer for layer in meta["layers"] if f"{layer}.coefficients" not in shared), None):
            raise ValueError(f"the coefficients of layer {missing!r} are missing")
        ownership = Ownership.of(meta["layers"], meta["kinds"], meta["heads"], shared)
        return ownership, _filed_tasks(path, header, meta, device)
    except FsclError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FsclError(f"{path}: damaged or truncated, not readable as a bank ({reason})") from error


def _filed_tasks(
    path: str | os.PathLike[str], metadata: dict[str, str], meta: dict[str, Any], device: str | torch.device
) -> dict[int, Task]:
    labels = meta["tasks"]
    digests = [meta["digests"][at : at + DIGITS] for at in range(0, DIGITS * len(labels), DIGITS)]
    file = TaskFile(path, labels, digests)
    file.read_into(size := bytearray(8), 0)
    file.read_into(text := bytearray(int.from_bytes(size, "little")), 8)
    header = json.loads(text)
    if header["__metadata__"] != metadata:
        raise ValueError("the file was replaced while it was read")
    data = 8 + len(text)
    for key, about in meta["stacks"].items():
        start, end = header[key]["data_offsets"]
        dtype = getattr(torch, about["dtype"])
        tasks = about.get("tasks", range(len(labels)))
        shape = tuple(about["shape"])
        stack = Stack(
            about["entry"], about["kind"], about["parameter"], dtype, shape, data + start, tasks, about["digest"]
        )
        if header[key]["shape"] != [len(tasks), *shape] or stack.nbytes * len(tasks) != end - start:
            raise ValueError(f"the size of {key} differs from its description")
        file.add(stack)
    for number, label in enumerate(labels):
        entries = [stack.entry for stack, _ in file.rows_of(number)]
        if len(set(entries)) < len(entries) or not {f"{layer}.atoms" for layer in meta["layers"]} <= set(entries):
            raise ValueError(f"task {label} lacks atoms, or has an entry twice")
    filed = {
        label: FiledTask(name, file, number, torch.device(device))
        for number, (label, name) in enumerate(zip(labels, meta["names"], strict=True))
    }
    if os.name == "nt":  # Windows can neither replace nor delete an open file
        return {label: task.held() for label, task in filed.items()}
    return dict(filed)


def _checked(meta: Any) -> dict[str, Any]:
    """The description, once every part has the type that it should have.

    A file from a stranger may hold anything: its digest tells damage, but not forgery.

    Raises:
        ValueError: a part is missing or has a wrong type.
    """

    def check(part: str, is_right: bool) -> None:
        if not is_right:
            raise ValueError(f"its description has no proper {part}")

    check("form", isinstance(meta, dict))
    labels, names = meta.get("tasks"), meta.get("names")
    check("tasks", _all_of(int, labels) and len(set(labels)) == len(labels))
    check("names", _all_of(str, names) and len(names) == len(labels))
    check("digests", isinstance(meta.get("digests"), str) and len(meta["digests"]) == DIGITS * len(labels))
    check("layers", _all_of(str, meta.get("layers")) and len(meta["layers"]) > 0)
    check("heads", _all_of(str, meta.get("heads")))
    check("kinds", isinstance(meta.get("kinds"), dict) and _all_of(str, list(meta["kinds"].values())))
    check("kinds", set(meta["kinds"].values()) <= set(KINDS))
    check("shared", isinstance(meta.get("shared"), str))
    check("stacks", isinstance(meta.get("stacks"), dict) and _all_of(dict, list(meta["stacks"].values())))
    for key, about in meta["stacks"].items():
        tasks = about.get("tasks", list(range(len(labels))))
        check(f"{key}: entry", isinstance(about.get("entry"), str) and about.get("kind") in KINDS)
        check(f"{key}: dtype", isinstance(about.get("dtype"), str))
        check(f"{key}: dtype", isinstance(getattr(torch, about["dtype"], None), torch.dtype))
        check(f"{key}: shape", _all_of(int, about.get("shape")) and min(about["shape"], default=0) >= 0)
        check(f"{key}: parameter", isinstance(about.get("parameter"), bool))
        check(f"{key}: tasks", _all_of(int, tasks) and all(0 <= task < len(labels) for task in tasks))
        check(f"{key}: digest", isinstance(about.get("digest"), str))
    return meta


def _all_of(type_of_value: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is type_of_value for value in values)
