"""Clients of a federation in worker processes, several at a time. Their numbers are those of one process."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fscl.federated import BytesApp, client_app
from fscl.runs.federation.building import build_clients
from fscl.runs.spec import RunSpec
from fscl.runs.workers import FOR_FEDERATIONS, Died, StandingWorkers, warm_up

__all__ = ["ClientPool"]


class ClientPool:
    """Answers messages to clients. Each worker has built the federation once; clients keep their parts in a folder.

    A worker that dies, for example because memory runs out, is replaced; its client has no answer in this round.

    Args:
        spec: the run; ``spec.workers`` is the number of processes.
        folder: where clients keep what stays at them.
    """

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        warm_up(FOR_FEDERATIONS)
        # the server that forks workers may have started in another folder
        self._workers: StandingWorkers[bytes, bytes] = StandingWorkers(_app, (spec, folder.absolute()), spec.workers)

    def __call__(self, messages: Sequence[bytes]) -> list[bytes | str]:
        return [_death(answer.exit_code) if isinstance(answer, Died) else answer for answer in self._workers(messages)]

    def close(self) -> None:
        self._workers.close()


def _app(task: tuple[RunSpec, Path]) -> BytesApp:
    spec, folder = task
    torch.set_num_threads(spec.threads)
    clients = build_clients(spec, folder)
    return BytesApp(client_app(lambda context: clients), len(clients.train))


def _death(exit_code: int) -> str:
    return f"its process was killed by signal {-exit_code}" if exit_code < 0 else f"its process ended with {exit_code}"
