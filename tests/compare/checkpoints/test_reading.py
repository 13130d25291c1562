"""Checkpoint files: what is read from them, and that harmful files are only refused."""

import io
import os
import pickle
import random
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from fscl.compare.checkpoints import Architecture, find_checkpoints, load_checkpoints, read_checkpoint
from fscl.errors import FsclError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[n], expected[n]) for n in expected)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def two(folder: Path, first: Any, second: Any) -> list[Path]:
    files = [folder / "a.pt", folder / "b.pt"]
    for file, found in zip(files, (first, second), strict=True):
        torch.save(found, file)
    return files


# reading a file


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: s,
        lambda s: OrderedDict(s),
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"momentum": torch.ones(3)}}}},
        lambda s: {"model": s, "optimizer": {}, "args": {"lr": 0.1}},
        lambda s: {"net": {"state_dict": s}, "loss": torch.tensor(1.0)},
        lambda s: {"my_own_name": s, "epoch": 3},
        lambda s: {**s, "epoch": 3, "note": "a state among other things"},
    ],
)
def test_read_checkpoint_finds_a_state_in_nested_mappings(tmp_path: Path, wrapped: Any) -> None:
    state = network().state_dict()
    torch.save(wrapped(state), tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.module."]
)
def test_load_checkpoints_removes_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    state = network().state_dict()
    wrapped = {"state_dict": {**prefixed(state, prefix), "criterion.scale": torch.ones(2)}, "epoch": 1}
    found = load_checkpoints(two(tmp_path, state, wrapped))
    assert found.layers == ["0", "2"]
    left = found.states["b"]
    assert same({n: t for n, t in left.items() if n != "criterion.scale"}, state)


WRAPPERS = [
    "net.",
    "backbone.",
    "encoder.",
    "module.",
    "model.net.",
    "module.model.",
    "student.module.body.",
    "0.",
    "1.",
]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_load_checkpoints_removes_a_prefix_that_all_entries_have(tmp_path: Path, prefix: str) -> None:
    state = network().state_dict()
    found = load_checkpoints(two(tmp_path, {"state_dict": prefixed(state, prefix)}, state))
    assert found.layers == ["0", "2"]
    assert all(same(each, state) for each in found.states.values())
    both = load_checkpoints(two(tmp_path, prefixed(state, prefix), prefixed(state, "another.")))
    assert both.layers == ["0", "2"]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_prefix_is_removed_for_an_architecture_even_with_other_entries(
    tmp_path: Path, mine: str, prefix: str
) -> None:
    state = Branches(5).state_dict()
    beside = {"criterion.weight": torch.ones(5), "ema.updates": torch.tensor(3)}
    files = two(tmp_path, {"state_dict": prefixed(state, prefix) | beside}, prefixed(state, prefix))
    found = load_checkpoints(files, Architecture(f"{mine}:Branches"))
    assert found.layers == ["stem", "body", "aside"]
    assert all(same(each, state) for each in found.states.values())


@pytest.mark.parametrize("first", [False, True])
def test_layers_whose_names_differ_only_by_a_prefix_are_compared(tmp_path: Path, first: bool) -> None:
    state = network().state_dict()
    wrapped = {**prefixed(state, "net."), "criterion.weight": torch.ones(3)}
    files = two(tmp_path, *((wrapped, state) if first else (state, wrapped)))
    found = load_checkpoints(files)
    assert found.layers == (["net.0", "net.2"] if first else ["0", "2"])
    a, b = found.states.values()
    assert all(torch.equal(a[f"{layer}.weight"], b[f"{layer}.weight"]) for layer in found.layers)


