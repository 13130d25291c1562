"""The server: which clients are there, what a round needs, and tests of all clients."""

import threading
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fscl.errors import FsclError
from fscl.federated import (
    Atoms,
    Ditto,
    FedAvg,
    FedAvgFineTuned,
    FederatedStrategy,
    FedRep,
)
from fscl.federated.flower_private import wire_bytes
from fscl.federated.messages import METRICS


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
    assert first.answered == []
    assert first.loss is None
    assert second.answered == [0, 1, 2]
    assert second.loss > 0


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
    reply = federation.grid._reply

    def silent(message):
        reply(message)  # which names the message
        return Message(RecordDict(), reply_to=message)

    federation.grid._reply = silent
    with pytest.raises(
        FsclError, match="0 of 3 clients are there: node 2, like 3 and 4, does not say which client it is; let"
    ):
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


def test_evaluation_changes_nothing(small, equal_parts):
    for make in (FedRep, FedAvgFineTuned, Ditto, lambda: Atoms(coefficient_rounds=1)):
        often, never = small(make).run(2, evaluate_every=1), small(make).run(2)
        assert len(often.history.evaluations) == 2
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
    assert evaluation.failed == {1: "it failed: 'ZeroDivisionError: division by zero'"}
    assert set(evaluation.accuracy) == {0, 2}


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
        assert 3 * 4 * values < counted < 3 * (4 * values + 3 * 150 + 450)


def test_the_bytes_of_an_evaluation_are_those_of_its_messages_and_count_apart(small):
    federation = small(FedAvg, clients=4)
    history = federation.run(2, fraction=0.5, evaluate_every=2).history
    for kind, counted in (("train", history.rounds), ("evaluate", history.evaluations)):
        passed = [(message, reply) for its_kind, _, message, reply in federation.passed if its_kind == kind]
        assert len(passed) == 4  # two rounds of two clients, and a test of all
        sent, received = (sum(map(wire_bytes, side)) for side in zip(*passed, strict=True))
        assert (sum(c.sent for c in counted), sum(c.received for c in counted)) == (sent, received)
    assert history.evaluations[0].received < 4 * 600 < history.evaluations[0].sent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0; a share above 0 and up to 1"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"clients": 0}, "clients is 0; it must be at least 1"),
        ({"least": 0}, "least is 0; it must be at least 1"),
        ({"most_images": 0}, "most_images is 0; it must be at least 1"),
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


def test_a_question_changes_nothing_that_a_client_said_of_itself(small):
    federation = small(FedAvg)
    server = federation.run(1)
    server.question(0, node=2)
    server.start(federation.grid, num_rounds=2)
    assert server.history.rounds[-1].answered == [0, 1, 2]
    assert server.history.rounds[-1].left_out == {}
