"""The server: rounds, answers that cannot be right, and going on later."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fscl.errors import FsclError
from fscl.federated import Atoms, Ditto, FedAvg, FederatedStrategy, FedPer, FedRep, Local, PFedGraph
from fscl.federated.messages import METRICS, WISH
from fscl.federated.messages import PARTS as RECORD


def replaced(part, change):
    """Changes one part of a reply."""

    def tamper(reply):
        arrays = reply.content.array_records[RECORD]
        values = change(arrays[part].numpy().copy())
        arrays[part] = values if isinstance(values, Array) else Array(np.ascontiguousarray(values))
        return reply

    return tamper


def renamed(reply):
    arrays = reply.content.array_records[RECORD]
    reply.content[RECORD] = ArrayRecord({"body": arrays["shared"], "head": arrays["head"]})
    return reply


def without_parts(reply):
    del reply.content[RECORD]
    return reply


def with_images(number):
    def tamper(reply):
        reply.content[METRICS] = MetricRecord({"num-examples": number})
        return reply

    return tamper


def without_metrics(reply):
    del reply.content[METRICS]
    return reply


def failed(reply):
    return Message(Error(0, " \n "), reply_to=copied(reply))


def copied(reply):
    """A message to which an error can be a reply, from the same node."""
    return Message(RecordDict(), reply.metadata.src_node_id, "train", group_id=reply.metadata.group_id)


def first_nan(values):
    values[0] = np.nan
    return values


FAULTS = {
    "an error without a reason": (failed, "it failed: no reason given"),
    "no answer": (lambda reply: None, "it did not answer in time"),
    "NaN": (replaced("shared", first_nan), "shared is not finite"),
    "infinite": (replaced("head", lambda v: np.full_like(v, np.inf)), "head is not finite"),
    "too large for the network's type": (
        replaced("head", lambda v: v.astype(np.float64) * 1e300),
        "head is not finite",
    ),
    "a value too few": (replaced("shared", lambda v: v[:-1]), r"shared has shape \(\d+,\); this network's has"),
    "another shape": (replaced("head", lambda v: v.reshape(2, -1)), r"head has shape \(2, \d+\)"),
    "integers": (replaced("head", lambda v: v.astype(np.int64)), "part 'head' has type int64; floating-point"),
    "bytes that are no array": (
        replaced("head", lambda v: Array("float32", v.shape, "numpy.ndarray", b"not an array")),
        "part 'head' cannot be read",
    ),
    "a huge step": (replaced("shared", lambda v: v + 1e6), "its shared moved by .*e.0., .* times the length of shared"),
    "unknown parts": (renamed, "it sent the parts body, head; expected: head, other, shared"),
    "no parts": (without_parts, "it sent the parts none; expected"),
    "no images": (with_images(0), "num-examples is 0; a number of at least 1"),
    "a negative number of images": (with_images(-5), "num-examples is -5"),
    "half an image": (with_images(2.5), "num-examples is 2.5"),
    "several numbers of images": (with_images([3, 4]), r"num-examples is \[3, 4\]"),
    "no metrics": (without_metrics, "num-examples is 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_cannot_be_right_is_left_out_by_name_and_the_client_comes_back(small, fault, equal_parts):
    tamper, message = FAULTS[fault]
    federation = small(FedAvg)
    federation.tampered[2, 1] = tamper
    server = federation.run(3)
    first, second, third = server.history.rounds
    assert first.answered == third.answered == [0, 1, 2]
    assert second.answered == [0, 2]
    assert list(second.left_out) == [1]
    with pytest.raises(FsclError, match=message):
        raise FsclError(second.left_out[1])
    # the round's mean is that of the others
    without = small(FedAvg)
    without.tampered[2, 1] = lambda reply: None
    assert equal_parts(without.run(3).method.mean, server.method.mean)


def test_a_client_that_raises_is_left_out_with_the_reason_and_comes_back(small):
    federation = small(FedAvg)
    train = federation.federation.method.train

    def failing(client):
        if (client.round, client.number) == (1, 2):
            raise RuntimeError("the disk\nis full")
        return train(client)

    federation.federation.method.train = failing
    first, second = federation.run(2).history.rounds
    assert first.left_out == {2: "it failed: 'is full'"}
    assert first.answered == [0, 1]
    assert second.answered == [0, 1, 2]


def test_a_node_that_is_gone_is_left_out_under_its_client_s_number(small):
    """Flower's SuperLink answers in its place: the reply comes from node 1."""
    federation = small(FedAvg)
    send = federation.grid.send_and_receive

    def send_and_receive(messages, *, timeout=None):
        messages = list(messages)
        replies = send(messages)
        for i, message in enumerate(messages):
            if message.metadata.message_type != "query" and message.metadata.dst_node_id == 3:
                message.metadata.__dict__["_message_id"] = "of client 1"  # as Flower does when it sends
                by_link = Message(RecordDict(), 1, "train")
                by_link.metadata.__dict__["_message_id"] = "of client 1"
                replies[i] = Message(Error(5, "Node Unavailable"), reply_to=by_link)
        return replies

    federation.grid.send_and_receive = send_and_receive
    server = federation.run(2, evaluate_every=2)
    assert [r.left_out for r in server.history.rounds] == [{1: "it failed: 'Node Unavailable'"}] * 2
    assert [r.answered for r in server.history.rounds] == [[0, 2], [0, 2]]
    assert server.history.evaluations[0].failed == {1: "'Node Unavailable'"}


