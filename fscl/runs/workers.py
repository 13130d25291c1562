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
from typing import Any, Generic, TypeVar

from fscl.errors import FsclError

__all__ = ["FOR_FEDERATIONS", "FOR_STREAMS", "Died", "StandingWorkers", "each_in_a_worker", "in_a_worker", "warm_up"]

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
                worker, receiver = _started(_work, do, item)
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


class StandingWorkers(Generic[Item, Result]):
    """Workers that stay: each makes a function once, and calls it with one item after another.

    A worker that dies is replaced. If this process is killed, the workers end by themselves.

    Args:
        make: a function at the top level of a module. ``make(argument)`` is the function that is called.
        argument: must be picklable.
        number: workers; they start when they are needed.
    """

    def __init__(self, make: Callable[[Any], Callable[[Item], Result]], argument: Any, number: int) -> None:
        self._make, self._argument, self._number = make, argument, number
        self._idle: list[tuple[Any, Connection]] = []

    def __call__(self, items: Sequence[Item]) -> list[Result | Died]:
        """The results for all items, in their order; :class:`Died` for an item whose worker ended without a result."""
        results: list[Any] = [None] * len(items)
        waiting = list(reversed(range(len(items))))
        busy: list[tuple[Any, Connection, int]] = []
        try:
            while waiting or busy:
                while waiting and len(busy) < self._number:
                    busy.append((*self._give(items[waiting[-1]]), waiting.pop()))
                ready = wait([signal for worker, end, _ in busy for signal in (end, worker.sentinel)])
                for entry in [entry for entry in busy if {entry[1], entry[0].sentinel} & {*ready}]:
                    busy.remove(entry)
                    worker, end, index = entry
                    if (answer := _received(end)) is None:
                        results[index] = _result(worker, end)
                    else:
                        results[index] = answer[0]
                        self._idle.append((worker, end))
        finally:
            self._end(busy)
        return results

    def _give(self, item: Item) -> tuple[Any, Connection]:
        """A worker that has been given an item."""
        while self._idle:
            worker, end = self._idle.pop()
            try:
                end.send(item)
            except OSError:  # it died while it had nothing to do
                self._end([(worker, end, 0)])
            else:
                return worker, end
        worker, end = _started(_stand, self._make, self._argument, daemon=True)  # at the latest, ends with this process
        with contextlib.suppress(OSError):  # it died, which its sentinel tells
            end.send(item)
        return worker, end

    def close(self) -> None:
        """Ends all workers."""
        self._end([(worker, end, 0) for worker, end in self._idle])
        self._idle = []

    def _end(self, workers: Sequence[tuple[Any, Connection, int]]) -> None:
        for worker, _, _ in workers:
            worker.kill()
        for worker, end, _ in workers:
            worker.join()
            end.close()


def _started(work: Callable[..., None], *arguments: Any, daemon: bool = False) -> tuple[Any, Connection]:
    """A worker that does ``work(connection, environment, *arguments)``, and this process's end of the connection."""
    here, there = _context().Pipe()
    # the server's environment is that of its start
    worker = _context().Process(target=work, args=(there, dict(os.environ), *arguments), daemon=daemon)
    with _without_main_module():
        worker.start()
    there.close()
    return worker, here


def _result(worker: Any, receiver: Connection) -> Any:
    """What a worker sent, or that it died. A worker that goes on after its result, because of a thread, is killed."""
    with receiver:
        result = _received(receiver)
    worker.join(PATIENCE)
    if worker.is_alive():
        worker.kill()
        worker.join()
    return Died(worker.exitcode) if result is None else result[0]


def _received(end: Connection) -> Any:
    """What is to be read, a tuple of one result; None if there is nothing."""
    try:
        return end.recv() if end.poll() else None
    except (EOFError, OSError):
        return None


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


def _work(sender: Connection, environment: dict[str, str], do: Callable[[Any], Any], item: Any) -> None:
    _begin(environment)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches all processes of a terminal; the parent reports it
        sender.send((do(item),))


def _stand(end: Connection, environment: dict[str, str], make: Callable[[Any], Any], argument: Any) -> None:
    _begin(environment)
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        do = make(argument)
        while True:
            end.send((do(end.recv()),))


def _begin(environment: dict[str, str]) -> None:
    gc.freeze()  # what the server imported is never collected, and looking through it would take time in every run
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone. A killed parent stops no workers, and they would train for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