def test_different_layers_are_not_matched_by_removing_prefixes(tmp_path: Path) -> None:
    filters = torch.randn(4, 4, 3, 3)
    for one, other in (
        ({"a.0.weight": filters, "b.0.weight": filters}, {"0.weight": filters, "1.weight": filters}),
        (
            {"left.0.weight": filters, "left.1.weight": filters, "x": filters[0]},
            {"right.0.weight": filters} | {"y": filters},
        ),
        ({"0.weight": filters}, {"2.weight": filters}),
        ({"net.0.weight": filters, "net.1.weight": filters}, {"net.0.weight": filters, "net.2.weight": filters}),
    ):
        with pytest.raises(
            FsclError, match=r"layer '.*' has .* networks of one architecture can be compared|no filters"
        ):
            load_checkpoints(two(tmp_path, one, other))


def test_an_entry_with_and_without_the_prefix_of_torch_compile_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    with pytest.raises(FsclError, match=r"has entries of torch\.compile \('_orig_mod\.'\) beside entries of the same"):
        load_checkpoints(two(tmp_path, state, {**state, **prefixed(state, "_orig_mod.")}))


def test_states_of_real_wrappers_are_read(tmp_path: Path) -> None:
    model = network()
    wrapped = [model, nn.DataParallel(model), AveragedModel(model)]
    for i, each in enumerate(wrapped):
        torch.save(each.state_dict(), tmp_path / f"{i}.pth")
    found = load_checkpoints([tmp_path])
    assert list(found.states) == ["0", "1", "2"]
    assert all(same(state, model.state_dict()) for state in found.states.values())


def test_a_prefix_that_only_some_filters_have_is_kept(tmp_path: Path) -> None:
    state = {"model.0.weight": torch.randn(4, 1, 3, 3), "neck.weight": torch.randn(4, 4, 3, 3)}
    found = load_checkpoints(two(tmp_path, state, state))
    assert found.layers == ["model.0", "neck"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".PT"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_suffix_and_dtype_of_checkpoint_is_read(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    state = network().to(dtype).state_dict()
    file = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, file)
    assert same(read_checkpoint(file), state)


def test_the_old_format_of_torch_save_is_read(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"state_dict": state}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "a.pt"), state)


# paths and names


