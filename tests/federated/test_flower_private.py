"""Flower's private names. If this file fails after an update of Flower, mend ``fscl/federated/flower_private.py``."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict


def private():
    try:
        from fscl.federated import flower_private
    except ImportError as error:
        pytest.fail(f"Flower has moved a private name: {error}; mend fscl/federated/flower_private.py")
    return flower_private


def message():
    names = private()
    names.use_identity(1)
    arrays = ArrayRecord({"atoms": Array(np.arange(6, dtype=np.float32))})
    records = {"parts": arrays, "wish": ConfigRecord({"round": 3, "returns": ["atoms"], "keeps": []}),
               "metrics": MetricRecord({"loss": 0.5, "num-examples": 7})}  # fmt: skip
    return Message(RecordDict(records), 5, "train", group_id="3")


def test_a_message_is_the_same_after_it_was_bytes():
    names, before = private(), message()
    after = names.from_bytes(names.to_bytes(before))
    assert after.content == before.content
    assert np.array_equal(after.content.array_records["parts"]["atoms"].numpy(), np.arange(6, dtype=np.float32))
    for field in ("message_type", "group_id", "src_node_id", "dst_node_id", "reply_to_message_id", "ttl"):
        assert getattr(after.metadata, field) == getattr(before.metadata, field), field


def test_an_error_is_the_same_after_it_was_bytes():
    names = private()
    reply = names.from_bytes(names.to_bytes(Message(Error(names.CLIENT_RAISED, "why"), reply_to=message())))
    assert reply.has_error()
    assert not reply.has_content()
    assert reply.error.reason == "why"
    assert reply.metadata.src_node_id == 5  # an error says whose it is


def test_bytes_are_counted_as_they_are_written_but_for_the_length_of_addresses():
    names = private()
    small, large = message(), message()
    large.content.array_records["parts"]["atoms"] = Array(np.zeros(6 + 1000, np.float32))
    # further values cost their bytes, and lengths written before them a few more
    assert 4000 <= names.wire_bytes(large) - names.wire_bytes(small) <= 4010
    assert (
        abs(names.wire_bytes(large) - names.wire_bytes(small) - len(names.to_bytes(large)) + len(names.to_bytes(small)))
        <= 2
    )
    names.give_id(large, "some name")
    assert names.wire_bytes(large) == names.wire_bytes(names.from_bytes(names.to_bytes(large)))


def test_a_message_needs_an_identity_which_is_given_to_it():
    """Flower may one day make messages without: ``use_identity`` can then go."""
    code = """
from flwr.app import Message, RecordDict
try:
    Message(RecordDict(), 2, "train")
except Exception as error:
    print("refused")
from fscl.federated.flower_private import use_identity
use_identity(7)
print(Message(RecordDict(), 2, "train").metadata.src_node_id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused", "7"], done.stderr
