import copy
import io
import json
import os
import pickle
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fscl.atoms import AtomBank, bank_file, decompose, freeze_coefficients
from fscl.atoms.tasks import TaskFile
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
    """Writes the file again with other metadata."""
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    save_file(load_file(path), path, {**header, **metadata})


def one_line(error):
    return "\n" not in str(error.value)


def test_a_loaded_bank_equals_the_saved_bank(three_tasks, saved):
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


def test_another_process_restores_every_task_bit_for_bit(three_tasks, saved, tmp_path):
    said = tmp_path / "said.pt"
    torch.save({"x": three_tasks.x, "outputs": three_tasks.outputs}, said)
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, os.path.dirname(__file__), str(saved), str(said)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "all the same", done.stderr


def test_a_bank_file_is_plain_safetensors(three_tasks, saved):
    tensors = load_file(saved)
    assert torch.equal(tensors["tasks/second.atoms"], three_tasks.bank.stack("second"))
    assert torch.equal(tensors["shared/first.coefficients"], three_tasks.bank.shared["first.coefficients"])
    kept = sum(three_tasks.bank.memory().values()) * 3 + sum(three_tasks.bank.shared_memory().values())
    assert sum(t.nbytes for t in tensors.values()) == kept
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["format"] == "fscl.AtomBank"
        json.loads(file.metadata()["bank"])
    assert saved.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert os.listdir(saved.parent) == [saved.name]


def test_an_empty_bank_can_be_saved_and_loaded(three_tasks, tmp_path):
    AtomBank(three_tasks.model).save(tmp_path / "new" / "folder" / "bank.safetensors")
    assert AtomBank.load(tmp_path / "new" / "folder" / "bank.safetensors").tasks == []


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 200, 0.3, 0.5, 0.9, -1])
def test_a_truncated_bank_file_gives_a_one_line_error(saved, cut):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    with pytest.raises(FsclError, match=r"bank\.safetensors: damaged or truncated, not readable as a bank") as error:
        AtomBank.load(saved)
    assert one_line(error)


@pytest.mark.parametrize(
    "garbage", [b"not a bank", b"\0" * 4096, b"\xff" * 4096, random.Random(0).randbytes(1 << 14), b"PK\3\4" * 99]
)
def test_a_bank_file_of_garbage_is_named_in_the_error(tmp_path, garbage):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(garbage)
    with pytest.raises(FsclError, match="damaged or truncated") as error:
        AtomBank.load(path)
    assert one_line(error)


def test_loading_another_file_missing_file_or_format_as_a_bank_says_so(saved, tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, plain)
    with pytest.raises(FsclError, match=r"plain\.safetensors: a safetensors file, but not an atom bank"):
        AtomBank.load(plain)
    with pytest.raises(FsclError, match=r"nowhere: no such bank"):
        AtomBank.load(tmp_path / "nowhere")
    with pytest.raises(FsclError, match="no such bank"):
        AtomBank.load(tmp_path)
    for version in ("1", "4", "x"):
        rewritten(saved, version=version)
        with pytest.raises(FsclError, match=f"bank format {version}, and this fscl reads format 3"):
            AtomBank.load(saved)


SENSELESS = '{"tasks": [1], "names": ["a"], "layers": [], "kinds": {}, "fingerprint": "", "stacks": {"tasks/no": {}}}'


@pytest.mark.parametrize("meta", ["", "[]", "{}", "3", '{"tasks": [1], "layers": []}', SENSELESS])
def test_a_bank_file_with_invalid_metadata_is_reported_as_damaged(saved, meta):
    rewritten(saved, bank=meta)
    with pytest.raises(FsclError, match="damaged or truncated") as error:
        AtomBank.load(saved)
    assert one_line(error)