def test_names_of_checkpoints_are_as_short_as_possible_and_unique(tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        return list(find_checkpoints([tmp_path / file for file in files]))

    assert names("x/one.pt", "y/two.pth") == ["one", "two"]
    assert names("x/one.pt", "x/one.pth") == ["one.pt", "one.pth"]
    assert names("x/one.pt", "y/one.pt") == ["x/one", "y/one"]
    assert names("x/one.pt", "y/one.pt", "x/one.pth") == ["x/one.pt", "y/one.pt", "x/one.pth"]
    assert names("x/resnet.v1.pt", "x/resnet.v2.pt") == ["resnet.v1", "resnet.v2"]
    assert names("x/best.pth.tar", "x/last.PTH.TAR") == ["best", "last"]


def test_a_folder_stands_for_its_checkpoints_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.pt", "a.safetensors", "c.CKPT", "d.pth.tar", "notes.txt", "run.json", "data.tar", "._b.pt"):
        (tmp_path / name).touch()
    (tmp_path / "deeper.pt").mkdir()
    assert list(find_checkpoints([tmp_path])) == ["a", "b", "c", "d"]


def test_unexpanded_patterns_of_paths_are_expanded(tmp_path: Path) -> None:
    for name in ("b.pt", "a.pt", "a[1].pt", "c.safetensors"):
        (tmp_path / name).touch()
    assert list(find_checkpoints([tmp_path / "*.pt"])) == ["a", "a[1]", "b"]
    assert list(find_checkpoints([tmp_path / "a[1].pt"])) == ["a[1]"]
    with pytest.raises(FsclError, match=r"\*\.bin: no such file or folder"):
        find_checkpoints([tmp_path / "*.bin"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x/a.pt", "x/none.pt"], r"x/none\.pt: no such file or folder"),
        (["x/a.pt", "x/notes.txt"], r"x/notes\.txt: unknown kind of checkpoint; known: \.pt, .*\.safetensors"),
        (["x/a.pt", "empty"], r"empty: no checkpoint files in this folder \(\.pt"),
        (["x/a.pt", "x/b.pt", "x/a.pt"], r"x/a\.pt: given twice"),
        (["x", "x/../x/b.pt"], r"b\.pt: given twice"),
        (["x/a.pt"], r"1 checkpoint to compare; it takes at least 2"),
    ],
)
def test_wrong_paths_of_checkpoints_are_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        torch.save(network().state_dict(), tmp_path / "x" / f"{name}.pt")
    (tmp_path / "x/notes.txt").touch()
    for skip in (False, True):  # skipping is for what is broken, not for what was mistyped
        with pytest.raises(FsclError, match=says):
            load_checkpoints([Path(a) for a in arguments], skip_broken=skip)


# files that cannot be used


class Evil:
    """A class whose pickle runs code when it is loaded."""

    def __init__(self, how: Any, *arguments: Any) -> None:
        self.how, self.arguments = how, arguments

    def __reduce__(self) -> Any:
        return self.how, self.arguments


def evil_files(folder: Path, mark: Path) -> dict[str, Path]:
    """Pickles each of which creates the file ``mark`` if its code runs."""
    touch = f"open({str(mark)!r}, 'w')"
    made = {
        "system": Evil(os.system, f"touch {mark}"),
        "exec": Evil(exec, touch),
        "eval": {"state_dict": Evil(eval, touch)},
        "open": {"state_dict": network().state_dict(), "epoch": Evil(open, str(mark), "w")},
    }
    files = {}
    for name, found in made.items():
        for form, write in (
            ("pickle", lambda f, p: p.write_bytes(pickle.dumps(f))),
            ("zip", lambda f, p: torch.save(f, p)),
            ("old", lambda f, p: torch.save(f, p, _use_new_zipfile_serialization=False)),
        ):
            files[f"{name} {form}"] = folder / f"{name}_{form}.pt"
            write(found, files[f"{name} {form}"])
    return files


def test_no_code_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    files = evil_files(tmp_path, mark)
    assert len(files) == 12
    for name, file in files.items():
        with pytest.raises(FsclError, match=rf"{file.name}: ") as error:
            read_checkpoint(file)
        assert "\n" not in str(error.value)
        plain = name.endswith("pickle") and "or not a checkpoint of torch.save" in str(error.value)
        assert plain or says_what_it_holds(str(error.value)), (name, str(error.value))
        assert not mark.exists()
    pickle.loads(files["exec pickle"].read_bytes())  # it would have been
    assert mark.exists()


def says_what_it_holds(message: str) -> bool:
    return bool(
        re.search(r"holds \S*(system|exec|eval|open), which is not loaded, because that could run code", message)
    )


def test_checkpoints_of_whole_models_are_refused_with_the_class_name(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(FsclError, match=r"model\.pt: holds torch\.nn\.modules\.container\.Sequential, which is not"):
        read_checkpoint(tmp_path / "model.pt")
    torch.save({"model": network().state_dict(), "loss": nn.Softmax()}, tmp_path / "loss.pt")
    with pytest.raises(FsclError, match=r"holds torch\.nn\.\S+\.Softmax, which .*torch\.save\(model\.state_dict\(\)"):
        read_checkpoint(tmp_path / "loss.pt")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_gives_a_one_line_error(tmp_path: Path, share: float, old: bool) -> None:
    buffer = io.BytesIO()
    torch.save(network().state_dict(), buffer, _use_new_zipfile_serialization=not old)
    file = tmp_path / "cut.pt"
    file.write_bytes(buffer.getvalue()[: int(share * buffer.tell())])
    with pytest.raises(
        FsclError, match=r"cut\.pt: damaged or truncated, or not a checkpoint of torch\.save \("
    ) as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)
    save_file(network().state_dict(), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FsclError, match=r"cut\.safetensors: damaged or truncated, not readable as safetensors"):
        read_checkpoint(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "garbage", [b"hello", b"\0" * 999, b"\xff" * 4096, b"PK\3\4" * 99, random.Random(0).randbytes(5000), b"\x80\2"]
)
def test_a_checkpoint_of_garbage_is_named_in_the_error(tmp_path: Path, garbage: bytes) -> None:
    for suffix in (".pt", ".safetensors"):
        file = tmp_path / f"garbage{suffix}"
        file.write_bytes(garbage)
        with pytest.raises(FsclError, match=r"garbage\.\w+: damaged or truncated") as error:
            read_checkpoint(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html>\n<html>", "it begins with the text '<!DOCTYPE html>'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a pointer of Git LFS .*`git lfs pull`"),
        (pickle.dumps({"epoch": 3}), "a plain pickle, which is not loaded"),
    ],
)
def test_the_error_for_another_kind_of_file_says_what_it_begins_with(tmp_path: Path, content: bytes, says: str) -> None:
    for suffix in (".pt", ".safetensors"):
        file = tmp_path / f"a{suffix}"
        file.write_bytes(content)
        with pytest.raises(FsclError, match=rf"a{suffix}: damaged or truncated, .*\({says}") as error:
            read_checkpoint(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([1, 2], "not the state of a network, but list"),
        (torch.ones(3), "not the state of a network, but Tensor"),
        ({"epoch": 3, "lr": 0.1}, "not the state of a network, but dict with epoch, lr"),
        ({"state_dict": {"epoch": 3}}, "not the state of a network, but dict with state_dict"),
        ({}, "not the state of a network, but dict"),
    ],
)
def test_a_checkpoint_without_a_state_is_refused_with_its_content(tmp_path: Path, found: Any, says: str) -> None:
    torch.save(found, tmp_path / "a.pt")
    with pytest.raises(FsclError, match=rf"a\.pt: {says}"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_bank_file_is_refused_as_a_checkpoint(tmp_path: Path) -> None:
    save_file({"shared/a": torch.zeros(2)}, tmp_path / "bank.safetensors", {"format": "fscl.AtomBank"})
    with pytest.raises(FsclError, match=r"bank\.safetensors: an atom bank, not a checkpoint; see `fscl heatmap`"):
        read_checkpoint(tmp_path / "bank.safetensors")
    with pytest.raises(FsclError, match=r"nowhere\.pt: no such file"):
        read_checkpoint(tmp_path / "nowhere.pt")


def broken(tmp_path: Path) -> dict[str, str]:
    """Files that cannot be compared with ``network()``, and why."""
    state = network().state_dict()
    bad = state["0.weight"].clone()
    bad[0, 0, 0, 0] = np.nan
    made: dict[str, tuple[Any, str]] = {
        "narrow": (state | {"2.weight": torch.randn(4, 2, 3, 3)}, r"layer '2' has filters \(4, 2, 3, 3\) here and"),
        "shorter": ({k: v for k, v in state.items() if k != "2.weight"}, r"layer '2' has no filters here and filters"),
        "longer": (state | {"9.weight": torch.randn(4, 4, 3, 3)}, r"layer '9' has filters \(4, 4, 3, 3\) here and no"),
        "nan": (state | {"0.weight": bad}, r"the filters of layer '0' are not all finite"),
        "mlp": (nn.Linear(3, 3).state_dict(), r"no layers \(convolutions, or linear"),
        "pointwise": (nn.Conv2d(3, 3, 1).state_dict(), r"no layers \(convolutions, or linear"),
        "list": ([3], r"not the state of a network"),
    }
    for name, (found, _) in made.items():
        torch.save(found, tmp_path / f"{name}.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "nan.pt").read_bytes()[:-300])
    return {name: says for name, (_, says) in made.items()} | {"cut": "damaged or truncated"}


def test_unusable_files_are_an_error_or_are_left_out_with_skip_broken(tmp_path: Path) -> None:
    reasons = broken(tmp_path)
    for name in ("0first", "another", "zlast"):
        torch.save(network().state_dict(), tmp_path / f"{name}.pt")
    for name, says in reasons.items():
        files = [tmp_path / "0first.pt", tmp_path / f"{name}.pt"]
        with pytest.raises(FsclError, match=rf"{name}\.pt: {says}") as error:
            load_checkpoints(files)
        assert "\n" not in str(error.value)
        with pytest.raises(FsclError, match=rf"1 checkpoint to compare; it takes at least 2; .*{name}\.pt: {says}"):
            load_checkpoints(files, skip_broken=True)
    found = load_checkpoints([tmp_path], skip_broken=True)
    assert list(found.states) == list(found.files) == ["0first", "another", "zlast"]
    assert {p.stem for p in found.left_out} == set(reasons)
    assert all(str(p) not in reason for p, reason in found.left_out.items())
    with pytest.raises(FsclError, match=r"cut\.pt: damaged .*; --skip-broken goes on without it$"):
        load_checkpoints([tmp_path / f"{name}.pt" for name in ("0first", "another", "cut")])


def test_files_are_checked_against_the_layers_of_most_files(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 8, 3)).state_dict(), tmp_path / "a.pt")  # a stranger, and the first
    for name in "bcd":
        torch.save(network().state_dict(), tmp_path / f"{name}.pt")
    with pytest.raises(
        FsclError, match=r"a\.pt: layer '0' has filters \(8, 1, 3, 3\) here and .* in .*b\.pt; only networks"
    ):
        load_checkpoints([tmp_path])
    found = load_checkpoints([tmp_path], skip_broken=True)
    assert list(found.states) == ["b", "c", "d"]
    assert [p.name for p in found.left_out] == ["a.pt"]


