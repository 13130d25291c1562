"""Worker processes, one for each run. On Linux they are forked from a server that has imported Avalanche once."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

__all__ = ["Died", "each_in_a_worker", "warm_up"]

PRELOADED = ["fscl.continual.trainer", "fscl.runs.run"]  # otherwise each worker would import them, in about 8 s

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """A worker ended without a result.

    Attributes:
        signal: the number of the signal that killed it, 0 if it ended by itself.
    """

    signal: int


def warm_up() -> None:
    """Starts the server that forks workers. It imports Avalanche while the caller goes on."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        _context().set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def each_in_a_worker(
    do: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, Result | Died]]:
    """Calls ``do`` with every item, each call in a process of its own, and yields each result when it is ready.

    If the caller stops early, all workers are killed. If this process is killed, the workers end by themselves.

    Args:
        do: a function at the top level of a module. Its results must be picklable.
        items: arguments of ``do``. They must be picklable.
        jobs: workers at a time.

    Yields:
        Each item with its result, or with :class:`Died` if its worker ended without a result.
    """
    warm_up()
    waiting = list(reversed(items))
    running: dict[Connection, tuple[Any, Item]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                item = waiting.pop()
                receiver, sender = _context().Pipe(duplex=False)
                worker = _context().Process(target=_work, args=(sender, do, item))
                worker.start()
                sender.close()  # only the worker has a sender now, so its death closes the pipe
                running[receiver] = worker, item
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                worker, item = running.pop(receiver)
                result: Result | Died
                with receiver:
                    try:
                        result = receiver.recv()
                        worker.join()
                    except EOFError:
                        worker.join()
                        result = Died(max(0, -worker.exitcode))
                yield item, result
    finally:
        for worker, _ in running.values():
            worker.kill()
        for worker, _ in running.values():
            worker.join()


def _context() -> Any:
    # macOS's own libraries do not survive a fork
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def _work(sender: Connection, do: Callable[[Any], Any], item: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches all processes of a terminal; the parent reports it
        sender.send(do(item))


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone. A killed parent stops no workers, and they would train for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
