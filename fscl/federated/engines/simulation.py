"""Clients in Flower's simulation, on a Ray cluster that is started on this machine."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fscl.federated.engines.grid import RunGrid
from fscl.federated.engines.server_app import server_app
from fscl.federated.flower_private import CLIENT_CRASHED, SERVER, use_identity

__all__ = ["simulate"]

PAUSE = 0.05  # seconds between two looks for replies
RAY_LOST_IT = "<class 'ray.exceptions.Actor"  # begins Flower's reason for the failure of a client whose process died
DIED = "its process died, or was not back yet"


def simulate(server: Callable[[Grid], object], app: ClientApp, clients: int, workers: int = 1) -> None:
    """Calls ``server`` with a grid of simulated clients. What it raises is raised here.

    A process that dies is started again, which takes seconds. Clients whose messages come to it meanwhile fail.

    Args:
        server: what the server does, such as ``lambda grid: strategy.start(grid, num_rounds=3)``.
        app: the clients' app. Ray sends it with every message, so it should hold no images, but load them once.
        clients: number of clients. Their ``partition-id`` counts from 0.
        workers: processes of one core each, in which clients work at a time.
    """
    from flwr.simulation import run_simulation

    failures: list[BaseException] = []
    stopped = threading.Event()
    threads = torch.get_num_threads()  # Flower calls the server in a thread, and each thread has a number of its own

    def serve(grid: Grid, context: Context) -> None:
        torch.set_num_threads(threads)
        try:
            server(_StoppableGrid(grid, stopped))
        except BaseException as error:  # Flower would lose an interrupt
            failures.append(error)

    # Flower hands client_resources to Ray as options of its actors, and never replaces one that died
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": -1}, "init_args": {
        "address": "local", "num_cpus": workers, "log_to_driver": False, "logging_level": logging.ERROR,
    }}  # fmt: skip
    with _quiet():
        try:
            run_simulation(server_app(serve), app, num_supernodes=clients, backend_config=resources)  # type: ignore[arg-type]
        finally:
            stopped.set()  # an interrupt of this thread ends the server's, too
            use_identity(SERVER)  # as a grid of this process left it
    if failures:
        raise failures[0]


class _StoppableGrid(RunGrid):
    """A grid whose waiting for replies ends when the simulation does."""

    def __init__(self, grid: Grid, stopped: threading.Event) -> None:
        self._grid, self._stopped = grid, stopped

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        waiting = set(self._grid.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            if self._stopped.wait(PAUSE):
                raise InterruptedError("the simulation has ended")
            arrived = list(self._grid.pull_messages(waiting))
            replies += map(_in_words, arrived)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    @property
    def run(self) -> object:  # type: ignore[override]
        return self._grid.run


def _in_words(reply: Message) -> Message:
    """The reply, with a short reason in the place of a page of Ray's if the client's process died."""
    if reply.has_error() and (reply.error.reason or "").startswith(RAY_LOST_IT):
        reply.error = Error(CLIENT_CRASHED, DIED)
    return reply


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within the block Flower logs nothing: neither that ``run_simulation`` is deprecated nor clients that failed.

    The server names the clients that failed. Flower also changes the path of imports, for Ray's processes.
    """
    logger, path = logging.getLogger("flwr"), os.environ.get("PYTHONPATH")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = path
