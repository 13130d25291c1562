"""The roll of clients: which client is at which of Flower's nodes, and from which client a reply is."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fscl.errors import FsclError
from fscl.federated.messages import WISH
from fscl.federated.replies import reason_of
from fscl.text import brief

__all__ = ["Introduction", "Roll"]

QUERY_SECONDS = 60.0  # that a node has to say which client it is; a deployment starts a process for each answer
PAUSE = 0.2  # seconds between two looks for nodes
NAMED = 5  # nodes with one fault that are named, and different faults in one error


class Introduction(NamedTuple):
    """What a client says of itself: its number, its network's fingerprint, its training images, classes that matter."""

    client: int
    fingerprint: str
    images: int
    classes: list[int] | None


Introduced = Callable[[Introduction], object]


class Roll:
    """Knows clients by the numbers that they give. Nodes have other names on each of Flower's engines, and change them.

    Args:
        clients: number of clients. Their numbers count from 0.
    """

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self._numbers: dict[int, int] = {}  # number of the client at each node
        self._sent: list[tuple[int, Message]] = []
        self._warned: set[tuple[int | None, str]] = set()  # node and fault

    def present(self, grid: Grid, least: int, introduced: Introduced) -> dict[int, int]:
        """The clients that are there, number -> node, in the order of their numbers.

        It waits for so many clients, for the first time for all. A node that does not say in time which client it is,
        is asked again the next time.

        Raises:
            FsclError: enough nodes are there, but they cannot be all clients.
        """
        is_first, began = not self._numbers, time.monotonic()
        least = self.clients if is_first else min(least, self.clients)
        while True:
            nodes = list(grid.get_node_ids())
            faults = self._introduce(grid, sorted(set(nodes) - self._numbers.keys()), introduced)
            doubles: list[str] = []
            present: dict[int, int] = {}
            for node, number in self._numbers.items():
                if node in nodes:
                    if number in present:
                        # one of them may be a client that was started again, so that the newer one counts
                        doubles.append(f"nodes {present[number]} and {node} both say that they are client {number}")
                    present[number] = node
            slow = list(faults.values()).count(SLOW)
            if is_first and len(nodes) - slow >= self.clients > len(present):
                reasons = [*_said_once(faults), *doubles]
                if len(reasons) > NAMED:
                    reasons[NAMED:] = [f"{len(reasons) - NAMED} more faults"]
                raise FsclError(f"{len(present)} of {self.clients} clients are there: {'; '.join(reasons)}")
            self._warn(faults, doubles)
            if len(present) >= least:
                return dict(sorted(present.items()))
            if time.monotonic() - began > QUERY_SECONDS:
                there = ", ".join(map(str, sorted(present))) or "none"
                self._warn({}, [f"waiting for {least} clients; there are {there}"])
            time.sleep(PAUSE)

    def sends(self, client: int, message: Message) -> Message:
        """Notes to which client a message is sent, and returns the message."""
        self._sent.append((client, message))
        return message

    def by_client(self, replies: Iterable[Message]) -> dict[int, list[Message]]:
        """The replies to the messages sent since the last call, by client, in the order in which these were sent.

        The SuperLink answers in the place of a client that it lost, so that a reply's own node tells nothing. A reply
        to no message is left out, with a warning. A client without a reply has an empty list.
        """
        clients = {message.metadata.message_id: client for client, message in self._sent}
        by_client: dict[int, list[Message]] = {client: [] for client, _ in self._sent}
        self._sent = []
        for reply in replies:
            client = clients.get(reply.metadata.reply_to_message_id)
            if client is None:
                warnings.warn(
                    f"left out: a reply of node {reply.metadata.src_node_id} to a message that was not sent to it in "
                    "this round",
                    stacklevel=2,
                )
            else:
                by_client[client].append(reply)
        return by_client

    def _warn(self, faults: Mapping[int, str], texts: Iterable[str]) -> None:
        """Warns of faults of nodes, and of other things, that it has not warned of before."""
        new = {node: fault for node, fault in faults.items() if (node, fault) not in self._warned}
        others = [text for text in texts if (None, text) not in self._warned]
        self._warned |= {*new.items(), *((None, text) for text in others)}
        for text in (*_said_once(new), *others):
            warnings.warn(text, stacklevel=3)

    def _introduce(self, grid: Grid, nodes: list[int], introduced: Introduced) -> dict[int, str]:
        """Asks nodes which client they are, and returns what is wrong, by node."""
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        replies = list(grid.send_and_receive(asked, timeout=QUERY_SECONDS)) if asked else []
        node_of = {message.metadata.message_id: node for node, message in zip(nodes, asked, strict=True)}
        faults = dict.fromkeys(nodes, SLOW)
        for reply in replies:
            node = node_of.get(reply.metadata.reply_to_message_id)
            if node is None:
                continue
            try:
                introduction = _introduction(reply, self.clients)
                introduced(introduction)
            except FsclError as error:
                faults[node] = str(error)
                continue
            faults.pop(node, None)
            self._numbers[node] = introduction.client
        return faults


SLOW = f"did not say within {QUERY_SECONDS:.0f} s which client it is; it is asked again"


def _said_once(faults: Mapping[int, str]) -> list[str]:
    """Each different fault as a sentence on the nodes that have it.

    >>> _said_once({2: "is late", 3: "fails", 4: "is late", 5: "is late"})
    ['node 2, like 4 and 5, is late', 'node 3 fails']
    >>> _said_once(dict.fromkeys(range(2, 24), "fails"))
    ['node 2, like 3, 4, 5, 6 and 17 more, fails']
    """
    nodes_with: dict[str, list[int]] = {}
    for node, fault in faults.items():
        nodes_with.setdefault(fault, []).append(node)
    sentences = []
    for fault, (first, *rest) in nodes_with.items():
        others = [str(node) for node in rest[: NAMED - 1]]
        if len(rest) > len(others):
            others.append(f"{len(rest) - len(others)} more")
        alike = ", ".join(others[:-1]) + " and " * (len(others) > 1) + "".join(others[-1:])
        sentences.append(f"node {first}{f', like {alike},' if alike else ''} {fault}")
    return sentences


def _introduction(reply: Message, clients: int) -> Introduction:
    """What a client says of itself.

    Raises:
        FsclError: it failed, or gives no number of a client or of images.
    """
    if reply.has_error():
        raise FsclError(f"failed when it was asked which client it is: {reason_of(reply)}")
    wish = reply.content.config_records.get(WISH, ConfigRecord())
    number = wish.get("client")
    if not isinstance(number, int) or number < 0:
        raise FsclError(
            "does not say which client it is; let its ClientApp answer queries with "
            "fscl.federated.introduce(message, context, num_examples=...)"
        )
    if number >= clients:
        raise FsclError(f"says that it is client {number}, and there are {clients} clients, counted from 0")
    images = wish.get("num-examples")
    if type(images) is not int or images < 1:
        raise FsclError(f"says that it has {brief(images)} training images; a number of at least 1 would do")
    classes = wish.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, int) for c in classes)):
        raise FsclError(f"says that its classes are {brief(classes)}; a list of numbers would do")
    return Introduction(number, str(wish.get("fingerprint", "")), images, classes)  # type: ignore[arg-type]
