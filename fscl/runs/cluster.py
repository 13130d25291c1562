"""The grid on a Ray cluster: a run whose machine or process dies goes on elsewhere after its last finished experience.

Where all machines see the driver's output folder, runs are written there. Where they do not, each machine writes to a
folder of its own, and what it has written comes to the driver's after every experience.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.files import write_atomically
from fscl.runs.spec import RunSpec
from fscl.runs.sweep import Outcome, attempt

__all__ = ["RayEngine"]

RETRIES = 20  # of a run whose worker died, not of one that failed
MARK = ".fscl-grid-"  # a file by which a worker knows the driver's output folder
GRID = "grid"  # in a run's folder: the grid that began it anew, so that a second attempt goes on
FILES = ("checkpoint.pt", "bank.safetensors", "error.txt", GRID, "progress", "run.json")  # the record comes last


@dataclass(frozen=True)
class RayEngine:
    """Runs a grid on a Ray cluster; all machines need the same fscl, and the data under the same path.

    Args:
        address: of the cluster, ``host:port``; None takes ``$RAY_ADDRESS``, else one that runs on this machine, else
            starts one here.
        gpus_per_run: GPUs that a run is given; a fraction shares one.

    Raises:
        FsclError: Ray is not installed, there is no cluster at the address, or it has no machine that large.
    """

    address: str | None = None
    gpus_per_run: float = 0.0

    def __call__(self, todo: Sequence[RunSpec], out: Path, jobs: int | None, overwrite: bool) -> Iterator[Outcome]:
        """An outcome for each run, as they end.

        Args:
            jobs: runs at a time; by default as many as the cluster has cores, or GPUs, for.
        """
        ray = _ray()
        if not todo:
            return
        own = not ray.is_initialized()
        if own:
            self._connect(ray)
        grid, place = uuid.uuid4().hex, out.absolute()
        mark = place / f"{MARK}{grid}"
        try:
            self._check(ray, todo)
            place.mkdir(parents=True, exist_ok=True)
            mark.touch()
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            keeper = ray.remote(_Keeper).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote(place)
            yield from self._runs(ray, todo, out, jobs or len(todo), overwrite, grid, keeper)
        finally:
            mark.unlink(missing_ok=True)
            if own:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            host, _, port = (self.address or "").rpartition(":")
            if port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), 10).close()
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            where = self.address or "the address that RAY_ADDRESS gives"
            raise FsclError(f"no Ray cluster at {where} ({' '.join(str(error).split())[:200]})") from error

    def _check(self, ray: Any, todo: Sequence[RunSpec]) -> None:
        """Ray would wait for ever for a machine that is not there."""
        needs = {"CPU": float(max(spec.threads for spec in todo)), "GPU": self.gpus_per_run}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(machine.get(kind, 0) >= need for kind, need in needs.items()) for machine in machines):
            found = "; ".join(f"{m.get('CPU', 0):g} cores and {m.get('GPU', 0):g} GPUs" for m in machines)
            raise FsclError(
                f"a run wants {needs['CPU']:g} cores and {needs['GPU']:g} GPUs, and no machine of the cluster has "
                f"that: {found}"
            )

    def _runs(
        self, ray: Any, todo: Sequence[RunSpec], out: Path, jobs: int, overwrite: bool, grid: str, keeper: Any
    ) -> Iterator[Outcome]:
        task, place = ray.remote(_run), out.absolute()
        waiting = list(reversed(todo))
        running: dict[Any, RunSpec] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    spec = waiting.pop()
                    options = {"num_cpus": spec.threads, "num_gpus": self.gpus_per_run, "max_retries": RETRIES}
                    running[task.options(**options).remote(spec, place, overwrite, grid, keeper)] = spec
                for ended in ray.wait(list(running), num_returns=1)[0]:
                    spec = running.pop(ended)
                    try:
                        error, crashed = ray.get(ended)
                    except ray.exceptions.RayTaskError as failure:  # raised by what did the run, not a death
                        cause = failure.cause or failure
                        error, crashed = f"{type(cause).__name__}: {cause}", True
                    except ray.exceptions.RayError as failure:
                        error = f"its worker died {RETRIES + 1} times ({type(failure).__name__}); run the same again"
                        crashed = True
                    yield Outcome(spec, spec.folder(out), error, crashed)
        finally:
            for left in running:
                with contextlib.suppress(Exception):
                    ray.cancel(left, force=True)


def _run(spec: RunSpec, out: Path, overwrite: bool, grid: str, keeper: Any) -> tuple[str, bool]:
    """One run, on whichever machine; what stopped it, and whether it was a crash."""
    import ray

    if (out / f"{MARK}{grid}").exists():
        return _anew_or_on(spec, out, overwrite, grid)
    local = Path(tempfile.gettempdir()) / f"fscl-{grid}"
    folder, name = spec.folder(local), spec.folder(Path())
    for file, content in ray.get(keeper.fetch.remote(name)).items():
        write_atomically(folder / file, partial(_put, content))
    sent: dict[str, int] = {}

    def send() -> None:
        found = {file: folder / file for file in FILES if (folder / file).exists()}
        now = {file: path.stat().st_mtime_ns for file, path in found.items()}
        changed = {file: found[file].read_bytes() for file, time in now.items() if sent.get(file) != time}
        ray.get(keeper.keep.remote(name, changed, list(found)))
        sent.clear()
        sent.update(now)

    ended = _anew_or_on(spec, local, overwrite, grid, send)
    send()
    shutil.rmtree(folder, ignore_errors=True)
    return ended


def _anew_or_on(
    spec: RunSpec, out: Path, overwrite: bool, grid: str, kept: Callable[[], None] | None = None
) -> tuple[str, bool]:
    """A run that is to be made anew is begun once in a grid; an attempt that comes after a worker's death goes on."""
    note = spec.folder(out) / GRID
    begun = note.exists() and note.read_text(encoding="utf-8") == grid

    def keep() -> None:
        if overwrite:
            note.write_text(grid, encoding="utf-8")
        if kept is not None:
            kept()

    try:
        return attempt(spec, out, overwrite and not begun, keep)
    finally:
        note.unlink(missing_ok=True)


class _Keeper:
    """On the driver's machine: writes what runs elsewhere have written, and gives it to whoever takes one up."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def fetch(self, run: Path) -> dict[str, bytes]:
        folder = self.out / run
        return {file: (folder / file).read_bytes() for file in FILES if (folder / file).exists()}

    def keep(self, run: Path, files: dict[str, bytes], there: list[str]) -> None:
        """Files that changed, and the names of all that there are now."""
        folder = self.out / run
        for file in sorted(files, key=FILES.index):
            write_atomically(folder / file, partial(_put, files[file]))
        for file in set(FILES) - set(there):
            (folder / file).unlink(missing_ok=True)


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _ray() -> Any:
    # below `uv run`, Ray would send the current folder to every machine and make an environment for each worker, though
    # fscl is installed there
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise FsclError("--engine ray needs Ray: install fscl with its extra, as fscl[ray]") from error
    return ray
