"""Answers are told by the messages that they answer: no order, no name of a node, and no dead node changes a number."""

import os
import warnings

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="needs the extra fscl[federated]")

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fscl.data.datasets import load_images
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.federated import Atoms, FederatedStrategy, Federation, LabelledImages, LocalGrid, client_app
from fscl.federated import strategy as strategy_module
from fscl.federated.flower_private import to_bytes, wire_bytes
from fscl.federated.roll import Roll
from fscl.settings import Training

CLIENTS = 4
NODE_UNAVAILABLE = 5  # Flower's code


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))


def method() -> Atoms:
    return Atoms(num_atoms=4, coefficient_rounds=1, mix="nearest", nearest=2)


class Disturbed(LocalGrid):
    """A grid whose nodes have names without order, and whose replies come in any order, or not at all.

    Args:
        disturb: takes the kind of message, its round, the client and the replies, and returns those that arrive.
    """

    def __init__(self, disturb: Callable[[str, int, int, list[Message]], list[Message]] = lambda *a: a[-1]) -> None:
        train, test = load_images("digits")
        learner = method()
        transform = ImageTransform([0.3], [0.3])
        federation = Federation(
            learner,
            learner.prepare(network()),
            Training(epochs=1, batch_size=8, lr=0.05, schedule="constant"),
            [LabelledImages(train.images, train.labels, torch.arange(20 + c) + 40 * c) for c in range(CLIENTS)],
            [LabelledImages(test.images, test.labels, torch.arange(10) + 10 * c) for c in range(CLIENTS)],
            transform,
            transform,
        )
        self.app = client_app(lambda context: federation)
        super().__init__(self.app, CLIENTS)
        self.disturb, self.most = disturb, 0
        self.names = {2 + c: 900 - 37 * c for c in range(CLIENTS)}

    def get_node_ids(self) -> list[int]:
        return list(self.names.values())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        places = {name: node for node, name in self.names.items()}
        arrived, messages = [], list(messages)
        self.most = max(self.most, len(messages))
        for message in messages:
            client = places[message.metadata.dst_node_id] - 2
            message.metadata.__dict__["_dst_node_id"] = client + 2
            replies = super().send_and_receive([message])
            round = int(message.metadata.group_id or 0)
            arrived += self.disturb(message.metadata.message_type, round, client, replies)
        for reply in arrived:
            # the SuperLink's own replies have its name, 1
            reply.metadata.__dict__["_src_node_id"] = 1 if reply.has_error() else 77
        return arrived[::-1]


def server(**options: Any) -> FederatedStrategy:
    return FederatedStrategy(method(), network(), CLIENTS, **options)


def run(grid: LocalGrid, rounds: int = 3, **options: Any) -> FederatedStrategy:
    strategy = server(**options)
    strategy.start(grid, num_rounds=rounds)
    return strategy


def plain() -> LocalGrid:
    return LocalGrid(Disturbed().app, CLIENTS)


def refusal(reply: Message, message_id: str | None = None) -> Message:
    """What the SuperLink says in the place of a lost client."""
    error = Message(Error(NODE_UNAVAILABLE, "Node Unavailable"), reply_to=reply)
    error.metadata.__dict__["_reply_to_message_id"] = message_id or reply.metadata.reply_to_message_id
    error.metadata.__dict__["_message_id"] = "error"
    return error


def test_names_of_nodes_and_the_order_of_replies_change_no_number() -> None:
    expected, found = run(plain(), fraction=0.75), run(Disturbed(), fraction=0.75)
    assert [e.accuracy for e in expected.history.evaluations] == [e.accuracy for e in found.history.evaluations]
    for first, second in zip(expected.history.rounds, found.history.rounds, strict=True):
        assert replace(first, seconds=0) == replace(second, seconds=0)
    for part, values in expected.method.mean.items():
        assert torch.equal(values, found.method.mean[part]), part
    for client, update in expected.method.latest.items():
        assert torch.equal(update.parts["atoms"], found.method.latest[client].parts["atoms"]), client


def test_a_lost_client_is_named_although_the_reply_is_the_superlinks() -> None:
    def lose(kind: str, round: int, client: int, replies: list[Message]) -> list[Message]:
        return [refusal(replies[0])] if (round, client) == (2, 1) and kind != "query" else replies

    found = run(Disturbed(lose)).history
    assert [r.left_out for r in found.rounds] == [{}, {1: "it failed: 'Node Unavailable'"}, {}]
    assert found.rounds[1].answered == [0, 2, 3]
    assert found.rounds[2].answered == [0, 1, 2, 3]
    assert found.evaluations[1].failed == {1: "it failed: 'Node Unavailable'"}
    assert sorted(found.evaluations[1].accuracy) == [0, 2, 3]


def test_late_double_and_foreign_replies_are_left_out_by_name() -> None:
    def disturb(kind: str, round: int, client: int, replies: list[Message]) -> list[Message]:
        if (kind, round) == ("train", 2):
            if client == 0:
                return []
            if client == 2:
                return replies * 2
            if client == 3:
                return [*replies, refusal(replies[0], message_id="of another round")]
        return replies

    with pytest.warns(UserWarning, match=r"left out: a reply of node 1 to a message that was not sent"):
        found = run(Disturbed(disturb)).history
    assert found.rounds[1].left_out == {0: "it did not answer in time", 2: "it answered 2 times"}
    assert found.rounds[1].answered == [1, 3]
    assert found.rounds[2].left_out == {}


