"""Tries one hostile input in a process of its own, with limited time and memory."""

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

# from the best to the worst; fscl promises the first two
OUTCOMES = ("right", "refused", "crash", "hang", "memory", "wrong")
SECONDS = 20
MEGABYTES = 2000


@dataclass(frozen=True)
class Trial:
    """An input, and a function that tells whether fscl handles it.

    Attributes:
        group: the name of similar inputs; trials of one group are one row of the table.
        act: gives the input to fscl and returns whether the answer is right.
        may_refuse: whether an ``FsclError`` is acceptable, too.
    """

    group: str
    act: Callable[[], bool]
    may_refuse: bool = True


@dataclass(frozen=True)
class Outcome:
    """One of ``OUTCOMES``, and the text of the error, if there was one."""

    kind: str
    text: str = ""


def attempt(trial: Trial, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Outcome:
    """The outcome of a trial.

    The trial runs in a forked process, so its crash, hang or damaged state does not reach other trials.
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
            answer = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not answered:
        return Outcome("hang", f"no answer after {seconds:g} s")
    if not answer:
        return Outcome("crash", f"the process ended with status {status}")
    return pickle.loads(answer)


def _in_child(trial: Trial, writing: int, megabytes: int) -> None:
    """Runs the trial, writes its outcome to the pipe and ends the process."""
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)  # the threads of the parent were not forked
        allowed = _virtual_bytes() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        answer = pickle.dumps(_outcome(trial))
    except BaseException as error:
        answer = pickle.dumps(Outcome("crash", repr(error)))
    os.write(writing, answer[:60_000])
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