def test_left_out_files_do_not_make_names_longer(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch.save(network().state_dict(), tmp_path / name)
    (tmp_path / "a.safetensors").write_text("nothing")
    found = load_checkpoints([tmp_path], skip_broken=True)
    assert found.files == {"a": tmp_path / "a.pt", "b": tmp_path / "b.pt"}


# checking against an architecture


class Branches(nn.Module):
    """A network that registers its layers in another order than the order of their names."""

    def __init__(self, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.body = nn.Conv2d(width, width, 3)
        self.aside = nn.Conv2d(width, width, 1)
        self.fc = nn.Linear(width, num_classes)


class WithoutClasses(Branches):
    def __init__(self) -> None:
        super().__init__()


SOME = 3


def headless() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))


def no_module(num_classes: int) -> str:
    return "a string"


def failing(num_classes: int) -> nn.Module:
    raise ZeroDivisionError("too\nbad")


def downloading(num_classes: int, weights_backbone: Any = "yes", pretrained: bool = True) -> nn.Module:
    assert weights_backbone is None
    assert pretrained is False
    return Branches(num_classes)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> str:
    """This file as an importable module."""
    import sys

    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    return "my_networks"


def test_an_architecture_orders_the_layers_and_accepts_heads_of_any_size(tmp_path: Path, mine: str) -> None:
    for name, classes in (("a", 3), ("b", 7)):
        save_file(Branches(classes).state_dict(), tmp_path / f"{name}.safetensors")
    assert load_checkpoints([tmp_path]).layers == ["aside", "body", "stem"]  # as safetensors keeps them
    architecture = Architecture(f"{mine}:Branches")
    found = load_checkpoints([tmp_path], architecture)
    assert found.layers == ["stem", "body", "aside"]
    assert architecture.network.fc.out_features == 3
    for builder in ("WithoutClasses", "downloading"):
        assert load_checkpoints([tmp_path], Architecture(f"{mine}:{builder}")).layers == ["stem", "body", "aside"]


