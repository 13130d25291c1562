"""Plain data beside tensors is let in by stand-ins; whatever else a file names is refused, and no code of it runs."""

import argparse
import collections
import datetime
import enum
import io
import operator
import pathlib
import pickle
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import InterpolationMode

from benchmarks.hostile.mutations import mutate_bytes
from fscl.compare.checkpoints import read_checkpoint
from fscl.compare.checkpoints.containers import read_container
from fscl.compare.checkpoints.stand_ins import NumberArray, is_enumeration
from fscl.errors import FsclError


class Stage(enum.Enum):
    TRAIN = "train"
    PAIR = ("test", 2)


class Level(enum.IntFlag):
    LOW = 1


class Quantity:
    """Neither plain data nor an enumeration, but stored as one is: as a call with one plain value."""

    calls = 0

    def __init__(self, value: str) -> None:
        Quantity.calls += 1
        self.value = value

    def __reduce__(self) -> Any:
        return Quantity, (self.value,)


PLAIN: dict[str, Any] = {
    "options": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1"), steps=[1, np.float32(2)]),
    "more options": types.SimpleNamespace(lr=0.1),
    "path": pathlib.Path("a/b"),
    "pure path": pathlib.PureWindowsPath("a/b"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(1),
    "float64": np.float64(0.93),
    "int64": np.int64(3),
    "truth value": np.bool_(True),
    "dtype": np.dtype("float32"),
    "type": np.float32,
    "random state": np.random.RandomState(0).get_state(),
    "texts": np.array(["a", "bb"]),
    "objects": np.array([None, "a"], dtype=object),
    "enumeration": Stage.TRAIN,
    "enumeration of tuples": Stage.PAIR,
    "flag": Level.LOW,
    "enumeration of a library": InterpolationMode.BICUBIC,
    "default values": collections.defaultdict(list, {"loss": [1.0]}),
    "queue": collections.deque([1.0, 2.0], 5),
    "frozen set": frozenset([1, 2]),
    "version of torch": torch.__version__,
}


def conv() -> dict[str, torch.Tensor]:
    return nn.Conv2d(2, 4, 3).state_dict()


@pytest.mark.parametrize("old", [False, True], ids=["archive", "older"])
@pytest.mark.parametrize("kind", PLAIN)
def test_a_state_beside_plain_data_is_read_bit_for_bit(tmp_path: Path, kind: str, old: bool) -> None:
    state = conv()
    torch.save({"state_dict": state, "more": PLAIN[kind]}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    read = read_checkpoint(tmp_path / "a.pt")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_the_classes_that_torch_loads_by_itself_are_the_same_after_a_file_was_read(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": conv(), "more": PLAIN}, tmp_path / "a.pt")
    read_checkpoint(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(6, dtype=">i4").reshape(3, 2),
        np.arange(3, dtype=np.float16),
        np.array(3.5),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.zeros((0, 3)),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_of_numbers_are_entries_of_a_state(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    torch.save({"0.weight": torch.ones(1, 1, 3, 3), "x": array}, tmp_path / "a.pt")
    entry = read_checkpoint(tmp_path / "a.pt")["x"]
    np.testing.assert_array_equal(entry.numpy(), array)
    assert entry.numpy().dtype == array.dtype.newbyteorder("=")


def test_an_array_that_claims_more_values_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(1, 1, 3, 3), "x": np.arange(6.0)}, tmp_path / "a.pt")
    array = read_container(tmp_path / "a.pt", safetensors=False)["x"]
    assert isinstance(array, NumberArray)
    version, _, dtype, order, content = array._state
    array.__setstate__((version, (10**12,), dtype, order, content))
    with pytest.raises(ValueError, match="reshape"):
        array.tensor()


class Call:
    """Stored as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Quantity("x"), r"\S*Quantity"),
        (Quantity, r"\S*Quantity"),
        (Call(subprocess.Popen, "touch mark"), r"(subprocess|commands)\.Popen"),
        (Call(getattr, Stage, "TRAIN"), r"(builtins\.)?getattr"),
        (Call(operator.or_, 1, 2), r"_operator\.or_"),
        (Call(Stage, ["a list"]), r"\S*Stage"),
        (Call(Stage, "two", "values"), r"\S*Stage"),
        (nn.ReLU(), r"torch\.nn\.modules\.activation\.ReLU"),
        (np.random.default_rng(0), r"numpy\.random\.\S+"),
        (torch.optim.SGD([torch.ones(1)], 0.1), r"torch\.optim\.sgd\.SGD"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("old", [False, True], ids=["archive", "older"])
def test_what_is_not_plain_data_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, name: str, old: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": conv(), "more": content}, "a.pt", _use_new_zipfile_serialization=not old)
    calls = Quantity.calls
    with pytest.raises(
        FsclError, match=rf"a\.pt: holds {name}, which is not loaded, .*; save only the state, with torch\.save"
    ):
        read_checkpoint(Path("a.pt"))
    assert Quantity.calls == calls
    assert not Path("mark").exists()


def test_an_enumeration_of_a_module_that_is_not_at_hand_is_read_without_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_stages.py").write_text(
        "import enum, pathlib\n"
        "pathlib.Path(__file__).with_name('mark').touch()\n"
        "class Stage(enum.Enum):\n    TRAIN = 'train'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_stages

    torch.save({"state_dict": conv(), "stage": my_stages.Stage.TRAIN}, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "my_stages")
    (tmp_path / "mark").unlink()
    assert len(read_checkpoint(tmp_path / "a.pt")) == 2
    assert "my_stages" not in sys.modules
    assert not (tmp_path / "mark").exists()


def test_a_module_is_not_asked_for_what_it_would_import_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    lazy = types.ModuleType("lazily")
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazily", lazy)
    assert is_enumeration("lazily.Stage")
    assert not asked


def test_a_program_of_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    torch.jit.trace(nn.Conv2d(1, 1, 3), torch.ones(1, 1, 4, 4)).save(tmp_path / "a.pt")
    with pytest.raises(FsclError, match=r"a\.pt: .*\(a program of TorchScript, which is code: save the state_dict\(\)"):
        read_checkpoint(tmp_path / "a.pt")


def older_format() -> bytes:
    buffer = io.BytesIO()
    content = {"state_dict": {**conv(), "array": np.arange(6.0).reshape(2, 3)}, "more": PLAIN}
    torch.save(content, buffer, _use_new_zipfile_serialization=False)  # which has no checksums
    return buffer.getvalue()


WHOLE = older_format()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_mutated_plain_data_is_read_or_refused_in_one_line(tmp_path: Path, rng: random.Random) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(mutate_bytes(WHOLE, rng))
    read, refusal = {}, ""
    try:
        read = read_checkpoint(file)
    except FsclError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert bool(read) != bool(refusal)
    assert all(isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in read.items())
