"""Equal seeds give equal numbers, also if server or clients die in between."""

import copy

import pytest
import torch

pytest.importorskip("flwr", reason="fscl.federated needs Flower")


from fscl.federated import (
    Atoms,
    Ditto,
    FedAvg,
    FedPer,
    PFedGraph,
)


@pytest.mark.parametrize("in_folder", [False, True], ids=["context", "folder"])
def test_a_client_that_lost_what_it_kept_begins_anew(small, tmp_path, in_folder):
    federation = small(FedPer, folder=tmp_path if in_folder else None)
    server = federation.server()
    server.start(federation.grid, num_rounds=2)
    if in_folder:
        for file in (tmp_path / "client_0001").iterdir():
            file.unlink()
    else:
        del federation.grid._states[1]
    server.start(federation.grid, num_rounds=4)
    assert server.history.rounds[2].left_out == {1: "it had lost what it kept, and begins anew the next time"}
    assert server.history.rounds[2].answered == [0, 2]
    assert server.history.rounds[3].answered == [0, 1, 2]


@pytest.mark.parametrize("damage", ["one bit", "cut short", "no bytes", "another client's", "another round's"])
def test_a_client_with_a_damaged_file_begins_anew(small, tmp_path, damage):
    """Its round is left out by name, and no mean ever holds what was damaged."""
    federation = small(FedPer, folder=tmp_path)
    server = federation.server()
    server.start(federation.grid, num_rounds=2)
    file = tmp_path / "client_0001/round_000002.safetensors"
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    damaged = {
        "one bit": bytes(content),
        "cut short": bytes(content[:-40]),
        "no bytes": b"",
        "another client's": (tmp_path / "client_0000" / file.name).read_bytes(),
        "another round's": file.with_stem("round_000001").read_bytes(),
    }
    file.write_bytes(damaged[damage])
    server.start(federation.grid, num_rounds=4)
    assert server.history.rounds[2].left_out == {1: "it had lost what it kept, and begins anew the next time"}
    assert server.history.rounds[3].answered == [0, 1, 2]


def test_a_client_that_lost_the_frozen_coefficients_receives_them_again(small):
    federation = small(lambda: Atoms(coefficient_rounds=1))
    server = federation.server()
    server.start(federation.grid, num_rounds=3)
    del federation.grid._states[1]
    server.start(federation.grid, num_rounds=6)
    assert [list(r.left_out) for r in server.history.rounds] == [[], [], [], [1], [], []]
    received = {(round, client) for round, client, brought, _ in federation.sent() if "shared" in brought and round > 1}
    assert received == {(2, 0), (2, 1), (2, 2), (5, 1)}


def test_files_of_an_earlier_federation_in_the_folder_do_no_harm(small, network, tmp_path, equal_parts):
    small(FedPer, folder=tmp_path, start=lambda: network(7)).run(5)
    again = small(FedPer, folder=tmp_path).run(3)
    assert [r.left_out for r in again.history.rounds] == [{}, {}, {}]
    assert equal_parts(again.method.mean, small(FedPer).run(3).method.mean)


def flat(history):
    """A history without what a clock or a header decides."""
    state = history.state_dict()
    for current in state["rounds"]:
        del current["seconds"], current["sent"], current["received"]
    for evaluation in state["evaluations"]:
        del evaluation["seconds"]
    return state


def test_equal_seeds_give_equal_numbers_and_other_seeds_other_clients(small, equal_parts):
    first, again = (small(FedAvg, clients=4).run(3, fraction=0.5, seed=1, evaluate_every=1) for _ in range(2))
    assert flat(first.history) == flat(again.history)
    assert equal_parts(first.method.mean, again.method.mean)
    other = small(FedAvg, clients=4).run(3, fraction=0.5, seed=2)
    assert [r.chosen for r in other.history.rounds] != [r.chosen for r in first.history.rounds]


@pytest.mark.parametrize("make", [FedAvg, PFedGraph], ids=lambda make: make.__name__)
def test_the_order_in_which_answers_come_decides_nothing(small, make, equal_parts):
    backwards = small(make, clients=5)
    send = backwards.grid.send_and_receive
    backwards.grid.send_and_receive = lambda messages, *, timeout=None: send(messages)[::-1]
    first, second = backwards.run(2, evaluate_every=1), small(make, clients=5).run(2, evaluate_every=1)
    assert first.history.rounds[0].answered == [0, 1, 2, 3, 4]
    assert flat(first.history) == flat(second.history)
    for client in range(5):
        assert equal_parts(first.method.parts_for(client, 3), second.method.parts_for(client, 3))


def test_clients_rounds_and_tests_draw_different_numbers_that_no_other_client_changes(small):
    drawn = []
    for clients in (3, 2):
        federation, numbers = small(FedAvg, clients=clients), {}
        method = federation.federation.method
        fit = method.train

        def train(client, numbers=numbers, fit=fit):
            numbers["train", client.round, client.number] = torch.rand(1).item()
            return fit(client)

        def prepare(client, numbers=numbers):
            numbers["test", client.round, client.number] = torch.rand(1).item()

        method.train, method.prepare_answers = train, prepare
        federation.run(2, evaluate_every=1)
        drawn.append(numbers)
    assert len(set(drawn[0].values())) == len(drawn[0]) == 12
    assert drawn[1].items() < drawn[0].items()


def test_a_federation_leaves_the_numbers_of_others_alone(small):
    torch.manual_seed(5)
    expected = torch.rand(3)
    federation = small(FedAvg)
    server = federation.server()
    torch.manual_seed(5)
    server.start(federation.grid, num_rounds=1)
    assert torch.equal(torch.rand(3), expected)


RESUMED = {
    "fedper": FedPer,
    "ditto": Ditto,
    "pfedgraph": PFedGraph,
    "atoms": lambda: Atoms(coefficient_rounds=2, mix="graph"),
}


@pytest.mark.parametrize("in_folder", [False, True], ids=["context", "folder"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_federation_that_was_cut_off_after_any_round_goes_on_to_the_last_bit(
    small, tmp_path, name, in_folder, equal_parts
):
    make, options = RESUMED[name], {"fraction": 0.67, "evaluate_every": 4}

    def clients(folder):
        return small(make, folder=tmp_path / folder if in_folder else None)

    whole = clients("whole").run(4, **options)
    federation = clients("parts")
    state = None
    for _ in range(4):
        # a server dies when clients have trained for its next round and nothing was saved; another one does the round
        for _ in range(2):
            server = federation.server(**options)
            if state is not None:
                server.load_state_dict(copy.deepcopy(state))
            with pytest.raises(ZeroDivisionError):
                server.start(federation.grid, num_rounds=4, after_round=lambda: 1 / 0)
            if in_folder:  # the clients' processes die, too
                federation.grid._states.clear()
        state = server.state_dict()
    assert state["round"] == 4
    resumed = federation.server(**options)
    resumed.load_state_dict(state)
    assert equal_parts(resumed.method.mean, whole.method.mean)
    assert flat(resumed.history) == flat(whole.history)
    for client in range(3):
        assert equal_parts(resumed.method.parts_for(client, 5), whole.method.parts_for(client, 5))
