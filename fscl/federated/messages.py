"""The content of messages: packed parts of a network, what is asked for, and how it went."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fscl.errors import FsclError

__all__ = [
    "LOST", "METRICS", "SHORT", "WISH", "LostError", "answer", "arrays", "parts_in", "request", "requested",
]  # fmt: skip

PARTS, WISH, METRICS = "fscl.parts", "fscl.wish", "metrics"  # records of a message
LOST = "lost"  # in the record of wishes: the client has lost what it kept
SHORT = 16  # hexadecimal digits of a fingerprint that travel


class LostError(FsclError):
    """A client no longer has what it kept in an earlier round."""


def request(
    parts: Mapping[str, Tensor], *, round: int, returns: Iterable[str], keeps: Iterable[str], kept_in: int
) -> RecordDict:
    """What the server sends.

    Args:
        parts: packed parts of the network.
        round: the server's round.
        returns: the parts that the client is to return.
        keeps: the parts that it is to keep to itself.
        kept_in: the last round from which the server has an answer of the client; 0 if there is none. The client goes
            on from what it kept in this round.
    """
    wish = ConfigRecord({"round": round, "returns": list(returns), "keeps": list(keeps), "kept-in": kept_in})
    return RecordDict({PARTS: arrays(parts), WISH: wish})


def requested(message: Message) -> dict[str, Any]:
    """The keyword arguments of :func:`request`, but for the parts.

    Raises:
        FsclError: the message is not one of :class:`~fscl.federated.strategy.FederatedStrategy`.
    """
    wish = message.content.config_records.get(WISH)
    if wish is None:
        raise FsclError("this message has no record 'fscl.wish'; a server with fscl's FederatedStrategy sends it")
    return {name.replace("-", "_"): value for name, value in wish.items()}


def answer(parts: Mapping[str, Tensor], fingerprint: str, metrics: Mapping[str, int | float]) -> RecordDict:
    """What a client sends back.

    Args:
        parts: packed parts of the network.
        fingerprint: of the frozen part that it used; empty if nothing is frozen.
        metrics: ``num-examples``, and what else the server is to average.
    """
    records: dict[str, Any] = {PARTS: arrays(parts), METRICS: MetricRecord(dict(metrics))}
    if fingerprint:
        records[WISH] = ConfigRecord({"fingerprint": fingerprint})
    return RecordDict(records)


def parts_in(content: RecordDict) -> dict[str, Tensor]:
    """The packed parts of a message.

    Raises:
        FsclError: an array cannot be read, or does not hold floating-point numbers.
    """
    parts = {}
    for name, array in content.array_records.get(PARTS, ArrayRecord()).items():
        try:
            values = array.numpy()
        except Exception as error:  # it may be any bytes
            raise FsclError(f"part {name!r} cannot be read ({type(error).__name__})") from error
        if not np.issubdtype(values.dtype, np.floating):
            raise FsclError(f"part {name!r} has type {values.dtype}; floating-point numbers would do")
        parts[name] = torch.from_numpy(np.array(values))  # a copy, since the message's memory cannot be written to
    return parts


def arrays(parts: Mapping[str, Tensor]) -> ArrayRecord:
    # one array a part: each array has a header of about 129 bytes
    return ArrayRecord({name: Array(values.numpy()) for name, values in parts.items()})