def test_prefixed_and_old_states_fit_an_architecture(tmp_path: Path, mine: str) -> None:
    state = Branches(5).state_dict()
    files = two(tmp_path, state, {"state_dict": {**prefixed(state, "model."), "loss.weight": torch.ones(5)}})
    found = load_checkpoints(files, Architecture(f"{mine}:Branches"))
    assert all(same(s, state) for s in found.states.values())
    from torchvision.models import squeezenet1_1

    nets = [squeezenet1_1(num_classes=n).state_dict() for n in (4, 4)]  # its head is a convolution
    assert len(load_checkpoints(two(tmp_path, *nets), Architecture("torchvision:squeezenet1_1")).layers) == 9 + 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "aside.bias"}, r"entry 'aside\.bias' \(4,\) of .* is missing"),
        (
            lambda s: s | {"aside.weight": torch.ones(4, 2, 1, 1)},
            r"entry 'aside\.weight' has shape \(4, 2, 1, 1\), and \(4, 4",
        ),
        (
            lambda s: s | {"body.weight": torch.ones(4, 4, 5, 5)},
            r"entry 'body\.weight' has shape \(4, 4, 5, 5\), and \(4, 4, 3",
        ),
        (
            lambda s: s | {"more.weight": torch.ones(2)},
            r"entry 'more\.weight' \(2,\) is not an entry of my_networks:Branches",
        ),
    ],
)
def test_states_that_do_not_fit_an_architecture_are_refused_with_a_reason(
    tmp_path: Path, mine: str, change: Any, says: str
) -> None:
    state = Branches(5).state_dict()
    with pytest.raises(FsclError, match=rf"b\.pt: {says}"):
        load_checkpoints(two(tmp_path, state, change(state)), Architecture(f"{mine}:Branches"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:resnet19", r"unknown network 'torchvision:resnet19'; known: convnet, torchvision:NAME"),
        ("resnet19", r"unknown network 'torchvision:resnet19'; known: convnet, torchvision:NAME"),
        ("my_networks:no_module", r"network 'my_networks:no_module' is str; a torch\.nn\.Module would do"),
        ("my_networks:failing", r"network 'my_networks:failing' cannot be built with .*: ZeroDivisionError: too"),
        ("my_networks:nothing", r"unknown network 'my_networks:nothing'; my_networks has no callables"),
        (
            "my_networks:SOME",
            r"network 'my_networks:SOME' is int; a callable that returns a torch\.nn\.Module would do",
        ),
        ("torchvision:resnet", r"network 'torchvision:resnet' is module; a callable"),
        (
            "no_such.networks:build",
            r"unknown network 'no_such\.networks:build': there is no module 'no_such' in the cur",
        ),
        ("pytorchcv:resnet99", r"unknown network 'pytorchcv:resnet99'; pytorchcv has none"),
        ("torchvision:resnet18", r"a\.pt: entry 'conv1\.weight' \(64, 3, 7, 7\) of torchvision:resnet18 is missing"),
        ("my_networks:headless", r"a\.pt: entry '0\.weight' \(4, 3, 3, 3\) of my_networks:headless is missing"),
    ],
)
def test_unusable_architectures_are_refused_with_a_reason(tmp_path: Path, mine: str, name: str, says: str) -> None:
    files = two(tmp_path, Branches().state_dict(), Branches().state_dict())
    with pytest.raises(FsclError, match=says):
        load_checkpoints(files, Architecture(name))


