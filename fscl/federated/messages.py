"""The content of messages: packed parts of a network, what is asked for, and how it went."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fscl.errors import FsclError
from fscl.federated.wire import decoded

__all__ = [
    "LOST", "METRICS", "SHORT", "WISH", "LostError", "answer", "arrays", "parts_in", "request", "requested",
]  # fmt: skip

PARTS, WISH, METRICS = "fscl.parts", "fscl.wish", "metrics"  # records of a message
LOST = "lost"  # in the record of wishes: the client has lost what it kept
SHORT = 16  # hexadecimal digits of a fingerprint that travel


class LostError(FsclError):
    """A client no longer has what it kept in an earlier round."""


def request(
    parts: Mapping[str, NDArray[np.generic]],
    *,
    round: int,
    returns: Iterable[str],
    keeps: Iterable[str],
    kept_in: int,
    bits: int = 32,
) -> RecordDict:
    """What the server sends.

    Args:
        parts: packed parts of the network, as they travel.
        round: the server's round.
        returns: the parts that the client is to return.
        keeps: the parts that it is to keep to itself.
        kept_in: the last round from which the server has an answer of the client; 0 if there is none. The client goes
            on from what it kept in this round.
        bits: see :class:`fscl.federated.wire.Wire`.
    """
    wish = ConfigRecord({"round": round, "returns": list(returns), "keeps": list(keeps), "kept-in": kept_in})
    if bits != 32:
        wish["bits"] = bits
    return RecordDict({PARTS: arrays(parts), WISH: wish})


def requested(message: Message) -> dict[str, Any]:
    """The keyword arguments of :func:`request`, but for the parts.

    Raises:
        FsclError: the message is not one of :class:`~fscl.federated.strategy.FederatedStrategy`.
    """
    wish = message.content.config_records.get(WISH)
    if wish is None:
        raise FsclError("this message has no record 'fscl.wish'; a server with fscl's FederatedStrategy sends it")
    return {"bits": 32} | {name.replace("-", "_"): value for name, value in wish.items()}


def answer(
    parts: Mapping[str, NDArray[np.generic]], fingerprint: str, metrics: Mapping[str, int | float]
) -> RecordDict:
    """What a client sends back.

    Args:
        parts: packed parts of the network, as they travel.
        fingerprint: of the frozen part that it used; empty if nothing is frozen.
        metrics: ``num-examples``, and what else the server is to average.
    """
    records: dict[str, Any] = {PARTS: arrays(parts), METRICS: MetricRecord(dict(metrics))}
    if fingerprint:
        records[WISH] = ConfigRecord({"fingerprint": fingerprint})
    return RecordDict(records)


def parts_in(content: RecordDict) -> dict[str, Tensor]:
    """The packed parts of a message, decoded; of a head perhaps only some rows.

    Raises:
        FsclError: an array cannot be read, or does not hold numbers as fscl writes them.
    """
    parts = {}
    for name, array in content.array_records.get(PARTS, ArrayRecord()).items():
        try:
            values = array.numpy()
        except Exception as error:  # it may be any bytes
            raise FsclError(f"part {name!r} cannot be read ({type(error).__name__})") from error
        try:
            parts[name] = decoded(values)
        except FsclError as error:
            raise FsclError(f"part {name!r}: {error}") from error
    return parts


def arrays(parts: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    # one array a part: each array has a header of about 129 bytes
    return ArrayRecord({name: Array(values) for name, values in parts.items()})
