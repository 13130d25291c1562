"""Bank files that are damaged or have false headers, and networks that a bank must refuse."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.hostile.mutations import mutate_bytes, mutate_values
from benchmarks.hostile.trial import Trial
from fscl.atoms import AtomBank, decompose, freeze_coefficients
from fscl.atoms.entries import digest_of

__all__ = ["describe_anew", "small_bank", "the_same", "trials"]


def trials(folder: Path, rng: Random, count: int) -> Iterator[Trial]:
    bank = small_bank()
    path = folder / "bank.safetensors"
    bank.save(path)
    whole = path.read_bytes()
    for number in range(8 * len(bank)):
        yield Trial("one bit of a task's tensors", _reading(folder, _flipped(bank, whole, number, rng), bank))
    for _ in range(count):
        yield Trial("random damage of the file", _reading(folder, mutate_bytes(whole, rng), bank))
    for _ in range(count):
        yield Trial("description with any values", _describing(folder, path, rng.random()))
    for name, header in _LYING.items():
        yield Trial(f"header: {name}", _reading(folder, _with_header(whole, header), bank), may_refuse=True)
    for name, change in _MOVED.items():
        yield Trial(f"stored after a change: {name}", _storing(change))


def small_bank() -> AtomBank:
    """A bank with three tasks of a network that has a normalisation layer and a head."""
    torch.manual_seed(0)
    model = _network(nn.BatchNorm2d(4))
    bank = AtomBank(model)
    for task in range(3):
        with torch.no_grad():
            model[0].atoms.add_(0.1 * torch.randn_like(model[0].atoms))
        model.train()(torch.randn(4, 1, 6, 6))
        bank.store(model, task, f"task {task}")
    return bank


def the_same(loaded: AtomBank, bank: AtomBank) -> bool:
    """Whether everything that a user gets from two banks is equal: tensors, names, similarity, bytes."""
    return (
        (loaded.tasks, loaded.names, loaded.layers) == (bank.tasks, bank.names, bank.layers)
        and _equal(loaded.shared, bank.shared)
        and torch.equal(loaded.similarity(), bank.similarity())
        and all(_equal(loaded.entries(t), bank.entries(t)) and loaded.memory(t) == bank.memory(t) for t in bank.tasks)
        and loaded.fingerprint == bank.fingerprint
    )


def describe_anew(path: Path, target: Path, change: Callable[[Any], Any]) -> None:
    """Writes the bank at ``path`` with a changed description and its correct digest, as an attacker would."""
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    try:
        text = json.dumps(change(json.loads(header["bank"])))
    except RecursionError:  # nested too deep for Python's JSON writer
        text = '{"tasks":' + "[" * 5000 + "]" * 5000 + "}"
    save_file(load_file(path), target, {**header, "bank": text, "digest": digest_of(text.encode())})


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def _reading(folder: Path, data: bytes, bank: AtomBank) -> Callable[[], bool]:
    def act() -> bool:
        path = folder / "damaged.safetensors"
        path.write_bytes(data)
        return the_same(AtomBank.load(path), bank)

    return act


def _describing(folder: Path, path: Path, seed: float) -> Callable[[], bool]:
    def act() -> bool:
        target = folder / "described.safetensors"
        describe_anew(path, target, lambda meta: mutate_values(meta, Random(seed)))
        loaded = AtomBank.load(target)
        for task in loaded.tasks:  # use the bank as a user would, whatever the description says
            loaded.entries(task)
        loaded.similarity() if len(loaded) > 1 else None
        return bool(repr(loaded)) and loaded.layers == ["0"]

    return act


def _flipped(bank: AtomBank, whole: bytes, number: int, rng: Random) -> bytes:
    task = bank.tasks[number % len(bank)]
    tensors = [t for t in bank.entries(task).values() if t.numel() > 1]
    needle = rng.choice(tensors).detach().numpy().tobytes()
    at = whole.rfind(needle) + rng.randrange(len(needle))
    return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]


def _with_header(whole: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def _claim(header: dict[str, Any]) -> None:
    key = next(key for key in header if key.startswith("tasks/"))
    header[key] = {"dtype": "F32", "shape": [10**5, 10**5], "data_offsets": [0, 4 * 10**10]}


def _swap(header: dict[str, Any]) -> None:
    mean, variance = [key for key in header if key.endswith(("running_mean", "running_var"))]
    header[mean], header[variance] = header[variance], header[mean]


def _entry(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["__metadata__"].update({key: value})


_LYING: dict[str, Callable[[dict[str, Any]], None]] = {
    "claims 40 GB": _claim,
    "two entries exchanged": _swap,
    "no metadata": lambda header: header.pop("__metadata__") and None,
    "an entry is missing": lambda header: header.pop(next(k for k in header if k.startswith("shared/"))) and None,
    "another format": _entry("version", "99"),
    "version is a number that is none": _entry("version", "nan"),
    "a description nested 5,000 deep": _entry("bank", "[" * 5000 + "]" * 5000),
    "a description that is no JSON": _entry("bank", "{"),
}


class _Statistics(nn.Module):
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = x.detach().mean()
        return x - self.mean


class _Attribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = x.detach().mean()
        return x - self.mean


def _network(*modules: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), *modules, nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2))
    model = decompose(net).model
    freeze_coefficients(model)
    return model


_MOVED: dict[str, Callable[[], tuple[nn.Module, list[str]]]] = {
    "1x1 convolution": lambda: (_network(nn.Conv2d(4, 4, 1)), ["1.weight"]),
    "hidden linear layer": lambda: (_network(nn.Identity()), ["4.weight"]),
    "bias of a hidden linear layer": lambda: (_network(nn.Identity()), ["4.bias"]),
    "coefficients": lambda: (_network(nn.Identity()), ["0.coefficients"]),
    "PReLU": lambda: (_network(nn.PReLU(4)), ["1.weight"]),
    "statistics in a buffer": lambda: (_network(_Statistics(True)), []),
    "statistics in a buffer that is not saved": lambda: (_network(_Statistics(False)), []),
    "statistics in a plain attribute": lambda: (_network(_Attribute()), []),
    "normalisation": lambda: (_network(nn.BatchNorm2d(4)), ["1.weight"]),
    "NaN in the atoms": lambda: (_network(nn.Identity()), ["0.atoms"]),
}


def _storing(make: Callable[[], tuple[nn.Module, list[str]]]) -> Callable[[], bool]:
    """The network is changed and stored as task 1. Then both tasks must restore exactly, or the store be refused."""

    def act() -> bool:
        model, changed = make()
        x = torch.randn(2, 1, 6, 6)
        bank = AtomBank(model)
        model.train()(x)
        bank.store(model, 0)
        before = model.eval()(x).detach()
        model.train()(3 + 2 * x)
        with torch.no_grad():
            for name in changed:
                model.get_parameter(name).add_(torch.nan if name == "0.atoms" else 0.1)
        bank.store(model, 1)
        after = model.eval()(x).detach()
        bank.restore(model, 0)
        right = torch.equal(model.eval()(x), before)
        bank.restore(model, 1)
        return right and torch.equal(model.eval()(x), after)

    return act