def test_an_answer_of_nobody_is_no_answer(small):
    federation = small(FedAvg)
    stranger = Message(RecordDict(), 77, "train")
    federation.tampered[1, 1] = lambda reply: Message(reply.content, reply_to=stranger)
    (current,) = federation.run(1).history.rounds
    assert current.left_out == {1: "it did not answer in time"}


def test_a_client_with_other_frozen_coefficients_is_left_out(small):
    federation = small(lambda: Atoms(coefficient_rounds=1))

    def foreign(reply):
        reply.content[WISH] = ConfigRecord({"fingerprint": "0123456789abcdef"})
        return reply

    def silent(reply):
        del reply.content[WISH]
        return reply

    federation.tampered |= {(2, 0): foreign, (3, 1): silent}
    server = federation.run(4)
    first, second, third, last = (r.left_out for r in server.history.rounds)
    expected = server.method.fingerprint(4)[:16]
    assert first == last == {}
    assert second == {
        0: f"its frozen coefficients have the fingerprint '0123456789abcdef', the server's have {expected}: it has "
        "another network"
    }
    assert "have the fingerprint None" in third[1]


def test_parts_of_zeros_may_move(small, network):
    """Fresh biases are zeros, and a multiple of their length would allow nothing."""

    def start():
        net = network()
        with torch.no_grad():
            net[4].bias.zero_()
        return net

    server = small(FedAvg, start=start).run(1)
    assert server.history.rounds[0].left_out == {}
    assert server.method.mean["other"].count_nonzero() > 0


def test_a_smaller_limit_refuses_smaller_steps(small):
    server = small(FedAvg).run(1, largest_change=1e-6)
    assert len(server.history.rounds[0].left_out) == 3
    assert all("moved by" in reason for reason in server.history.rounds[0].left_out.values())


def test_with_too_few_answers_the_server_keeps_its_parts(small, equal_parts):
    federation = small(FedAvg)
    federation.tampered |= {(2, 0): lambda reply: None, (2, 1): lambda reply: None}
    server = federation.server(least=2)
    before = {}

    def note():
        before[server.round] = dict(server.method.mean)

    server.start(federation.grid, num_rounds=3, after_round=note)
    assert server.history.rounds[1].answered == [2]
    assert equal_parts(before[1], before[2])
    assert not torch.equal(before[2]["shared"], before[3]["shared"])


def test_a_round_without_any_answer_is_a_round(small):
    federation = small(FedAvg)
    federation.tampered |= {(1, client): lambda reply: None for client in range(3)}
    first, second = federation.run(2).history.rounds
    assert first.answered == [] and first.loss is None
    assert second.answered == [0, 1, 2] and second.loss > 0


@pytest.mark.parametrize("loss", [float("nan"), [1.0, 2.0], None], ids=str)
def test_a_loss_that_is_no_number_counts_nowhere(small, loss):
    def tamper(reply):
        metrics = {"num-examples": 20} | ({} if loss is None else {"loss": loss})
        reply.content[METRICS] = MetricRecord(metrics)
        return reply

    federation = small(FedAvg)
    federation.tampered[1, 0] = tamper
    (current,) = federation.run(1).history.rounds
    assert current.answered == [0, 1, 2]
    others = [reply.content.metric_records[METRICS] for kind, c, _, reply in federation.passed if kind == "train" and c]
    expected = np.average([m["loss"] for m in others], weights=[m["num-examples"] for m in others])
    assert current.loss == pytest.approx(expected)


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


