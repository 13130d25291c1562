"""How parts travel: bits of a number, and rows of a head."""

import math
import re

import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl.atoms.packing import Packing
from fscl.errors import FsclError
from fscl.federated import Atoms, FedAvg, FedPer, PFedGraph
from fscl.federated.method import Update, weighted_mean
from fscl.federated.wire import Wire, decoded, encoded


@pytest.mark.parametrize("size", [1e-30, 1e-7, 1.0, 1e9])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 1000])
def test_eight_bits_are_near_and_are_written_the_same_again(count: int, size: float) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 10.0 ** torch.arange(count).fmod(5)
    values *= size
    written = encoded(values, 8)
    assert written.nbytes == count + 2 * -(-count // 64)
    read = decoded(written)
    assert len(read) == count
    for block, near in zip(values.split(64), read.split(64), strict=True):
        half_a_step = 0.5 / 127 * float(block.abs().max()) if count else 0.0
        assert bool(((block - near).abs() <= half_a_step * (1 + 2**-8)).all())  # the scale may be rounded up
    assert (encoded(read, 8) == written).all()


def test_zeros_and_whole_numbers_are_exact_in_eight_bits() -> None:
    values = torch.tensor([0.0, 127.0, -127.0, 64.0, 1.0])
    assert torch.equal(decoded(encoded(values, 8)), values)
    assert torch.equal(decoded(encoded(torch.zeros(70), 8)), torch.zeros(70))


@pytest.mark.parametrize(("value", "bits"), [(1e9, 16), (math.inf, 16), (math.inf, 8), (math.nan, 8)])
def test_values_that_do_not_fit_are_refused(value: float, bits: int) -> None:
    with pytest.raises(FsclError, match=rf"values up to {re.escape(f'{value:.3g}')} do not fit into {bits} bits; 32"):
        encoded(torch.tensor([1.0, value]), bits)
    with pytest.raises(FsclError, match="bits is 4; known: 32, 16, 8"):
        encoded(torch.ones(2), 4)


def test_bytes_of_an_impossible_length_are_refused() -> None:
    for length in (1, 2, 67, 68):  # 66 is a whole block; the next block has two bytes of scale and one value at least
        with pytest.raises(FsclError, match=f"{length} bytes are no values of 8 bits"):
            decoded(torch.zeros(length, dtype=torch.uint8).numpy())


def head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_rows_of_classes_are_those_of_the_last_layer() -> None:
    packing = Packing(head())
    assert packing.rows([0, 2]).tolist() == [*[True] * 6, *[False] * 6, *[True] * 6, True, False, True]
    whole = Packing(head(), heads=["1", "3"]).rows([1])
    assert whole[: 6 * 4 + 6].all()  # the hidden layer belongs to all classes
    assert whole.sum() == 6 * 4 + 6 + 6 + 1
    for classes in ([], [3], [-1, 0]):
        with pytest.raises(FsclError, match=r"classes are .*; some of 0 to 2 would do"):
            packing.rows(classes)


def test_rows_that_do_not_travel_are_as_they_were() -> None:
    rows = torch.tensor([True, False, True, False])
    wire, base = Wire(rows=rows), {"head": torch.arange(4.0), "atoms": torch.zeros(2)}
    written = wire.write({"head": torch.tensor([5.0, 6.0, 7.0, 8.0]), "atoms": torch.ones(2)})
    assert written["head"].tolist() == [5, 7]
    read = wire.read({part: decoded(values) for part, values in written.items()}, base)
    assert read["head"].tolist() == [5, 1, 7, 3]
    assert read["atoms"].tolist() == [1, 1]
    with pytest.raises(FsclError, match=r"head has shape \(4,\); this network's has \(2,\)"):
        wire.read({"head": torch.zeros(4)}, base)


def test_a_row_is_averaged_over_the_clients_that_sent_it() -> None:
    def update(client: int, values: list[float], rows: list[bool], images: int) -> Update:
        return Update(client, {"head": torch.tensor(values)}, images, rows=torch.tensor(rows))

    updates = [
        update(0, [1.0, 5.0, 9.0], [True, True, False], 1),
        update(1, [3.0, 7.0, 9.0], [True, False, False], 3),
    ]
    # the first of both; the second of client 0 alone; the third is as it was sent
    assert weighted_mean(updates)["head"].tolist() == [2.5, 5.0, 9.0]


@pytest.mark.parametrize("make", [FedAvg, FedPer, lambda: Atoms(coefficient_rounds=1, also=["head"]), PFedGraph])
@pytest.mark.parametrize("bits", [16, 8])
def test_with_fewer_bits_a_round_costs_less_and_ends_near(small, make, bits) -> None:
    def method():
        chosen = make()
        chosen.bits = bits
        return chosen

    exact, coarse = small(make).run(3), small(method).run(3)
    assert all(not r.left_out for r in coarse.history.rounds)
    assert [r.answered for r in coarse.history.rounds] == [r.answered for r in exact.history.rounds]
    assert coarse.history.rounds[0].sent < exact.history.rounds[0].sent
    for part, values in exact.method.mean.items():
        moved = values - Packing(exact.method.model).packed(small(make).server().method.model)[part]
        error = coarse.method.mean[part] - values
        assert error.norm() < 0.2 * max(float(moved.norm()), 1e-3 * float(values.norm())), part