def test_coefficients_that_differ_from_the_fingerprint_are_reported_as_damage(saved):
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
def test_a_failed_save_leaves_the_old_bank_file_whole(three_tasks, saved, monkeypatch, failure):
    before = saved.read_bytes()

    def fails(tensors, path, header):
        path.write_bytes(b"half a ba")
        raise failure

    monkeypatch.setattr(bank_file, "save_file", fails)
    three_tasks.bank.store(three_tasks.model, 8)
    with pytest.raises(FsclError, match=r"cannot write .*bank\.safetensors: .*No space left on device") as error:
        three_tasks.bank.save(saved)
    assert one_line(error)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_save_on_a_full_disk_leaves_the_old_bank_file_whole(three_tasks, tmp_path):
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


def test_saving_a_bank_into_an_unwritable_folder_names_it(three_tasks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FsclError, match=r"cannot write .*file/bank\.safetensors"):
        three_tasks.bank.save(tmp_path / "file" / "bank.safetensors")


@pytest.fixture
def bytes_read(monkeypatch):
    """The numbers of bytes of all reads so far."""
    read, original = [], TaskFile.read_into

    def counting(self, data, start):
        read.append(len(data))
        original(self, data, start)

    monkeypatch.setattr(TaskFile, "read_into", counting)
    return read


def test_a_task_of_a_loaded_bank_is_read_once_when_it_is_first_used(three_tasks, saved, bytes_read):
    bank = AtomBank.load(saved)
    bytes_read.clear()  # the description
    assert (len(bank), bank.names, bank.memory(), repr(bank)) == (
        3,
        three_tasks.bank.names,
        three_tasks.bank.memory(),
        repr(three_tasks.bank),
    )
    assert bytes_read == []
    assert bank.gram("first").shape == (8, 8)
    assert torch.equal(bank.stack("second"), three_tasks.bank.stack("second"))
    assert sum(bytes_read) == bank.stack("second").nbytes
    bytes_read.clear()
    with bank.swapped(three_tasks.model, 1):
        assert torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[1])
    assert sum(bytes_read) == sum(bank.memory(1).values())
    for call in (bank.entries, bank.atoms):
        call(1)
    assert sum(bytes_read) == sum(bank.memory(1).values())


def test_a_partly_read_bank_equals_the_saved_bank(three_tasks, saved):
    bank, original = AtomBank.load(saved), three_tasks.bank
    bank.entries(1)
    three_tasks.become_another()
    for each in (bank, original):
        each.store(three_tasks.model, 0)
        each.store(three_tasks.model, 5, "five")
    assert torch.equal(bank.stack("first"), original.stack("first"))
    assert torch.equal(bank.similarity(), original.similarity())
    assert bank.nearest(5) == original.nearest(5)
    merged = bank.merge(AtomBank.load(saved))
    assert torch.equal(merged.stack("second")[4:], AtomBank.load(saved).stack("second"))
    assert bank.to("meta").stack("first").device.type == "meta"
    assert torch.equal(bank.to("cpu").stack("first"), original.stack("first"))


def through_torch(bank):
    torch.save(bank, file := io.BytesIO())
    file.seek(0)
    with torch.serialization.safe_globals([AtomBank]):
        return torch.load(file, weights_only=True)


COPIES = [copy.deepcopy, copy.copy, lambda bank: pickle.loads(pickle.dumps(bank)), through_torch]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "copy", "pickle", "torch"])
def test_copies_and_pickles_of_a_loaded_bank_work_without_its_file(three_tasks, saved, copied):
    bank = copied(AtomBank.load(saved))
    saved.write_bytes(b"gone")
    assert torch.equal(bank.similarity(), three_tasks.bank.similarity())
    for task in bank.tasks:
        bank.restore(three_tasks.model, task)
        assert torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[task])


def test_a_loaded_bank_can_be_saved_over_its_own_file(three_tasks, saved):
    bank = AtomBank.load(saved)
    three_tasks.become_another()
    bank.store(three_tasks.model, 3)
    said = three_tasks.say(three_tasks.model)
    bank.save(saved)
    bank.save(saved)
    for each in (bank, AtomBank.load(saved)):
        for task, outputs in enumerate([*three_tasks.outputs, said]):
            each.restore(three_tasks.model, task)
            assert torch.equal(three_tasks.say(three_tasks.model), outputs)


