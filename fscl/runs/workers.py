"""Worker processes, one for each run. On Linux a server that has imported Avalanche once forks them."""

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

PRELOADED = ["fscl.continual.trainer", "fscl.runs.run"]  # what each worker would import otherwise, in some 8 s

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
    """Starts the server. It imports Avalanche while the caller goes on."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        _context().set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def each_in_a_worker(
    do: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, Result | Died]]:
    """Calls ``do`` with every item, ``jobs`` at a time, each call in a process of its own, and yields as they end.

    All workers are killed if the caller stops early, and they end by themselves if this process is killed.

    Args:
        do: a function of a module, with results that can be pickled.
        items: can be pickled, too.
        jobs: workers at a time.
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
                sender.close()  # so that the worker has the only one, and its death is the end of the pipe
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
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C goes to all processes of a terminal, and the parent tells
        sender.send(do(item))


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: killed, it told nobody, and training would go on unseen for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
