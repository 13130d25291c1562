"""Files from strangers are read as ``torch.load`` reads them, or refused in one line, in bounded memory."""

import io
import os
import pickle
import random
import socket
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.hostile.mutations import mutate_bytes
from fscl.compare.checkpoints import find_checkpoints, load_checkpoints, read_checkpoint
from fscl.compare.checkpoints.containers import read_container
from fscl.errors import FsclError

pytestmark = pytest.mark.filterwarnings("ignore")


def state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).state_dict()


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def saved(found: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer, **options)
    return buffer.getvalue()


def refused(path: Path, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(FsclError, match=says) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path.parent}/")
    assert time.monotonic() - started < 10


# rewritten archives


def rezipped(
    path: Path,
    data: bytes,
    method: int = zipfile.ZIP_STORED,
    order: Callable[[list[zipfile.ZipInfo]], list[zipfile.ZipInfo]] = list,
    root: str = "archive",
    folders: bool = False,
    comment: bytes = b"",
    change: Callable[[str, bytes], bytes] = lambda name, content: content,
    more: dict[str, bytes] | None = None,
) -> Path:
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w", method) as new:
        new.comment = comment
        for folder in (f"{root}/", f"{root}/data/") if folders else ():
            new.writestr(folder, b"")
        for record in order(old.infolist()):
            rest = record.filename.partition("/")[2]
            new.writestr(f"{root}/{rest}", change(rest, old.read(record)))
        for name, content in (more or {}).items():
            new.writestr(f"{root}/{name}", content)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"method": zipfile.ZIP_DEFLATED},
        {},
        {"order": lambda records: records[::-1]},
        {"order": lambda records: sorted(records, key=lambda r: r.filename), "method": zipfile.ZIP_DEFLATED},
        {"root": "another name"},
        {"root": "x" * 70, "method": zipfile.ZIP_DEFLATED},
        {"folders": True},
        {"folders": True, "method": zipfile.ZIP_DEFLATED, "root": "model"},
        {"comment": b"made by hand"},
        {"more": {"notes.txt": b"of no use", "data/99": b"of nothing"}},
    ],
)
def test_rewritten_archives_are_read_as_torch_reads_them(tmp_path: Path, options: dict[str, Any]) -> None:
    expected = state()
    file = rezipped(tmp_path / "a.pt", saved(expected), **options)
    assert same(torch.load(file, weights_only=True), expected)
    assert same(read_checkpoint(file), expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": zipfile.ZIP_BZIP2}, "damaged"),
        ({"method": zipfile.ZIP_LZMA}, "damaged"),
        ({"change": lambda n, d: d[:-4] if n == "data/0" else d}, r"864 bytes of tensor data '0' are missing"),
        ({"change": lambda n, d: d + b"more" if n == "data/0" else d}, r"864 bytes of tensor data '0' are missing"),
        ({"change": lambda n, d: b"" if n == "data/3" else d}, r"32 bytes of tensor data '3' are missing"),
        ({"change": lambda n, d: d.replace(b"FloatStorage", b"DoubleStorage")}, r"1728 bytes of tensor data '0'"),
        ({"order": lambda r: [x for x in r if not x.filename.endswith("data/1")]}, r"tensor data '1' are missing"),
        ({"order": lambda r: [x for x in r if not x.filename.endswith("data.pkl")]}, r"data\.pkl"),
        ({"order": lambda r: [*r, r[0]]}, "two records have one name"),
        ({"more": {"DATA/0": bytes(864)}}, "two records have one name"),
        ({"more": {"zeros": bytes(2**29)}, "method": zipfile.ZIP_DEFLATED}, r"unpack to 5368\d+ bytes, far more than"),
        *(
            ({"change": lambda n, d, x=x: d[:2] + x + d[2:] if n == "data.pkl" else d, "method": 8}, "far more than")
            for x in (b"N" * 2**25, b"]" * 2**22, b"cbuiltins\nobject\nq\0" + b"h\0)\x81}b" * 2**20)
        ),
    ],
)
def test_archives_that_lack_claimed_data_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    refused(rezipped(tmp_path / "a.pt", saved(state()), **options), says)