def test_tasks_can_be_read_after_the_bank_file_was_deleted(three_tasks, saved):
    bank = AtomBank.load(saved)
    saved.unlink()
    assert torch.equal(bank.stack("first"), three_tasks.bank.stack("first"))
    bank.restore(three_tasks.model, 1)
    assert torch.equal(three_tasks.say(three_tasks.model), three_tasks.outputs[1])


class Broken:
    """A file on a failing disk: every call fails, or only those after its size was read."""

    def __init__(self, file, works):
        self.file, self.works = file, works

    def fileno(self):
        self.works -= 1
        if self.works >= 0:
            return self.file.fileno()
        raise OSError(5, "Input/output error")

    def close(self):
        self.file.close()


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda whole: whole[:-4] + b"\0\0\0\1"])
def test_a_bank_file_written_to_after_loading_is_refused_in_one_line(three_tasks, saved, damage):
    bank = AtomBank.load(saved)
    bank.entries(0)
    time.sleep(0.02)  # file times are coarse
    with open(saved, "r+b") as file:
        whole = damage(file.read())
        file.seek(0)
        file.write(whole)
        file.truncate()
    for call in (lambda: bank.entries(1), lambda: bank.stack("first"), lambda: bank.restore(three_tasks.model, 2)):
        with pytest.raises(
            FsclError, match=r"bank\.safetensors: written to since it was loaded; load it again"
        ) as error:
            call()
        assert one_line(error)
    assert bank.entries(0).keys() == three_tasks.bank.entries(0).keys()


@pytest.mark.parametrize("works", [0, 1])
@pytest.mark.parametrize("call", [lambda bank: bank.entries(0), lambda bank: bank.stack("first")])
def test_a_failing_disk_gives_a_one_line_error_when_a_task_is_read(saved, works, call):
    bank = AtomBank.load(saved)
    file = bank._tasks[0].file
    file._file = Broken(file._file, works)
    with pytest.raises(FsclError, match=r"bank\.safetensors: cannot be read \(Input/output error\)"):
        call(bank)


def test_tasks_whose_entries_differ_in_name_and_shape_survive_saving(tmp_path):
    model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))).model
    freeze_coefficients(model)
    bank = AtomBank(model)
    for task, width in enumerate((2, 5, 2, 3)):
        model[3] = nn.Linear(16, width, bias=task != 2)
        nn.init.normal_(model[0].atoms)
        bank.store(model, task, head=["3"])
    bank.save(tmp_path / "bank.safetensors")
    loaded = AtomBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(loaded.stack("0"), bank.stack("0"))
    for task in bank.tasks:
        ours, theirs = loaded.entries(task), bank.entries(task)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name])
            assert (ours[name].dtype, type(ours[name])) == (theirs[name].dtype, type(theirs[name]))
        assert loaded.memory(task) == bank.memory(task)
    assert loaded.memory() == bank.memory()


def test_a_bank_of_3000_tasks_loads_in_a_fifth_of_a_second(tmp_path):
    model = decompose(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2))).model
    freeze_coefficients(model)
    bank = AtomBank(model)
    for task in range(3000):
        bank.store(model, task)
    with torch.no_grad():
        model[0].atoms.add_(1)
    bank.store(model, 1234)
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    values = sum(bank.memory().values()) * len(bank) + sum(bank.shared_memory().values())
    assert os.path.getsize(path) < values + 100_000  # no table of entries by task
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        loaded = AtomBank.load(path)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.2
    assert torch.equal(loaded.stack("0"), bank.stack("0"))
    assert torch.equal(loaded.entries(1234)["0.atoms"], model[0].atoms)
    assert loaded.tasks == list(range(3000))


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
