"""A damaged bank file is refused, or loads as exactly the bank that was saved."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.hostile.banks import describe_anew, small_bank, the_same
from benchmarks.hostile.mutations import mutate_bytes, mutate_values
from fscl.atoms import AtomBank
from fscl.errors import FsclError

RANDOM = st.randoms(use_true_random=False)
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def bank():
    return small_bank()


@pytest.fixture(scope="module")
def saved(bank, tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    bank.save(path)
    return path


def loads_right_or_is_refused(path, bank):
    try:
        loaded = AtomBank.load(path)
        return the_same(loaded, bank)
    except FsclError as error:
        return "\n" not in str(error) and path.name in str(error)


@FUZZ
@given(rng=RANDOM)
def test_a_randomly_damaged_bank_file_is_refused_or_loads_unchanged(rng, bank, saved, tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(mutate_bytes(saved.read_bytes(), rng))
    assert loads_right_or_is_refused(path, bank)


@FUZZ
@given(rng=RANDOM)
def test_a_bank_file_with_a_random_description_is_refused_or_loads_a_working_bank(rng, saved, tmp_path):
    path = tmp_path / "described.safetensors"
    describe_anew(saved, path, lambda meta: mutate_values(meta, rng))
    try:
        loaded = AtomBank.load(path)
        for task in loaded.tasks:
            assert loaded.atoms(task)["0"].shape == (4, 3, 3)
            assert sum(loaded.memory(task).values()) > 0
        assert repr(loaded).startswith("AtomBank")
        loaded.save(tmp_path / "again.safetensors")
    except FsclError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_flipped_bit_in_any_tensor_of_a_bank_file_is_noticed(bank, saved, tmp_path):
    whole, path = saved.read_bytes(), tmp_path / "flipped.safetensors"
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    silent = []
    for at in range(start, len(whole), 11):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            loaded = AtomBank.load(path)
            [loaded.entries(task) for task in loaded.tasks]
            silent.append(at)
        except FsclError as error:
            assert "from what was saved" in str(error)  # noqa: PT017
    assert len(whole) - start > 1000
    assert not silent


def test_a_damaged_task_is_refused_and_the_other_tasks_can_be_read(bank, saved, tmp_path):
    whole, path = saved.read_bytes(), tmp_path / "bank.safetensors"
    needle = bank.entries(1)["0.atoms"].detach().numpy().tobytes()
    at = whole.index(needle)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    loaded = AtomBank.load(path)
    assert torch.equal(loaded.entries(2)["0.atoms"], bank.entries(2)["0.atoms"])
    with pytest.raises(FsclError, match=r"bank\.safetensors: damaged, task 1 differs from what was saved"):
        loaded.entries(1)
    with pytest.raises(FsclError, match=r"bank\.safetensors: damaged, '0\.atoms' of the tasks differs from what was"):
        AtomBank.load(path).similarity()
    with pytest.raises(FsclError, match="task 1 differs from what was saved"):
        AtomBank.load(path).save(tmp_path / "copy.safetensors")  # damage is not copied under a new digest


def test_a_bank_file_that_claims_more_bytes_than_it_has_is_refused_before_allocation(saved, tmp_path):
    whole, path = saved.read_bytes(), tmp_path / "bank.safetensors"
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    key = next(key for key in header if key.startswith("tasks/"))
    for shape, stop in (([10**6, 10**6], 4 * 10**12), ([1, 10**18], 4 * 10**18)):
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        with pytest.raises(FsclError, match="damaged or truncated"):
            AtomBank.load(path)
    path.write_bytes(struct.pack("<Q", 10**15) + whole[8:])
    with pytest.raises(FsclError, match="damaged or truncated"):
        AtomBank.load(path)
