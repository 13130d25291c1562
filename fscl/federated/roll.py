"""The roll of clients: which client is at which of Flower's nodes, and from which client a reply is."""

import time
import warnings
from collections.abc import Callable, Iterable
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


class Introduction(NamedTuple):
    """What a client says of itself: its number, the fingerprint of its network, and its classes if they matter."""

    client: int
    fingerprint: str
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
        self._warned: set[str] = set()

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
            silent = self._introduce(grid, sorted(set(nodes) - self._numbers.keys()), introduced)
            faults = list(silent.values())
            present: dict[int, int] = {}
            for node, number in self._numbers.items():
                if node in nodes:
                    if number in present:
                        # one of them may be a client that was started again, so that the newer one counts
                        faults.append(f"nodes {present[number]} and {node} both say that they are client {number}")
                    present[number] = node
            slow = [fault for fault in faults if fault.endswith(SLOW)]
            if is_first and len(nodes) - len(slow) >= self.clients > len(present):
                raise FsclError(f"{len(present)} of {self.clients} clients are there: {'; '.join(faults)}")
            for fault in faults:
                self._warn(fault)
            if len(present) >= least:
                return dict(sorted(present.items()))
            if time.monotonic() - began > QUERY_SECONDS:
                self._warn(f"waiting for {least} clients; there are {', '.join(map(str, sorted(present))) or 'none'}")
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

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            warnings.warn(text, stacklevel=3)
            self._warned.add(text)

    def _introduce(self, grid: Grid, nodes: list[int], introduced: Introduced) -> dict[int, str]:
        """Asks nodes which client they are, and returns what is wrong, by node."""
        asked = [Message(RecordDict(), node, "query") for node in nodes]
        replies = list(grid.send_and_receive(asked, timeout=QUERY_SECONDS)) if asked else []
        node_of = {message.metadata.message_id: node for node, message in zip(nodes, asked, strict=True)}
        faults = {node: f"node {node} {SLOW}" for node in nodes}
        for reply in replies:
            node = node_of.get(reply.metadata.reply_to_message_id)
            if node is None:
                continue
            try:
                introduction = _introduction(reply, self.clients)
                introduced(introduction)
            except FsclError as error:
                faults[node] = f"node {node} {error}"
                continue
            faults.pop(node, None)
            self._numbers[node] = introduction.client
        return faults


SLOW = f"did not say within {QUERY_SECONDS:.0f} s which client it is; it is asked again"


def _introduction(reply: Message, clients: int) -> Introduction:
    """What a client says of itself.

    Raises:
        FsclError: it failed, or gives no number of a client.
    """
    if reply.has_error():
        raise FsclError(f"failed when it was asked which client it is: {reason_of(reply)}")
    wish = reply.content.config_records.get(WISH, ConfigRecord())
    number = wish.get("client")
    if not isinstance(number, int) or number < 0:
        raise FsclError(
            "does not say which client it is; let its ClientApp answer queries with "
            "fscl.federated.introduce(message, context)"
        )
    if number >= clients:
        raise FsclError(f"says that it is client {number}, and there are {clients} clients, counted from 0")
    classes = wish.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, int) for c in classes)):
        raise FsclError(f"says that its classes are {brief(classes)}; a list of numbers would do")
    return Introduction(number, str(wish.get("fingerprint", "")), classes)  # type: ignore[arg-type]
