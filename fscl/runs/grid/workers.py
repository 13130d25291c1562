"""Worker processes, one for each run. On Linux they are forked from a server that has imported Avalanche once."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from fscl.errors import FsclError

__all__ = ["FOR_FEDERATIONS", "FOR_STREAMS", "Died", "each_in_a_worker", "in_a_worker", "warm_up"]

# otherwise each worker would import them: Avalanche takes about 8 s
FOR_STREAMS = ["fscl.continual.repaired", "fscl.runs.run", "fscl.runs.stream_run", "sklearn.datasets"]
FOR_FEDERATIONS = ["fscl.runs.run", "fscl.runs.federation.run", "sklearn.datasets"]

PATIENCE = 5.0  # seconds for a worker to end after its result

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """A worker ended without a result.

    Attributes:
        exit_code: as of ``multiprocessing.Process``: negative if a signal of that number killed it.
    """

    exit_code: int


def warm_up(modules: Sequence[str] = FOR_STREAMS) -> None:
    """Starts the server that forks workers, if it is not running. It imports these modules while the caller goes on."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver, resource_tracker

        resource_tracker.ensure_running()  # which would unblock SIGINT, if the server had to start it
        _context().set_forkserver_preload(list(modules))
        with _sigint_blocked():
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
    running: list[tuple[Any, Connection, Item]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                item = waiting.pop()
                receiver, sender = _context().Pipe(duplex=False)
                # the server's environment is that of its start
                worker = _context().Process(target=_work, args=(sender, do, item, dict(os.environ)))
                with _without_main_module():
                    worker.start()
                sender.close()
                running.append((worker, receiver, item))
            # of the pipe a child of the worker may have a copy, so its end does not tell the end of the worker
            ready = wait([end for worker, receiver, _ in running for end in (receiver, worker.sentinel)])
            for worker, receiver, item in [entry for entry in running if {entry[1], entry[0].sentinel} & {*ready}]:
                running = [entry for entry in running if entry[0] is not worker]
                yield item, _result(worker, receiver)
    finally:
        for worker, *_ in running:
            worker.kill()
        for worker, *_ in running:
            worker.join()


def in_a_worker(do: Callable[[Item], Result], item: Item) -> Result:
    """Calls ``do`` in a process of its own, so that this process need not import what ``do`` needs.

    Raises:
        FsclError: ``do`` raised it, or the worker ended without a result.
    """
    [(_, answer)] = each_in_a_worker(_answer, [(do, item)], 1)
    if isinstance(answer, Died):
        raise FsclError(f"a worker process ended with exit code {answer.exit_code} and without a result")
    if isinstance(answer, str):
        raise FsclError(answer)
    return answer[0]


def _answer(call: tuple[Callable[[Item], Result], Item]) -> tuple[Result] | str:
    """The result, or the message of the refusal."""
    do, item = call
    try:
        return (do(item),)
    except FsclError as error:
        return str(error)


def _result(worker: Any, receiver: Connection) -> Any:
    """What a worker sent, or that it died. A worker that goes on after its result, because of a thread, is killed."""
    try:
        with receiver:
            result = receiver.recv() if receiver.poll() else None
    except EOFError:
        result = None
    worker.join(PATIENCE)
    if worker.is_alive():
        worker.kill()
        worker.join()
    return Died(worker.exitcode) if result is None else result[0]


def _context() -> Any:
    # macOS's own libraries do not survive a fork
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """The server inherits it: otherwise Ctrl-C while it imports Avalanche prints its traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Workers need nothing of the caller's script; ``multiprocessing`` would run it again in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(sender: Connection, do: Callable[[Any], Any], item: Any, environment: dict[str, str]) -> None:
    gc.freeze()  # what the server imported is never collected, and looking through it would take time in every run
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches all processes of a terminal; the parent reports it
        sender.send((do(item),))


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone. A killed parent stops no workers, and they would train for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