KEYS = b"".join(b"J%bN" % i.to_bytes(4, "little") for i in range(2**17))
COPIES = {  # a text, a tuple or a mapping of 100,000s of values, and 2 ** 17 calls that take it
    "calls": b"c_codecs\nencode\nq\0X\0\0\x08\0" + b"x" * 2**19 + b"U\x06latin1\x86q\1" + b"h\0h\1R" * 2**17,
    "objects": b"cbuiltins\nobject\nq\0(" + b"N" * 2**19 + b"tq\1" + b"h\0h\1\x81" * 2**17,
    "states": b"ccollections\nOrderedDict\n)Rq\0}q\1(" + KEYS + b"u0" + b"h\0h\1b" * 2**17,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "older"])
@pytest.mark.parametrize("kind", COPIES)
def test_a_pickle_whose_calls_copy_a_large_value_again_and_again_is_refused(
    tmp_path: Path, kind: str, zipped: bool
) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content[:2] + COPIES[kind] + content[2:] if name == "data.pkl" else content

    file = tmp_path / "a.pt"
    if zipped:
        rezipped(file, saved(state()), change=change)
    else:
        data = saved(state(), _use_new_zipfile_serialization=False)
        begin = data.index(b"\x80\2ccollections")
        file.write_bytes(data[:begin] + change("data.pkl", data[begin:]))
    refused(file, "its calls copy more values than the file holds")


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    data = bytearray(saved(state()))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sizes = {r.filename: r.file_size for r in archive.infolist() if "/data/" in r.filename}
    weight = state()["0.weight"].numpy().tobytes()
    at = data.index(weight)
    for place in (0, 1, len(weight) // 2, len(weight) - 1):
        file = tmp_path / "a.pt"
        file.write_bytes(data[: at + place] + bytes([data[at + place] ^ 4]) + data[at + place + 1 :])
        refused(file, "Bad CRC-32")
    assert sizes


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options() if hasattr(torch.serialization, "get_crc32_options") else None
    if before is None:
        pytest.skip("torch writes checksums always")
    try:
        torch.serialization.set_crc32_options(False)
        (tmp_path / "a.pt").write_bytes(saved(state()))
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(read_checkpoint(tmp_path / "a.pt"), state())


def test_a_file_of_the_older_format_that_lacks_values_is_refused(tmp_path: Path) -> None:
    data = saved(state(), _use_new_zipfile_serialization=False)
    file = tmp_path / "a.pt"
    file.write_bytes(data)
    assert same(read_checkpoint(file), state())
    # the list of keys is the last pickle before the values; torch does not fill a tensor whose key is missing
    keys = data.rindex(b"\x80\2]q")
    stream = io.BytesIO(data[keys:])
    names = pickle.load(stream)
    (values,) = struct.unpack("<q", stream.read(8))
    assert len(names) == 9
    rest = data[keys + stream.tell() + 4 * values :]
    file.write_bytes(data[:keys] + pickle.dumps(names[1:], 2) + rest)
    # depending on the order of keys, a tensor gets the values of another, or too few values are left
    refused(file, "tensor data is missing|storage has wrong byte size")


# files that claim more than they hold


def deep(depth: int) -> Any:
    value: Any = {"state_dict": state()}
    for _ in range(depth):
        value = {"model": value}
    return value


def cyclic(length: int) -> Any:
    names = ["state_dict", "model", "net", "module"]
    rows: list[dict[str, Any]] = [{} for _ in range(length)]
    for i, row in enumerate(rows):
        row[names[i % 4]] = rows[(i + 1) % length]
    return rows[0]


def many_ways(levels: int) -> Any:
    value: Any = {"epoch": 1}
    for _ in range(levels):
        value = {"a": value, "b": value, "c": [value, value]}
    return value


def cyclic_list() -> Any:
    value: list[Any] = []
    value.append({"state_dict": value})
    return value


@pytest.mark.parametrize(
    "found",
    [
        cyclic(1),
        cyclic(2),
        cyclic(5),
        {"epoch": 3, "state_dict": cyclic(3)},
        cyclic_list(),
        {"state_dict": cyclic_list()},
        many_ways(60),
        {"model": many_ways(200)},
    ],
    ids=range(8),
)
def test_reading_cyclic_or_shared_mappings_ends(tmp_path: Path, found: Any) -> None:
    torch.save(found, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "not the state of a network, but ")


def test_a_state_is_found_at_any_depth_of_nesting(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(deep(100)))
    assert same(read_checkpoint(tmp_path / "a.pt"), state())


def empty_sparse(*shape: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.zeros(len(shape), 0, dtype=torch.long), torch.zeros(0), shape)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(1).expand(100_000, 10_000, 3, 3),
        torch.zeros(9).view(1, 1, 3, 3).expand(100_000, 10_000, 3, 3),
        torch.zeros(1, dtype=torch.int8).expand(100_000, 10_000, 3, 3),
        torch.zeros(1, dtype=torch.float8_e4m3fn).expand(30_000, 10_000, 3, 3),
        torch.zeros(2**21).as_strided((2**14, 2**10, 3, 3), (1, 1, 1, 1)),
        empty_sparse(100_000, 10_000, 3, 3),
        torch.zeros(1).expand(2**30, 2**20, 3, 3),
    ],
)
@pytest.mark.parametrize("name", ["0.weight", "head.weight"])
def test_a_small_file_that_claims_gigabytes_is_refused(tmp_path: Path, weight: Tensor, name: str) -> None:
    torch.save({**state(), name: weight}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", rf"entry '{name}' \(.*\) claims more values than a file of \d+ bytes may have")


def test_a_few_repeated_values_are_read(tmp_path: Path) -> None:
    given = {**state(), "0.weight": torch.randn(1, 3, 3, 3).expand(8, 3, 3, 3), "2.weight": torch.zeros(8, 8, 3, 3)}
    given["2.weight"] = given["2.weight"].index_put((torch.tensor(1),), torch.tensor(2.0)).to_sparse()
    torch.save(given, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert all(torch.equal(found[n].to_dense(), given[n].to_dense()) for n in given)


# unusual tensors, with and without --skip-broken

ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr(),
    "float8": lambda t: t.to(torch.float8_e5m2),
    "complex": lambda t: t.to(torch.complex64),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.01, 0, torch.qint8),
    "truth values": lambda t: t > 0,
    "int8": lambda t: (t * 50).to(torch.int8),
    "int64": lambda t: (t * 50).to(torch.int64),
    "empty": lambda t: t[:0],
    "nan": lambda t: t * torch.nan,
    "infinite": lambda t: t / 0,
    "half": lambda t: t.half(),
}
COMPARED = {"sparse", "float8", "quantised", "half"}


