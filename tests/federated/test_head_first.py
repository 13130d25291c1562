"""Rounds of the head alone, before a method begins."""

import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from fscl.errors import FsclError
from fscl.federated import Atoms, FedAvg, FedRep, HeadFirst


def test_in_its_rounds_only_the_head_travels_and_changes(small) -> None:
    federation = small(lambda: HeadFirst(FedAvg(), 2))
    start = dict(federation.server().method.mean)
    server = federation.run(2)
    for _, _, brought, returned in federation.sent():
        assert set(brought) == set(returned) == {"head"}
    for part, values in server.method.mean.items():
        assert torch.equal(values, start[part]) == (part != "head"), part


def test_afterwards_the_method_goes_on_as_if_it_began(small) -> None:
    federation = small(lambda: HeadFirst(Atoms(coefficient_rounds=1, also=["head"]), 1))
    server = federation.run(3)
    assert all(r.answered == [0, 1, 2] for r in server.history.rounds)
    travelled = {round: set(returned) for round, _, _, returned in federation.sent()}
    assert travelled[1] == {"head"}
    assert "shared" in travelled[2]
    assert "shared" not in travelled[3]
    assert sorted(server.method.bank().tasks) == [0, 1, 2]
    assert set(server.method.groups()) == {0, 1, 2}
    assert server.method.compared() == [0, 1, 2]
    assert torch.equal(server.method.similarity(), server.method.method.similarity())


def test_it_goes_on_from_any_round(small, equal_parts) -> None:
    def make() -> HeadFirst:
        return HeadFirst(FedAvg(), 1)

    whole = small(make).run(3)
    federation = small(make)
    first = federation.run(1)
    again = federation.server()
    again.load_state_dict(first.state_dict())
    again.start(federation.grid, num_rounds=3)
    assert equal_parts(again.method.mean, whole.method.mean)


def test_a_method_that_keeps_heads_is_refused() -> None:
    with pytest.raises(FsclError, match="head_rounds is 3, but FedRep keeps heads at the clients"):
        HeadFirst(FedRep(), 3)
    with pytest.raises(FsclError, match="head_rounds is 0; it must be at least 1"):
        HeadFirst(FedAvg(), 0)