def test_files_of_an_earlier_federation_in_the_folder_do_no_harm(small, network, tmp_path, equal_parts):
    small(FedPer, folder=tmp_path, start=lambda: network(7)).run(5)
    again = small(FedPer, folder=tmp_path).run(3)
    assert [r.left_out for r in again.history.rounds] == [{}, {}, {}]
    assert equal_parts(again.method.mean, small(FedPer).run(3).method.mean)


def doubled(grid, number):
    """A grid with one node more, which says that it is client ``number``."""
    node_ids, query = grid.get_node_ids, grid._reply

    def reply(message):
        if message.metadata.dst_node_id == 99:
            answer = query(Message(message.content, 2 + number, message.metadata.message_type,
                                   group_id=message.metadata.group_id))  # fmt: skip
            return Message(answer.content, reply_to=message)
        return query(message)

    grid.get_node_ids = lambda: [*node_ids(), 99]
    grid._reply = reply


def test_two_nodes_with_one_number_in_place_of_two_clients_are_named(small):
    federation = small(FedAvg)
    server = federation.server()
    federation.grid._clients = 2  # client 2 is missing
    doubled(federation.grid, 1)
    with pytest.raises(FsclError, match="2 of 3 clients are there: nodes 3 and 99 both say that they are client 1"):
        server.start(federation.grid, num_rounds=1)