def test_a_node_that_does_not_introduce_itself_in_time_is_asked_again() -> None:
    asked: list[int] = []

    def silent(kind: str, round: int, client: int, replies: list[Message]) -> list[Message]:
        if kind == "query" and client == 3:
            asked.append(client)
            return replies if len(asked) > 2 else []
        return replies

    with pytest.warns(UserWarning, match=r"node 789 did not say within 60 s which client it is"):
        found = run(Disturbed(silent)).history
    assert len(asked) == 3
    assert [r.chosen for r in found.rounds] == [[0, 1, 2, 3]] * 3


def test_a_node_that_comes_later_and_stays_silent_costs_no_round() -> None:
    grid = Disturbed(lambda kind, round, client, replies: [] if (kind, client) == ("query", 2) and late else replies)
    late: list[int] = []
    strategy = server()

    def restart_client_2() -> None:
        late.append(2)
        grid.names[4] = 5000 + strategy.round

    with pytest.warns(UserWarning, match="did not say within"):
        strategy.start(grid, num_rounds=3, after_round=restart_client_2)
    assert [r.chosen for r in strategy.history.rounds] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 3]]


def test_a_client_of_an_impossible_number_is_refused_by_name() -> None:
    def disturb(kind: str, round: int, client: int, replies: list[Message]) -> list[Message]:
        if kind == "query" and client == 1:
            replies[0].content["fscl.wish"]["client"] = 7
        return replies

    with pytest.raises(
        FsclError, match=r"3 of 4 clients are there: node 863 says that it is client 7, and there are 4"
    ):
        run(Disturbed(disturb))


class Failing(LocalGrid):
    """A grid of nodes from 2 on, each of which fails with its reason."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(ClientApp(), len(reasons))
        self.reasons = reasons

    def _reply(self, message: Message) -> Message:
        self._named(message)
        return Message(Error(1, self.reasons[message.metadata.dst_node_id - 2]), reply_to=message)


def present(reasons: list[str], clients: int = 22) -> str:
    with pytest.raises(FsclError) as caught:
        Roll(clients).present(Failing(reasons), 1, lambda *_: None)
    return str(caught.value)


def test_a_fault_of_many_nodes_is_said_once_with_the_nodes() -> None:
    failed = "failed when it was asked which client it is:"
    assert present(["no images"] * 22) == (
        f"0 of 22 clients are there: node 2, like 3, 4, 5, 6 and 17 more, {failed} 'no images'"
    )
    assert present(["no images", "no disk", "no images"], 3) == (
        f"0 of 3 clients are there: node 2, like 4, {failed} 'no images'; node 3 {failed} 'no disk'"
    )


def test_of_many_different_faults_some_are_said_and_the_others_counted() -> None:
    said = present([f"no disk {number}" for number in range(22)])
    assert said.count("no disk") == 5
    assert said.endswith("; 17 more faults")


def test_each_late_node_is_warned_of_once() -> None:
    late = [2, 3]
    grid = Disturbed(lambda kind, round, client, replies: [] if client in late else replies)
    roll = Roll(2)
    for expected in (["node 789, like 826,"], [], ["node 999"]):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            roll.present(grid, 1, lambda *_: None)
        assert [str(warning.message).split(" did not say")[0] for warning in warned] == expected
        if not expected:  # the node of client 1 is started again, and is late, too
            late.append(1)
            grid.names[3] = 999


def test_an_evaluation_holds_messages_for_few_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(plain(), rounds=1, fraction=0.5).history.evaluations[0]
    monkeypatch.setattr(strategy_module, "EVALUATED_AT_ONCE", 2)
    grid = Disturbed(lambda *a: a[-1])
    strategy = server(fraction=0.5)
    strategy._roll.present(grid, 1, strategy._introduced)  # asks all nodes at once
    grid.most = 0
    strategy.start(grid, num_rounds=1)
    assert grid.most == 2
    assert strategy.history.evaluations[0].accuracy == expected.accuracy
    assert len(strategy.history.evaluations) == 1


def test_bytes_of_a_message_do_not_depend_on_its_address() -> None:
    grid = plain()
    short, long = Message(RecordDict(), 2, "query"), Message(RecordDict(), 2**63, "query")
    assert wire_bytes(short) == wire_bytes(long)
    (reply,) = grid.send_and_receive([short])
    before = wire_bytes(reply)
    reply.metadata.__dict__["_reply_to_message_id"] = "f" * 64
    assert wire_bytes(reply) == before >= len(to_bytes(reply))


def test_local_messages_have_names_that_their_replies_repeat() -> None:
    grid = plain()
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    names = [message.metadata.message_id for message in messages]
    assert len({*names, ""}) == CLIENTS + 1
    assert [reply.metadata.reply_to_message_id for reply in replies] == names
    pushed = list(grid.push_messages([Message(RecordDict(), 2, "query")]))
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(pushed)] == pushed
    assert grid.pull_messages(pushed) == []