@pytest.mark.parametrize("with_architecture", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_unusual_tensors_are_compared_or_their_file_is_left_out_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, with_architecture: bool
) -> None:
    from fscl.compare.checkpoints import Architecture

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_these.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))\n"
    )
    architecture = Architecture("net_of_these:net") if with_architecture else None
    for seed in range(3):
        entries = state(seed)
        if seed == 2:
            entries["2.weight"] = ODD[kind](entries["2.weight"])
        torch.save(entries, tmp_path / f"{seed}.pt")
    found = load_checkpoints([tmp_path], architecture, skip_broken=True)
    assert found.layers == ["0", "2"]
    assert list(found.states) == (["0", "1", "2"] if kind in COMPARED else ["0", "1"])
    for reason in found.left_out.values():
        assert "2" in reason
        assert "\n" not in reason


# paths that are not files


def test_paths_that_are_not_files_are_refused_without_blocking(tmp_path: Path) -> None:
    def make_socket(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            monkey = os.getcwd()
            os.chdir(path.parent)  # a socket's path is short
            made.bind(path.name)
            os.chdir(monkey)

    kinds: dict[str, tuple[Callable[[Path], object], str]] = {
        "pipe": (lambda p: os.mkfifo(p), "a pipe, not a file"),
        "socket": (make_socket, "a socket, not a file"),
        "dangling": (lambda p: p.symlink_to("nowhere"), "a link to a file that does not exist"),
        "loop": (lambda p: p.symlink_to(p.name), "a link to a file that does not exist"),
        "null": (lambda p: p.symlink_to("/dev/null"), "a device, not a file"),
        "zero": (lambda p: p.symlink_to("/dev/zero"), "a device, not a file"),
        "piped": (lambda p: p.symlink_to("pipe.pt"), "a pipe, not a file"),
        "empty": (lambda p: p.touch(), "the file is empty"),
    }
    for name, (make, says) in kinds.items():
        for suffix in (".pt", ".safetensors") if name != "piped" else (".pt",):
            make(tmp_path / f"{name}{suffix}")
            refused(tmp_path / f"{name}{suffix}", says)
    (tmp_path / "folder.pt").mkdir()
    refused(tmp_path / "folder.pt", "a folder, not a file")
    refused(tmp_path / "none.pt", "no such file")
    for seed in range(2):
        torch.save(state(seed), tmp_path / f"{seed}.pt")
    found = load_checkpoints([tmp_path], skip_broken=True)
    assert list(found.states) == ["0", "1"]
    assert len(found.left_out) == 2 * len(kinds) - 1


def test_unreadable_files_are_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.pt"
    torch.save(state(), file)

    def forbid(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", forbid)
        refused(file, "Permission denied")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", forbid)
        with pytest.raises(FsclError, match="Permission denied"):
            find_checkpoints([tmp_path])
    assert stat.S_ISREG(file.stat().st_mode)


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\tb", "\x1b[31mred", "na\udcefve", "\u2028line", "=1+1", "$\\frac{a$", "a" * 200, "花", "a\rb\0"[:3]],
)
def test_names_of_files_are_shown_in_one_line_everywhere(tmp_path: Path, name: str) -> None:
    files = [tmp_path / f"{name}{i}.pt" for i in range(2)]
    for seed, file in enumerate(files):
        torch.save(state(seed), io.BytesIO())
        file.write_bytes(saved(state(seed)))
    found = load_checkpoints([tmp_path])
    assert all(shown.isprintable() for shown in found.states)
    assert [found.files[shown] for shown in found.states] == sorted(files)
    files[0].write_bytes(b"")
    with pytest.raises(FsclError) as error:
        load_checkpoints([tmp_path])
    assert str(error.value).isprintable()


def test_file_names_that_are_escaped_alike_stay_distinct(tmp_path: Path) -> None:
    for seed, name in enumerate(("a\nb", "a\\nb")):
        (tmp_path / f"{name}.pt").write_bytes(saved(state(seed)))
    assert len(load_checkpoints([tmp_path]).states) == 2


# mutations


FORMS: dict[str, bytes] = {
    "archive": saved({"state_dict": state(), "epoch": 3}),
    "older": saved({"state_dict": state(), "epoch": 3}, _use_new_zipfile_serialization=False),
}


def oracle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception:
        return None


def answer(read: Callable[[], Any]) -> Any:
    """The content that was read, or the message of the refusal, which must be one line."""
    try:
        return read()
    except FsclError as error:
        return error if "\n" not in str(error) else None


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_a_mutated_checkpoint_is_read_as_torch_reads_it_or_refused(
    tmp_path: Path, form: str, rng: random.Random
) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(mutate_bytes(FORMS[form], rng))
    found = answer(lambda: read_container(file, safetensors=False))
    assert isinstance(found, FsclError) or equal(found, oracle(file))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return bool(one == other)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_a_mutated_safetensors_file_is_read_as_a_state_or_refused(tmp_path: Path, rng: random.Random) -> None:
    from safetensors.torch import load

    save_file(state(), tmp_path / "whole.safetensors")
    file = tmp_path / "a.safetensors"
    file.write_bytes(mutate_bytes((tmp_path / "whole.safetensors").read_bytes(), rng))
    found = answer(lambda: read_checkpoint(file))
    assert isinstance(found, FsclError) or equal(found, load(file.read_bytes()))
