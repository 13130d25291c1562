"""Checkpoint files that are damaged, odd or false, and tensors that must be converted before they are compared."""

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from benchmarks.hostile.mutations import mutate_bytes, mutate_values
from benchmarks.hostile.trial import Trial
from fscl.compare import joint_decompose
from fscl.compare.checkpoints import load_checkpoints, read_checkpoint
from fscl.compare.checkpoints.containers import read_container
from fscl.compare.comparison import compare
from fscl.compare.comparison_text import lines
from fscl.similarity import similarity_matrix

__all__ = ["CONTENTS", "KINDS", "TENSORS", "equal", "saved", "small_state", "trials"]

Act = Callable[[], bool]


def trials(folder: Path, rng: Random, count: int) -> Iterator[Trial]:
    for name, data in archives().items():
        yield Trial("an archive made again", _like_torch(folder, data), may_refuse="bzip2" in name or "short" in name)
    for name, make in CONTENTS.items():
        yield Trial("contents that hold themselves, or stand for gigabytes", _bounded(folder, name, make))
    for change in TENSORS.values():
        yield Trial("tensors of other kinds", _odd_tensors(folder, change))
    for wrap in KINDS.values():
        yield Trial("weights that are kept in parts", _effective(folder, wrap), may_refuse=False)
    for place in _NO_FILES.values():
        yield Trial("what is no file", _no_file(folder, place))
    for name in _NAMES:
        yield Trial("names of files", _named(folder, name), may_refuse=False)
    whole = {
        "archive": saved({"state_dict": small_state(), "epoch": 3}),
        "older format": saved({"state_dict": small_state(), "epoch": 3}, _use_new_zipfile_serialization=False),
    }
    for form, data in whole.items():
        for _ in range(count):
            yield Trial(f"random damage: {form}", _like_torch(folder, mutate_bytes(data, rng)))
    stored = save(small_state())
    for _ in range(count):
        yield Trial("random damage: safetensors", _like_safetensors(folder, mutate_bytes(stored, rng)))
    for _ in range(count):
        yield Trial("any values beside tensors", _any_values(folder, rng.random()))


def small_state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).state_dict()


