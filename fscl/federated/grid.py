"""Flower's grid without Flower's processes: clients are called one after another in this process."""

from collections.abc import Iterable
from itertools import count

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fscl.federated.flower_private import CLIENT_RAISED, from_bytes, give_id, to_bytes, use_identity

__all__ = ["LocalGrid"]

SERVER = 1  # Flower's node of the server


class LocalGrid(Grid):
    """Clients in this process. Messages are written and read as bytes, so that nothing else can pass.

    A client that raises gives an error reply, as in a deployment.

    Args:
        app: the clients' app.
        clients: number of clients. Their ``partition-id`` counts from 0.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        use_identity(SERVER)
        self._app, self._clients = app, clients
        self._states: dict[int, RecordDict] = {}
        self._replies: dict[str, Message] = {}
        self._numbers = count()

    def get_node_ids(self) -> list[int]:
        return [SERVER + 1 + client for client in range(self._clients)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(message) for message in messages]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        replies = [self._reply(message) for message in messages]
        self._replies |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [reply.metadata.reply_to_message_id for reply in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: object) -> None:
        """There is one run only."""

    @property
    def run(self) -> object:  # type: ignore[override]
        raise NotImplementedError("clients of this process belong to no run")

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        client = node - SERVER - 1
        state = self._states.pop(client, None)
        config: UserConfig = {"partition-id": client, "num-partitions": self._clients}
        context = Context(0, node, config, RecordDict() if state is None else state, {})
        give_id(message, f"message {next(self._numbers)}")
        message = from_bytes(to_bytes(message))
        try:
            reply = self._app(message, context)
        except Exception as error:  # as Flower does: the server decides what it means
            reply = Message(Error(CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        if len(context.state):
            self._states[client] = context.state
        return from_bytes(to_bytes(reply))