def normed() -> nn.Module:
    """A network with weights that a state holds in parts; two of them only the network can compute."""
    parts = nn.utils.parametrizations
    return nn.Sequential(
        parts.weight_norm(nn.Conv2d(3, 4, 3)), parts.spectral_norm(nn.Conv2d(4, 4, 3)),
        parts.orthogonal(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3), Sharper(4, 4, 3), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Sharper(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def plain() -> nn.Module:
    convs = [nn.Conv2d(3, 4, 3), *(nn.Conv2d(4, 4, 3) for _ in range(4))]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(4, 3))


def test_an_architecture_computes_parametrised_weights_of_a_state(tmp_path: Path, mine: str) -> None:
    models = [normed().eval() for _ in range(2)]
    found = load_checkpoints(two(tmp_path, *(m.state_dict() for m in models)), Architecture(f"{mine}:normed"))
    assert found.layers == ["0", "1", "2", "3"]
    assert {layer: why.reason for layer, why in found.not_compared.items()} == {
        "4": "Sharper overrides nn.Conv2d's forward"
    }
    from fscl.compare import joint_decompose

    joint = joint_decompose(found.states, 18, found.layers)
    for layer in found.layers:
        for filters, model in zip(joint.filters[layer].filters, models, strict=True):
            torch.testing.assert_close(filters, model.get_submodule(layer).weight.detach())
    without = load_checkpoints(two(tmp_path, *(m.state_dict() for m in models)))
    assert without.layers == ["0", "1", "3", "4"]
    assert list(without.not_compared) == ["2"]


def test_pruned_states_fit_the_architecture_without_pruning(tmp_path: Path, mine: str) -> None:
    pruned = plain()
    for layer in (0, 3, 6):
        prune.l1_unstructured(pruned[layer], "weight", 0.5)
    files = two(tmp_path, pruned.state_dict(), plain().state_dict())
    found = load_checkpoints(files, Architecture(f"{mine}:plain"))
    assert found.layers == ["0", "1", "2", "3", "4"]
    assert torch.equal(found.states["a"]["3.weight"], pruned[3].weight)


def test_a_layer_that_cannot_be_compared_in_one_file_is_named_with_the_reason(tmp_path: Path) -> None:
    state = network().state_dict()
    odd = {**state, "2.weight": state["2.weight"].to(torch.complex64)}
    with pytest.raises(
        FsclError, match=r"b\.pt: layer '2' has no filters here \(complex64 values, which are not real\)"
    ):
        load_checkpoints(two(tmp_path, state, odd))
    found = load_checkpoints(two(tmp_path, odd, odd))
    assert found.layers == ["0"]
    assert found.not_compared["2"].values == 144


def test_an_architecture_can_be_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "parts_of_mine.py").write_text("from torch import nn\n")
    (tmp_path / "own_nets/of_mine.py").write_text(
        "def build(num_classes):\n"
        "    from parts_of_mine import nn\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    state = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 5)).state_dict()
    for name in ("own_nets.of_mine:build", "own_nets/of_mine.py:build"):
        assert Architecture(name).misfit(state) == ""
    for module, text, says in (
        ("in_pieces", "def build(:", "in_pieces cannot be imported: SyntaxError"),
        (
            "needing",
            "import no_such_thing",
            "needing cannot be imported: ModuleNotFoundError: No module named 'no_such_t",
        ),
        ("empty_one", "", "unknown network 'empty_one:build'; empty_one has no callables"),
    ):
        (tmp_path / f"{module}.py").write_text(text)
        with pytest.raises(FsclError, match=says):
            Architecture(f"{module}:build")
    assert sys.path == before
    for module in ("own_nets", "own_nets.of_mine", "parts_of_mine", "empty_one"):
        sys.modules.pop(module)


def test_an_architecture_is_built_with_the_classes_and_channels_of_the_first_state() -> None:
    with pytest.raises(FsclError, match="convnet: not built yet"):
        Architecture("convnet").layers  # noqa: B018
    from fscl.continual import ConvNet

    convnet = Architecture("convnet")
    assert convnet.misfit(ConvNet(1, 7).state_dict()) == ""
    assert convnet.network.classifier.out_features == 7
    assert convnet.layers == [f"features.{i}" for i in (0, 4, 8, 12)]
    from pytorchcv.model_provider import get_model

    for name, classes in (("resnet20_cifar10", 10), ("resnet18_wd4", 4)):  # the first is for no other number
        cv = Architecture(f"pytorchcv:{name}")
        assert cv.misfit(get_model(name, num_classes=classes, in_channels=1).state_dict()) == ""
    other = get_model("resnet20_cifar10").state_dict() | {
        "output.weight": torch.ones(4, 64),
        "output.bias": torch.ones(4),
    }
    assert Architecture("pytorchcv:resnet20_cifar10").misfit(other) == ""
    from avalanche.models import SlimResNet18

    assert Architecture("avalanche:SlimResNet18").misfit(SlimResNet18(6).state_dict()) == ""