def saved(contents: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def equal(first: Any, second: Any) -> bool:
    """Whether the contents of two files are equal. NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same = (first.dtype, first.shape) == (second.dtype, second.shape)
        return same and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return type(first) is type(second) and (first == second or repr(first) == repr(second))


def archives() -> dict[str, bytes]:
    """One state in archives that are packed in different ways."""
    data = saved(small_state())

    def again(
        method: int, reverse: bool = False, root: str = "archive", folders: bool = False, short: int = 0
    ) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
            for empty in (f"{root}/", f"{root}/data/") if folders else ():
                new.writestr(empty, b"")
            for record in old.infolist()[:: -1 if reverse else 1]:
                rest = record.filename.partition("/")[2]
                content = old.read(record)
                new.writestr(f"{root}/{rest}", content[:-short] if short and rest == "data/0" else content)
        return buffer.getvalue()

    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    return {
        "stored": again(stored),
        "deflated": again(deflated),
        "reversed": again(deflated, reverse=True),
        "renamed": again(stored, root="x" * 77),
        "folders": again(deflated, folders=True),
        "folders, stored, reversed": again(stored, folders=True, reverse=True),
        "bzip2": again(zipfile.ZIP_BZIP2),
        "short": again(stored, short=4),
        "short, deflated": again(deflated, short=400),
    }


def _cycle() -> dict[str, Any]:
    contents: dict[str, Any] = {}
    contents["state_dict"] = {"model": contents}
    return contents


def _cycle_of_lists() -> list[Any]:
    contents: list[Any] = [small_state()]
    contents.append({"state_dict": contents})
    return contents


def _many_ways() -> dict[str, Any]:
    contents: dict[str, Any] = {"epoch": 1}
    for _ in range(80):
        contents = {"a": contents, "b": contents, "c": [contents, contents]}
    return contents


def _deep() -> dict[str, Any]:
    contents: dict[str, Any] = {"state_dict": {"epoch": 1}}
    for _ in range(150):
        contents = {"model": contents}
    return contents


def _sparse(*shape: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.zeros(len(shape), 0, dtype=torch.long), torch.zeros(0), shape)


CONTENTS: dict[str, Callable[[], Any]] = {
    "cycle": _cycle,
    "cycle of lists": _cycle_of_lists,
    "held in many ways": _many_ways,
    "deep": _deep,
    "expanded": lambda: {"weight": torch.zeros(1).expand(100_000, 10_000, 3, 3)},
    "expanded head": lambda: {**small_state(), "fc.weight": torch.zeros(1).expand(2**30, 2**10)},
    "many expanded": lambda: {
        f"{i}.weight": torch.zeros(9).view(1, 1, 3, 3).expand(4096, 512, 3, 3) for i in range(99)
    },
    "overlapping": lambda: {"weight": torch.zeros(2**18).as_strided((2**14, 2**14, 3, 3), (1, 1, 1, 1))},
    "sparse": lambda: {"weight": _sparse(100_000, 10_000, 3, 3)},
    "float8": lambda: {"weight": torch.zeros(1, dtype=torch.float8_e4m3fn).expand(100_000, 10_000, 3, 3)},
}

TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr(),
    "float8 e4m3": lambda t: t.to(torch.float8_e4m3fn),
    "float8 e5m2": lambda t: t.to(torch.float8_e5m2),
    "bfloat16": lambda t: t.bfloat16(),
    "float16": lambda t: t.half(),
    "float64": lambda t: t.double(),
    "complex": lambda t: t.to(torch.complex64),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.01, 0, torch.qint8),
    "quantised by channel": lambda t: torch.quantize_per_channel(
        t, torch.full((8,), 0.01), torch.zeros(8, dtype=torch.long), 0, torch.qint8
    ),
    "int8": lambda t: (t * 50).to(torch.int8),
    "int64": lambda t: (t * 50).to(torch.int64),
    "truth values": lambda t: t > 0,
    "empty": lambda t: t[:0],
    "nan": lambda t: t * torch.nan,
    "infinite": lambda t: t / 0,
    "expanded": lambda t: t[:1].expand_as(t),
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
}

KINDS: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruned in channels": lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0),
    "weight norm": lambda m: parametrizations.weight_norm(m),
    "spectral norm": lambda m: parametrizations.spectral_norm(m),
    "weight norm by a hook": lambda m: nn.utils.weight_norm(m),
    "spectral norm by a hook": lambda m: nn.utils.spectral_norm(m),
}

_NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda p: os.mkfifo(p),
    "device": lambda p: p.symlink_to("/dev/zero"),
    "dangling link": lambda p: p.symlink_to("nowhere"),
    "loop": lambda p: p.symlink_to(p.name),
    "folder": lambda p: p.mkdir(),
    "nothing": lambda p: p.touch(),
    "plain pickle": lambda p: p.write_bytes(pickle.dumps({"a": 1})),
    "code": lambda p: p.write_bytes(b"cos\nsystem\n(S'touch mark'\ntR."),
}

_NAMES = ("a\nb", "a\tb", "\x1b[31mred", "na\udcefve", "=1+1", "$\\frac{a$", "a" * 200, "花", "a, b", "-1", '"')


def _file(folder: Path, suffix: str = ".pt") -> Path:
    process_folder = folder / str(os.getpid())  # each trial has a process of its own
    process_folder.mkdir(exist_ok=True)
    return process_folder / f"a{suffix}"


def _like_torch(folder: Path, data: bytes) -> Act:
    def act() -> bool:
        file = _file(folder)
        file.write_bytes(data)
        contents = read_container(file, safetensors=False)
        return equal(contents, torch.load(file, map_location="cpu", weights_only=True, mmap=False))

    return act


def _like_safetensors(folder: Path, data: bytes) -> Act:
    def act() -> bool:
        file = _file(folder, ".safetensors")
        file.write_bytes(data)
        return equal(read_checkpoint(file), load(data))

    return act


def _bounded(folder: Path, name: str, make: Callable[[], Any]) -> Act:
    data = saved(make())

    def act() -> bool:
        file = _file(folder)
        file.write_bytes(data)
        read_checkpoint(file)
        return False  # no network can be read from these contents, so an answer is wrong

    return act


def _odd_tensors(folder: Path, change: Callable[[Tensor], Tensor]) -> Act:
    states = [small_state(seed) for seed in range(3)]
    odd = change(states[2]["2.weight"])
    data = [saved(state) for state in (*states[:2], {**states[2], "2.weight": odd})]

    def act() -> bool:
        files = [_file(folder).with_name(f"{i}.pt") for i in range(3)]
        for file, content in zip(files, data, strict=True):
            file.write_bytes(content)
        loaded = load_checkpoints(files)
        values = odd.dequantize() if odd.is_quantized else odd.to_dense() if odd.layout != torch.strided else odd
        expected = [*(s["2.weight"] for s in states[:2]), values]
        return _cosines_are(loaded.states, "2", expected)

    return act


def _effective(folder: Path, wrap: Callable[[nn.Module], object]) -> Act:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)) for _ in range(3)]
    for net in nets:
        wrap(net[2])
        net.train()(torch.randn(2, 3, 8, 8))
        net.eval()(torch.randn(2, 3, 8, 8))
    data = [saved(net.state_dict()) for net in nets]

    def act() -> bool:
        files = [_file(folder).with_name(f"{i}.pt") for i in range(3)]
        for file, content in zip(files, data, strict=True):
            file.write_bytes(content)
        loaded = load_checkpoints(files)
        return loaded.layers == ["0", "2"] and _cosines_are(loaded.states, "2", [net[2].weight for net in nets])

    return act


def _cosines_are(states: dict[str, dict[str, Tensor]], layer: str, filters: list[Tensor]) -> bool:
    """Whether the similarity of a layer is the cosine of these filters."""
    joint = joint_decompose(states, 9 * len(states))
    similarity = similarity_matrix(joint, aggregate="mean", layers=[layer]).double().numpy()
    flat = np.stack([f.detach().double().flatten().numpy() for f in filters])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return bool(np.allclose(similarity, flat @ flat.T, atol=1e-5))


def _no_file(folder: Path, make: Callable[[Path], object]) -> Act:
    def act() -> bool:
        file = _file(folder)
        make(file)
        read_checkpoint(file)
        return False

    return act


def _named(folder: Path, name: str) -> Act:
    data = [saved(small_state(seed)) for seed in range(2)]

    def act() -> bool:
        files = [_file(folder).with_name(f"{name}{i}.pt") for i in range(2)]
        for file, content in zip(files, data, strict=True):
            file.write_bytes(content)
        loaded = load_checkpoints(files)
        text = lines(compare(joint_decompose(loaded.states, 9, loaded.layers)))
        return list(loaded.files.values()) == files and all(line.isprintable() for line in text)

    return act


def _any_values(folder: Path, seed: float) -> Act:
    def act() -> bool:
        rng = Random(seed)
        plain = {"epoch": 3, "state_dict": {"0.weight": 1, "0.bias": 2}, "optimizer": {"lr": [0.1, None]}, "name": "x"}
        contents = mutate_values(plain, rng)
        if isinstance(contents, dict) and isinstance(contents.get("state_dict"), dict):
            for key in ("0.weight", "0.bias"):
                if key in contents["state_dict"] and rng.random() < 0.8:
                    contents["state_dict"][key] = torch.randn(4, 3, 3, 3) if key == "0.weight" else torch.zeros(4)
        file = _file(folder)
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(100_000)  # values are nested thousands deep, and must be written and compared
        torch.save(contents, file)
        sys.setrecursionlimit(usual)
        read_checkpoint(file)
        read = read_container(file, safetensors=False)
        sys.setrecursionlimit(100_000)
        return equal(read, torch.load(file, weights_only=True, mmap=False))

    return act
