"""SIGTERM and SIGHUP, which schedulers and closed terminals send, end a command as Ctrl-C does."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

__all__ = ["STOPPED", "ToldToStop", "told_to_stop"]

STOPPED = "stopped; run the same command again to go on"
PATIENCE = 5.0  # seconds


class ToldToStop(SystemExit):
    """Another process, or a terminal that was closed, has asked for the end."""


@contextlib.contextmanager
def told_to_stop() -> Iterator[None]:
    """Within the block :class:`ToldToStop` is raised at either signal, unless it is ignored, as below ``nohup``."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        numbers = []
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    late: list[threading.Timer] = []

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second time it ends at once
        # a library's callback can swallow what is raised here; what is finished is on disk, whatever ends it
        late.append(threading.Timer(PATIENCE, _end_at_once, [128 + number]))
        late[-1].daemon = True
        late[-1].start()
        raise ToldToStop(128 + number)

    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for timer in late:
            timer.cancel()
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end_at_once(code: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(code)