def test_of_two_nodes_with_one_number_the_newer_one_counts_and_both_are_named(small):
    federation = small(FedAvg)
    server = federation.server()
    server.start(federation.grid, num_rounds=1)
    doubled(federation.grid, 1)
    with pytest.warns(UserWarning, match="nodes 3 and 99 both say that they are client 1"):
        server.start(federation.grid, num_rounds=2)
    assert server.history.rounds[1].answered == [0, 1, 2]
    asked = [m.metadata.dst_node_id for kind, _, m, _ in federation.passed if kind == "train"]
    assert asked == [2, 3, 4, 2, 99, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        server.start(federation.grid, num_rounds=3)


def test_a_node_that_does_not_say_who_it_is_is_named(small):
    federation = small(FedAvg)
    federation.grid._reply = lambda message: Message(RecordDict(), reply_to=message)
    with pytest.raises(FsclError, match="0 of 3 clients are there: node 2 does not say which client it is; let its"):
        federation.run(1)


def test_a_stranger_among_enough_clients_is_left_alone(small):
    federation = small(FedAvg)
    doubled(federation.grid, 1)
    reply = federation.grid._reply
    federation.grid._reply = lambda message: (
        Message(Error(1, "no such app"), reply_to=message) if message.metadata.dst_node_id == 99 else reply(message)
    )
    with pytest.warns(UserWarning, match="node 99 failed when it was asked which client it is: 'no such app'"):
        server = federation.run(1)
    assert server.history.rounds[0].answered == [0, 1, 2]


def test_the_server_waits_until_all_clients_are_there(small):
    federation = small(FedAvg)
    there = federation.grid.get_node_ids()
    federation.grid.get_node_ids = lambda: there[:1]
    timer = threading.Timer(0.5, lambda: setattr(federation.grid, "get_node_ids", lambda: there))
    timer.start()
    (current,) = federation.run(1).history.rounds
    assert current.answered == [0, 1, 2]


# evaluation


def test_evaluation_changes_nothing(small, equal_parts):
    for make in (FedRep, Ditto, lambda: Atoms(coefficient_rounds=1)):
        often, never = small(make).run(3, evaluate_every=1), small(make).run(3)
        assert len(often.history.evaluations) == 3
        assert never.history.evaluations == []
        assert equal_parts(often.method.mean, never.method.mean)


def test_every_client_is_tested_on_its_images_also_if_it_never_trained(small):
    federation = small(FedAvg, clients=4)
    server = federation.run(3, fraction=0.25, evaluate_every=2)
    assert [len(r.chosen) for r in server.history.rounds] == [1, 1, 1]
    assert [e.round for e in server.history.evaluations] == [2, 3]  # the last round is always evaluated
    for evaluation in server.history.evaluations:
        assert evaluation.images == dict.fromkeys(range(4), 15)
        assert evaluation.accuracy == {c: evaluation.correct[c] / 15 for c in range(4)}


def test_an_answer_of_a_test_is_that_of_the_parts_that_would_be_sent_next(small):
    federation = small(FedAvg)
    server = federation.run(1, evaluate_every=1)
    client = federation.client(0)
    kept = federation.grid._states[0].array_records["fscl.kept.1"]
    kept = {part: torch.from_numpy(array.numpy().copy()) for part, array in kept.items()}
    client.packing.unpack(client.network, kept | server.method.parts_for(0, 2))
    assert server.history.evaluations[0].correct[0] == client.correct()


@pytest.mark.parametrize("counts", [{"correct": 21, "num-examples": 20}, {"correct": -1, "num-examples": 20}, {}])
def test_a_test_with_impossible_counts_has_failed(small, counts):
    federation = small(FedAvg)
    reply = federation.grid._reply

    def tampered(message):
        answer = reply(message)
        if message.metadata.message_type == "evaluate" and message.metadata.dst_node_id == 3:
            answer.content[METRICS] = MetricRecord(counts)
        return answer

    federation.grid._reply = tampered
    (evaluation,) = federation.run(1, evaluate_every=1).history.evaluations
    said = f"it says that {counts.get('correct')} of {counts.get('num-examples')} images are correct"
    assert evaluation.failed == {1: said}
    assert list(evaluation.accuracy) == [0, 2]


def test_a_client_that_cannot_answer_is_named_in_the_evaluation(small):
    federation = small(FedAvg)
    federation.federation.method.prepare_answers = lambda client: 1 / (client.number - 1)
    (evaluation,) = federation.run(1, evaluate_every=1).history.evaluations
    assert evaluation.failed == {1: "'ZeroDivisionError: division by zero'"}
    assert set(evaluation.accuracy) == {0, 2}


# equal numbers, and going on later


def flat(history):
    """A history without what a clock or a header decides."""
    state = history.state_dict()
    for current in state["rounds"]:
        del current["seconds"], current["sent"], current["received"]
    return state


def test_equal_seeds_give_equal_numbers_and_other_seeds_other_clients(small, equal_parts):
    first, again = (small(FedAvg, clients=4).run(3, fraction=0.5, seed=1, evaluate_every=1) for _ in range(2))
    assert flat(first.history) == flat(again.history)
    assert equal_parts(first.method.mean, again.method.mean)
    other = small(FedAvg, clients=4).run(3, fraction=0.5, seed=2)
    assert [r.chosen for r in other.history.rounds] != [r.chosen for r in first.history.rounds]


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
    "local": Local,
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


def test_start_does_the_rounds_that_are_left(small):
    federation = small(FedAvg)
    server = federation.server()
    server.start(federation.grid, num_rounds=2)
    server.start(federation.grid, num_rounds=2)
    assert [r.number for r in server.history.rounds] == [1, 2]
    result = server.start(federation.grid, num_rounds=3)
    assert [r.number for r in server.history.rounds] == [1, 2, 3]
    assert set(result.arrays) == set(server.method.packing.entries)
    assert list(result.train_metrics_clientapp) == [3]


def test_the_bytes_of_a_round_are_those_of_its_messages(small):
    federation = small(FedAvg)
    (current,) = federation.run(1).history.rounds
    values = sum(federation.client().packing.size(part) for part in ("head", "other", "shared"))
    for counted in (current.sent, current.received):
        assert 3 * 4 * values < counted < 3 * (4 * values + 3 * 150 + 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0; a share above 0 and up to 1"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"clients": 0}, "clients is 0; it must be at least 1"),
        ({"least": 0}, "least is 0; it must be at least 1"),
        ({"evaluate_every": -1}, "evaluate_every is -1; it must be at least 0"),
    ],
)
def test_wrong_numbers_are_refused_with_their_value(network, options, message):
    with pytest.raises(FsclError, match=message):
        FederatedStrategy(FedAvg(), network(), **options)


def test_arguments_of_start_that_would_have_no_effect_are_refused(small):
    federation = small(FedAvg)
    with pytest.raises(FsclError, match="initial_arrays is not used by FederatedStrategy; leave it out"):
        federation.server().start(federation.grid, ArrayRecord(), num_rounds=1)
