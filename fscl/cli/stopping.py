"""SIGTERM and SIGHUP end a command as Ctrl-C does. Schedulers send the first, closed terminals the second."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

__all__ = ["STOPPED", "ToldToStop", "told_to_stop"]

STOPPED = "stopped; run the same command again to go on"
PATIENCE = 5.0  # seconds in which a command may end by itself


class ToldToStop(SystemExit):
    """A signal of another process, or of a closed terminal, asked the command to end."""


@contextlib.contextmanager
def told_to_stop() -> Iterator[None]:
    """Within the block both signals raise :class:`ToldToStop`. An ignored signal, as under ``nohup``, stays ignored."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        numbers = []
    handled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    timers: list[threading.Timer] = []

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        # A library's callback can swallow the exception, so a timer ends the process. Finished work is on disk.
        timers.append(threading.Timer(PATIENCE, _end_at_once, [128 + number]))
        timers[-1].daemon = True
        timers[-1].start()
        raise ToldToStop(128 + number)

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _end_at_once(code: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(code)
