"""One run of a federation: what is done before, during and after its rounds."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fscl.errors import FsclError
from fscl.federated import FederatedStrategy, LocalGrid, PooledGrid, client_app, simulate
from fscl.federated.history import History, Round
from fscl.files import written_together
from fscl.runs.environment import machine, versions
from fscl.runs.federation.building import build_server, images_of, recipe_of, split_of
from fscl.runs.federation.pool import ClientPool, Clients
from fscl.runs.logs import Logged, remove_logs
from fscl.runs.records.federated import Evaluated, FederatedRecord, RoundRecord
from fscl.runs.records.parts import Resumed
from fscl.runs.resume import CHECKPOINT, load_into, write_checkpoint
from fscl.runs.spec import Progress, RunSpec
from fscl.runs.with_ray import import_ray

__all__ = ["KEPT", "SERVER", "begin", "check_images", "clients_on", "new_record", "train"]

BANK = "bank.safetensors"
SERVER = "server.pt"  # the server of a finished run
KEPT = "clients"  # folder of what stays at each client


# the grid of a deployment, and the seconds that a round waits for clients
_elsewhere: ContextVar[tuple[Any, float] | None] = ContextVar("_elsewhere", default=None)


@contextmanager
def clients_on(grid: Any, timeout: float) -> Iterator[None]:
    """Within the block the clients of a run are those of Flower's grid, in place of processes of this machine."""
    token = _elsewhere.set((grid, timeout))
    try:
        yield
    finally:
        _elsewhere.reset(token)


class Work:
    """A federation that is under way: its server, and where its clients are."""

    def __init__(self, spec: RunSpec, folder: Path, server: FederatedStrategy, progress: Progress | None) -> None:
        self.server, self.progress, self.spec = server, progress, spec
        self.rounds = recipe_of(spec).federation.rounds
        self.clients = Clients(spec, folder / KEPT)

    def start(self, after_round: Callable[[], object]) -> None:
        """Does all rounds that are left."""
        server, app = self.server, client_app(self.clients)
        elsewhere = _elsewhere.get()
        if elsewhere is not None:
            grid, timeout = elsewhere
            server.start(grid, num_rounds=self.rounds, timeout=timeout, after_round=after_round)
        elif self.spec.simulated:
            import_ray()
            start = partial(server.start, num_rounds=self.rounds, after_round=after_round)
            simulate(start, app, server.clients, self.spec.workers)
        elif self.spec.workers > 1:
            pool = ClientPool(self.spec, self.clients.folder)
            try:
                server.start(PooledGrid(server.clients, pool), num_rounds=self.rounds, after_round=after_round)
            finally:
                pool.close()
        else:
            server.start(LocalGrid(app, server.clients), num_rounds=self.rounds, after_round=after_round)

    @property
    def step(self) -> int:
        """The last round, for logs."""
        return self.server.round


def new_record(spec: RunSpec, facts: dict[str, Any]) -> FederatedRecord:
    """The record of a federation before its first round."""
    return FederatedRecord(**facts, **_divided(spec), rounds=[], evaluated=[], accuracy=np.empty((0, 0)))


def _divided(spec: RunSpec) -> dict[str, Any]:
    """What a record says of the clients' images."""
    recipe = recipe_of(spec)
    train, _ = images_of(recipe.data.name, spec.data, recipe.data.image_size)
    split = split_of(spec)
    return {
        "classes": list(train.classes),
        "counts": split.counts(train.labels.numpy()).astype(float),
        "tested": [len(indices) for indices in split.test],
        "groups": list(split.groups),
    }


def check_images(record: FederatedRecord, spec: RunSpec, folder: Path) -> None:
    """Checks that the clients have the images with which a run in a folder began, as far as its record tells.

    Raises:
        FsclError: they have other images.
    """
    for key, values in _divided(spec).items():
        if not np.array_equal(values, getattr(record, key)):
            raise FsclError(
                f"{folder}: the {key} of its clients are not those of the images that are there now; give the data "
                "folder with which the run was made"
            )


