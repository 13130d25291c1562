import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fscl.atoms import AtomBank
from fscl.atoms import bank as bank_module
from fscl.errors import FsclError

IN_ANOTHER_PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from conftest import Tasks
from fscl.atoms import AtomBank
torch.set_num_threads(1)
torch.manual_seed(99)
bank, model = AtomBank.load(sys.argv[2]), Tasks.fresh()
said = torch.load(sys.argv[3], weights_only=True)
for task in (2, 0, 1):
    bank.restore(model, task)
    assert torch.equal(model.eval()(said["x"]), said["outputs"][task]), task
print("all the same")
"""


@pytest.fixture
def saved(three_tasks, tmp_path):
    path = tmp_path / "bank.safetensors"
    three_tasks.bank.save(path)
    return path


def rewritten(path, **metadata):
    """The same file with other metadata."""
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    save_file(load_file(path), path, {**header, **metadata})


def one_line(error):
    return "\n" not in str(error.value)


def test_a_bank_comes_back_as_it_was(three_tasks, saved):
    bank, loaded = three_tasks.bank, AtomBank.load(saved)
    assert (loaded.tasks, loaded.names, loaded.layers) == (bank.tasks, bank.names, bank.layers)
    assert loaded.fingerprint == bank.fingerprint
    assert loaded.memory() == bank.memory()
    assert loaded.shared_memory() == bank.shared_memory()
    assert torch.equal(loaded.similarity(), bank.similarity())
    model = three_tasks.fresh()
    for task in (1, 2, 0):
        loaded.restore(model, task)
        assert torch.equal(three_tasks.say(model), three_tasks.outputs[task])
    three_tasks.become_another()
    loaded.restore(three_tasks.model, 0)
    loaded.store(three_tasks.model, 3)  # and can be added to
    assert loaded.merge(bank).tasks == [0, 1, 2, 3, 4, 5, 6]


def test_every_task_is_the_same_to_the_bit_in_another_process(three_tasks, saved, tmp_path):
    said = tmp_path / "said.pt"
    torch.save({"x": three_tasks.x, "outputs": three_tasks.outputs}, said)
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, os.path.dirname(__file__), str(saved), str(said)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "all the same", done.stderr


def test_the_file_is_plain_safetensors(three_tasks, saved):
    tensors = load_file(saved)
    assert torch.equal(tensors["task/1/second.atoms"], three_tasks.bank.atoms(1)["second"])
    assert torch.equal(tensors["shared/first.coefficients"], three_tasks.bank.shared["first.coefficients"])
    kept = sum(three_tasks.bank.memory().values()) * 3 + sum(three_tasks.bank.shared_memory().values())
    assert sum(t.nbytes for t in tensors.values()) == kept
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["format"] == "fscl.AtomBank"
        json.loads(file.metadata()["bank"])
    assert saved.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert os.listdir(saved.parent) == [saved.name]


def test_an_empty_bank_can_be_saved(three_tasks, tmp_path):
    AtomBank(three_tasks.model).save(tmp_path / "new" / "folder" / "bank.safetensors")
    assert AtomBank.load(tmp_path / "new" / "folder" / "bank.safetensors").tasks == []


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 200, 0.3, 0.5, 0.9, -1])
def test_a_truncated_file_is_one_line_of_error(saved, cut):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    with pytest.raises(FsclError, match=r"bank\.safetensors: damaged or truncated, not readable as a bank") as error:
        AtomBank.load(saved)
    assert one_line(error)


@pytest.mark.parametrize("garbage", [b"not a bank", b"\0" * 4096, b"\xff" * 4096, os.urandom(1 << 14), b"PK\3\4" * 99])
def test_so_is_a_file_of_garbage(tmp_path, garbage):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(garbage)
    with pytest.raises(FsclError, match="damaged or truncated") as error:
        AtomBank.load(path)
    assert one_line(error)


def test_other_files_are_told_apart(saved, tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, plain)
    with pytest.raises(FsclError, match=r"plain\.safetensors: a safetensors file, but not an atom bank"):
        AtomBank.load(plain)
    with pytest.raises(FsclError, match=r"nowhere: no such bank"):
        AtomBank.load(tmp_path / "nowhere")
    with pytest.raises(FsclError, match="no such bank"):
        AtomBank.load(tmp_path)
    rewritten(saved, version="2")
    with pytest.raises(FsclError, match="bank format 2, and this fscl reads up to 1; upgrade fscl"):
        AtomBank.load(saved)


@pytest.mark.parametrize("meta", ["", "[]", "{}", "3", '{"tasks": [1], "layers": [], "kinds": {}, "fingerprint": ""}'])
def test_metadata_that_makes_no_sense_is_damage(saved, meta):
    rewritten(saved, bank=meta)
    with pytest.raises(FsclError, match="damaged or truncated") as error:
        AtomBank.load(saved)
    assert one_line(error)


def test_coefficients_that_are_not_those_of_the_fingerprint_are_damage(saved):
    with safe_open(saved, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(saved)
    tensors["shared/first.coefficients"][0, 0, 0] += 1
    save_file(tensors, saved, header)
    with pytest.raises(FsclError, match="damaged or truncated"):
        AtomBank.load(saved)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), SafetensorError("Error: No space left on device (os error 28)")]
)
def test_a_full_disk_leaves_the_old_file_whole(three_tasks, saved, monkeypatch, failure):
    before = saved.read_bytes()

    def fails(tensors, path, header):
        path.write_bytes(b"half a ba")
        raise failure

    monkeypatch.setattr(bank_module, "save_file", fails)
    three_tasks.bank.store(three_tasks.model, 8)
    with pytest.raises(FsclError, match=r"cannot write .*bank\.safetensors: .*No space left on device") as error:
        three_tasks.bank.save(saved)
    assert one_line(error)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_disk_that_is_really_full_does_too(three_tasks, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=10)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    try:
        path = disk / "bank.safetensors"
        three_tasks.bank.save(path)
        before = path.read_bytes()
        for task in range(3, 40):
            three_tasks.bank.store(three_tasks.model, task)
        with pytest.raises(FsclError, match="cannot write"):
            three_tasks.bank.save(path)
        assert path.read_bytes() == before
        assert os.listdir(disk) == [path.name]
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=10)


def test_a_folder_that_cannot_be_written_is_named(three_tasks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FsclError, match=r"cannot write .*file/bank\.safetensors"):
        three_tasks.bank.save(tmp_path / "file" / "bank.safetensors")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
