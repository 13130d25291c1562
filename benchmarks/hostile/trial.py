"""One hostile input: what fscl makes of it, within bounded time and memory, in a process of its own."""

import os
import pickle
import resource
import select
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fscl.errors import FsclError

__all__ = ["OUTCOMES", "Outcome", "Trial", "attempt"]

# from the best to the worst; the first two are what fscl promises
OUTCOMES = ("right", "refused", "crash", "hang", "memory", "wrong")
SECONDS = 20
MEGABYTES = 2000


@dataclass(frozen=True)
class Trial:
    """An input and the question that tells whether fscl handles it.

    Attributes:
        what: the kind of input; trials of one kind are one row of the table.
        act: gives the input to fscl and returns whether the answer is right.
        may_refuse: whether an ``FsclError`` is an answer, too.
    """

    what: str
    act: Callable[[], bool]
    may_refuse: bool = True


@dataclass(frozen=True)
class Outcome:
    """One of ``OUTCOMES``, and the error's text where there was one."""

    kind: str
    text: str = ""


def attempt(trial: Trial, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Outcome:
    """What became of a trial.

    It runs in a forked process, which ends with it: a crash, a hang or a torn file reaches no other trial.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(trial, writing, megabytes)
    os.close(writing)
    try:
        answered = bool(select.select([reading], [], [], seconds)[0])
        if not answered:
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not answered:
        return Outcome("hang", f"no answer after {seconds:g} s")
    if not said:
        return Outcome("crash", f"the process ended with status {status}")
    return pickle.loads(said)


def _in_child(trial: Trial, writing: int, megabytes: int) -> None:
    """Never returns."""
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)  # the threads of the parent were not forked
        allowed = _virtual_bytes() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        said = pickle.dumps(_outcome(trial))
    except BaseException as error:
        said = pickle.dumps(Outcome("crash", repr(error)))
    os.write(writing, said[:60_000])
    os._exit(0)


def _outcome(trial: Trial) -> Outcome:
    try:
        return Outcome("right" if trial.act() else "wrong")
    except FsclError as refusal:
        text = str(refusal)
        if not trial.may_refuse:
            return Outcome("wrong", f"refused: {text[:500]}")
        return Outcome("refused" if "\n" not in text.strip() else "crash", text[:500])
    except Exception as error:
        text = f"{type(error).__name__}: {error}"[:500]
        return Outcome("memory" if isinstance(error, MemoryError) or "allocate memory" in text else "crash", text)


def _virtual_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
