"""Clients of a federation in other processes, several at a time. Their numbers are those of one process."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from fscl.federated import BytesApp, Federation, client_app
from fscl.runs.federation.building import build_clients, recipe_of
from fscl.runs.spec import RunSpec
from fscl.runs.workers import FOR_FEDERATIONS, Died, StandingWorkers, warm_up

__all__ = ["ClientPool", "Clients"]


class Clients:
    """Gives the clients of a run. A process builds them once, and sends none of their images to others."""

    _built: ClassVar[tuple[str, Federation] | None] = None

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        # another process may have started in another folder
        self.spec, self.folder = spec, folder.absolute()

    def __call__(self, context: object = None) -> Federation:
        key = f"{self.folder} {self.spec}"
        if Clients._built is None or Clients._built[0] != key:
            torch.set_num_threads(self.spec.threads)
            Clients._built = (key, build_clients(self.spec, self.folder))
        return Clients._built[1]


class ClientPool:
    """Answers messages to clients. Each worker has built the federation once; clients keep their parts in a folder.

    A worker that dies, for example because memory runs out, is replaced; its client has no answer in this round.

    Args:
        spec: the run; ``spec.workers`` is the number of processes.
        folder: where clients keep what stays at them.
    """

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        warm_up(FOR_FEDERATIONS)
        self._workers: StandingWorkers[bytes, bytes] = StandingWorkers(_app, (spec, folder.absolute()), spec.workers)

    def __call__(self, messages: Sequence[bytes]) -> list[bytes | str]:
        return [_death(answer.exit_code) if isinstance(answer, Died) else answer for answer in self._workers(messages)]

    def close(self) -> None:
        self._workers.close()


def _app(task: tuple[RunSpec, Path]) -> BytesApp:
    spec, folder = task
    return BytesApp(client_app(Clients(spec, folder)), recipe_of(spec).federation.clients)


def _death(exit_code: int) -> str:
    return f"its process was killed by signal {-exit_code}" if exit_code < 0 else f"its process ended with {exit_code}"
