"""Flower's grid without Flower's processes: clients are called in this process, or by a pool of processes."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fscl.federated.flower_private import (
    CLIENT_CRASHED,
    CLIENT_RAISED,
    SERVER,
    from_bytes,
    give_id,
    to_bytes,
    use_identity,
)

__all__ = ["BytesApp", "LocalGrid", "PooledGrid", "RunGrid"]


# Answers messages in their order, all as bytes. A text in place of an answer says why there is none.
Pool = Callable[[Sequence[bytes]], Sequence[bytes | str]]


class BytesApp:
    """A ClientApp over messages as bytes. A client that raises gives an error reply, as in a deployment.

    Args:
        app: the clients' app.
        clients: number of clients. Their ``partition-id`` counts from 0.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        use_identity(SERVER)
        self._app, self._clients = app, clients
        self.states: dict[int, RecordDict] = {}

    def __call__(self, data: bytes) -> bytes:
        message = from_bytes(data)
        node = message.metadata.dst_node_id
        client = node - SERVER - 1
        state = self.states.pop(client, None)
        config: UserConfig = {"partition-id": client, "num-partitions": self._clients}
        context = Context(0, node, config, RecordDict() if state is None else state, {})
        try:
            reply = self._app(message, context)
        except Exception as error:  # as Flower does: the server decides what it means
            reply = Message(Error(CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        if len(context.state):
            self.states[client] = context.state
        return to_bytes(reply)


class RunGrid(Grid):
    """What grids of one run have in common."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: object) -> None:
        """There is one run only, and it is set."""


class LocalGrid(RunGrid):
    """Clients in this process, one after another. Messages are bytes between them, so that nothing else can pass.

    Args:
        app, clients: as for :class:`BytesApp`.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        use_identity(SERVER)
        self._app, self._clients = BytesApp(app, clients), clients
        self._states = self._app.states
        self._waiting: dict[str, Message] = {}
        self._numbers = count()

    def get_node_ids(self) -> list[int]:
        return [SERVER + 1 + client for client in range(self._clients)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(message) for message in messages]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        replies = {reply.metadata.reply_to_message_id: reply for reply in self.send_and_receive(messages)}
        self._waiting |= replies
        return list(replies)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._waiting.pop(name) for name in message_ids if name in self._waiting]

    @property
    def run(self) -> object:  # type: ignore[override]
        raise NotImplementedError("clients of this process belong to no run")

    def _reply(self, message: Message) -> Message:
        return from_bytes(self._app(self._named(message)))

    def _named(self, message: Message) -> bytes:
        give_id(message, f"message {next(self._numbers)}")
        return to_bytes(message)


class PooledGrid(LocalGrid):
    """Clients in processes of this machine, several at a time.

    Args:
        clients: number of clients.
        pool: answers messages, each by a :class:`BytesApp` in some process. Clients must keep what they keep in a
            folder, since each message of a client may come to another process.
    """

    def __init__(self, clients: int, pool: Pool) -> None:
        super().__init__(ClientApp(), clients)
        self._pool = pool

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        answers = self._pool([self._named(message) for message in sent])
        return [
            Message(Error(CLIENT_CRASHED, answer), reply_to=message) if isinstance(answer, str) else from_bytes(answer)
            for message, answer in zip(sent, answers, strict=True)
        ]