def begin(
    spec: RunSpec, folder: Path, record: FederatedRecord, state: dict[str, Any] | None, progress: Progress | None
) -> Work:
    """Builds server and clients and loads the server's state, if there is one. The record is updated, also on disk."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    server = build_server(spec)
    here = machine(spec.device, spec.threads, "float32")
    packing, method = server.method.packing, server.method
    if state is None:
        record.machine = here
        record.sizes = {part: 4 * packing.size(part) for part in packing.entries}
        record.stays = [part for part in packing.entries if part in method.stays]
    else:
        check_images(record, spec, folder)
        load_into(server, state, folder / CHECKPOINT, "method")
        record.resumed = [*record.resumed, Resumed(after=server.round, versions=versions(), machine=here)]
    record.write(folder / "run.json")
    if state is None:  # files of an overwritten run
        for name in (CHECKPOINT, BANK, SERVER):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / KEPT, ignore_errors=True)
        remove_logs(folder)
    return Work(spec, folder, server, progress)


def train(
    record: FederatedRecord,
    work: Work,
    folder: Path,
    kept: Callable[[], None],
    weights: bool,
    log: Logged | None,
) -> None:
    """Does all rounds that are left. The record on disk is never ahead of the checkpoint."""
    server = work.server

    def after_round() -> None:
        _take(record, server)
        last = server.round == work.rounds
        if last:
            _finish(record, server)
        with written_together():
            if last and (bank := server.method.bank()) is not None:
                bank.save(folder / BANK)
            if weights or not last:
                write_checkpoint(folder / (SERVER if last else CHECKPOINT), record, server.state_dict())
            record.write(folder / "run.json")
        if log is not None:
            log(server.round, _logged(record), {})
        if work.progress is not None:
            work.progress(server.round, 0, 1)
        kept()

    if work.progress is not None:
        work.progress(server.round, 0, 1)
    work.start(after_round)
    if not weights:
        shutil.rmtree(folder / KEPT, ignore_errors=True)


def _take(record: FederatedRecord, server: FederatedStrategy) -> None:
    """Adds to the record what the server's history has more."""
    history: History = server.history
    record.rounds = [*record.rounds, *map(_round, history.rounds[len(record.rounds) :])]
    for evaluation in history.evaluations[len(record.evaluated) :]:
        groups = server.method.groups()
        row = np.full(record.clients, np.nan)
        for client, accuracy in evaluation.accuracy.items():
            row[client] = accuracy
        record.accuracy = np.array([*record.accuracy, row])
        record.evaluated = [
            *record.evaluated,
            Evaluated(
                round=evaluation.round,
                sent=evaluation.sent,
                received=evaluation.received,
                seconds=evaluation.seconds,
                groups=[groups.get(client, -1) for client in range(record.clients)] if groups else [],
                failed=_by_name(evaluation.failed),
            ),
        ]


def _round(done: Round) -> RoundRecord:
    return RoundRecord(**(asdict(done) | {"left_out": _by_name(done.left_out)}))


def _by_name(reasons: dict[int, str]) -> dict[str, str]:
    """With texts as keys, as JSON has them."""
    return {str(client): reason for client, reason in reasons.items()}


def _finish(record: FederatedRecord, server: FederatedStrategy) -> None:
    record.status = "finished"
    record.travels = list(server.method.travels(server.round))
    if compared := server.method.compared():
        matrix = np.full((record.clients, record.clients), np.nan)
        matrix[np.ix_(compared, compared)] = server.method.similarity().double().numpy()
        record.similarity = matrix


def _logged(record: FederatedRecord) -> dict[str, float]:
    last = record.rounds[-1]
    values = {"bytes": float(record.bytes_until(last.number)), "clients": float(len(last.answered))}
    if last.loss is not None:
        values["loss"] = last.loss
    if record.evaluated and record.evaluated[-1].round == last.number:
        values["accuracy"] = float(np.nanmean(record.accuracy[-1]))
    return values
