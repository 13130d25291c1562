"""Answers that cannot be right are left out by name; the round goes on, and the client comes back."""

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fscl.errors import FsclError
from fscl.federated import (
    Atoms,
    FedAvg,
)
from fscl.federated.flower_private import give_id
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
    """A message like the one that was answered, to which an error can be a reply."""
    message = Message(RecordDict(), reply.metadata.src_node_id, "train", group_id=reply.metadata.group_id)
    give_id(message, reply.metadata.reply_to_message_id)
    return message


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
    "integers": (replaced("head", lambda v: v.astype(np.int64)), "part 'head': it has type int64; floating-point"),
    "bytes that are no array": (
        replaced("head", lambda v: Array("float32", v.shape, "numpy.ndarray", b"not an array")),
        "part 'head' cannot be read",
    ),
    "a huge step": (replaced("shared", lambda v: v + 1e6), "its shared moved by .*e.0., .* times the length of shared"),
    "unknown parts": (renamed, "it sent the parts body, head; expected: head, other, shared"),
    "no parts": (without_parts, "it sent the parts none; expected"),
    "no images": (with_images(0), "num-examples is 0; 1 to 21, its images as it said"),
    "an image more than it said": (with_images(22), "num-examples is 22; 1 to 21, its images as it said"),
    "images without number": (with_images(2**62), "num-examples is 4611686018427387904; 1 to 21"),
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


def test_fewer_images_than_a_client_said_are_its_weight(small):
    """A client may train on a part of its images in a round."""
    federation = small(FedAvg, clients=2)
    federation.tampered[1, 1] = with_images(5)
    server = federation.run(1)
    assert server.history.rounds[0].answered == [0, 1]
    first, second = (parts["head"].double() for _, _, _, parts in federation.sent())
    assert torch.allclose(server.method.mean["head"].double(), (20 * first + 5 * second) / 25, atol=1e-6)


def claiming(federation, client, images):
    """Lets a client claim so many training images when it introduces itself."""
    reply = federation.grid._reply

    def claim(message):
        answer = reply(message)
        if message.metadata.message_type == "query" and message.metadata.dst_node_id == 2 + client:
            wish = answer.content[WISH]
            del wish["num-examples"]
            answer.content[WISH] = ConfigRecord(dict(wish) | ({} if images is None else {"num-examples": images}))
        return answer

    federation.grid._reply = claim


@pytest.mark.parametrize("images", [None, 0, -3, 2.5, True, "many"], ids=str)
def test_a_client_that_does_not_say_how_many_images_it_has_is_refused_by_name(small, images):
    federation = small(FedAvg)
    claiming(federation, 1, images)
    with pytest.raises(
        FsclError, match=f"2 of 3 clients are there: node 3 says that it has {images!r} training images"
    ):
        federation.run(1)


def test_a_client_that_claims_more_than_the_bound_is_refused_by_name(small):
    assert small(FedAvg).run(1, most_images=22).history.rounds[0].answered == [0, 1, 2]
    federation = small(FedAvg)
    claiming(federation, 1, 10**9)
    with pytest.raises(FsclError, match="node 3 says that it has 1000000000 training images; most_images is 22"):
        federation.run(1, most_images=22)


def test_without_a_bound_a_client_may_outweigh_all_others(small):
    """The default, as the docstring says: what a client says of its images is believed."""
    federation = small(FedAvg)
    claiming(federation, 1, 10**9)
    federation.tampered[1, 1] = with_images(10**9)
    server = federation.run(1)
    (own,) = (parts["head"] for _, client, _, parts in federation.sent() if client == 1)
    assert torch.allclose(server.method.mean["head"], own, atol=1e-5)


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
                by_link = Message(RecordDict(), 1, "train")
                give_id(by_link, message.metadata.message_id)
                replies[i] = Message(Error(5, "Node Unavailable"), reply_to=by_link)
        return replies

    federation.grid.send_and_receive = send_and_receive
    server = federation.run(2, evaluate_every=2)
    assert [r.left_out for r in server.history.rounds] == [{1: "it failed: 'Node Unavailable'"}] * 2
    assert [r.answered for r in server.history.rounds] == [[0, 2], [0, 2]]
    assert server.history.evaluations[0].failed == {1: "it failed: 'Node Unavailable'"}


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
