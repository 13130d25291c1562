"""Reads what comes back from clients, and refuses what cannot be right."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from flwr.app import ConfigRecord, Message, MetricRecord
from torch import Tensor

from fscl.atoms.packing import Packing
from fscl.errors import FsclError
from fscl.federated.messages import LOST, METRICS, WISH, LostError, parts_in
from fscl.federated.method import Update
from fscl.federated.wire import Wire
from fscl.text import brief

__all__ = ["counts_in", "reason_of", "update_in"]


def update_in(
    replies: Sequence[Message],
    client: int,
    packing: Packing,
    expected: Collection[str],
    fingerprint: str,
    sent: Mapping[str, Tensor],
    wire: Wire,
    largest_change: float,
    most_images: int,
) -> Update:
    """What a client returned after it trained.

    Args:
        replies: its replies, of which there should be one.
        client: its number.
        packing: of the server's network.
        expected: the parts that it should return.
        fingerprint: of the frozen part, as it travels; empty if nothing is frozen.
        sent: the parts that it had received.
        wire: how they travel.
        largest_change: most that a part may move, in lengths of what was sent.
        most_images: the number of images that the client gave when it introduced itself.

    Raises:
        LostError: the client has lost what it kept.
        FsclError: the reply cannot be right.
    """
    reply = _only(replies)
    wish = reply.content.config_records.get(WISH, ConfigRecord())
    parts = parts_in(reply.content)
    if sorted(parts) != sorted(expected):
        raise FsclError(f"it sent the parts {', '.join(parts) or 'none'}; expected: {', '.join(expected) or 'none'}")
    # what did not travel is as it was sent; a change of it is zero
    base = {part: sent[part] if wire.bits == 32 else torch.zeros_like(sent[part]) for part in parts}
    parts = wire.read(parts, base)
    if wire.bits < 32:
        parts = {part: sent[part] + change for part, change in parts.items()}
    packing.check(parts)
    if fingerprint and wish.get("fingerprint") != fingerprint:
        raise FsclError(
            f"its frozen coefficients have the fingerprint {brief(wish.get('fingerprint'))}, the server's have "
            f"{fingerprint}: it has another network"
        )
    for part, values in parts.items():
        before = sent[part].double()
        change = float((values.double() - before).norm())
        # a part of zeros, such as fresh biases, is measured by ones
        length = float(before.norm()) or math.sqrt(len(before))
        if change > largest_change * length:
            raise FsclError(f"its {part} moved by {change:.3g}, {change / length:.3g} times the length of {part}")
    images = reply.content.metric_records.get(METRICS, MetricRecord()).get("num-examples", 0)
    if type(images) is not int or not 1 <= images <= most_images:
        raise FsclError(f"its num-examples is {brief(images)}; 1 to {most_images}, its images as it said, would do")
    return Update(client, parts, images, dict(sent), wire.rows)


def counts_in(replies: Sequence[Message]) -> tuple[int, int]:
    """How many of its test images a client classified correctly, and how many there are.

    Raises:
        LostError: the client has lost what it kept.
        FsclError: it failed, or the numbers cannot be right.
    """
    reply = _only(replies)
    metrics = reply.content.metric_records.get(METRICS, MetricRecord())
    correct, images = metrics.get("correct"), metrics.get("num-examples")
    if not isinstance(correct, int) or not isinstance(images, int) or not 0 <= correct <= images:
        raise FsclError(f"it says that {brief(correct)} of {brief(images)} images are correct")
    return correct, images


def reason_of(reply: Message) -> str:
    """The last line of what a client that failed says."""
    lines = (reply.error.reason or "").strip().splitlines()
    return brief(lines[-1]) if lines else f"no reason given, error code {reply.error.code}"


def _only(replies: Sequence[Message]) -> Message:
    """The one reply of a client.

    Raises:
        LostError: the client has lost what it kept.
        FsclError: there is none, there are several, or the client failed.
    """
    if len(replies) != 1:
        raise FsclError(f"it answered {len(replies)} times" if replies else "it did not answer in time")
    if replies[0].has_error():
        raise FsclError(f"it failed: {reason_of(replies[0])}")
    if replies[0].content.config_records.get(WISH, ConfigRecord()).get(LOST):
        raise LostError("it had lost what it kept, and begins anew the next time")
    return replies[0]
