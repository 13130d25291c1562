"""The grid on a Ray cluster. If a machine or process dies, its run goes on elsewhere after the last finished task.

If a machine sees the driver's output folder, its runs are written there. If not, it writes to a folder of its own and
sends its files to the driver after every task.
"""

import contextlib
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
from fscl.runs.grid.sweep import Outcome, attempt
from fscl.runs.spec import WEIGHTS, RunSpec
from fscl.runs.with_ray import import_ray

__all__ = ["RayEngine", "refuse_logs"]

RETRIES = 20  # of a run whose worker died; a run that failed is not repeated
MARK = ".fscl-grid-"  # name of a file in the driver's output folder; a machine that sees it shares the folder
GRID = "grid"  # file in a run's folder that names the grid which restarted the run; a second attempt then goes on
# Files are sent in this order. The record comes last, so it never names work that has not arrived.
FILES = ("checkpoint.pt", "bank.safetensors", WEIGHTS, "error.txt", GRID, "progress", "run.json")


def refuse_logs(logs: Sequence[str]) -> None:
    """Refuses runs that are to be logged.

    Raises:
        FsclError: there are logs.
    """
    if logs:
        raise FsclError(
            f"--log is {', '.join(logs)}; runs on a Ray cluster cannot be logged, because a machine may not see the "
            "output folder; use --engine local"
        )


@dataclass(frozen=True)
class RayEngine:
    """Runs a grid on a Ray cluster. All machines need the same fscl, and the data under the same path.

    Args:
        address: address of the cluster, ``host:port``. None takes ``$RAY_ADDRESS``, else a cluster that runs on this
            machine, else starts a cluster here.
        gpus_per_run: GPUs for each run; with a fraction, runs share a GPU.

    Raises:
        FsclError: Ray is not installed, there is no cluster at the address, no machine is large enough for a run, or a
            run is to be logged.
    """

    address: str | None = None
    gpus_per_run: float = 0.0

    def __call__(self, todo: Sequence[RunSpec], out: Path, jobs: int | None, overwrite: bool) -> Iterator[Outcome]:
        """Yields an outcome for each run when it ends.

        Args:
            todo: the runs.
            out: output folder.
            jobs: runs at a time; by default as many as the cores or GPUs of the cluster allow.
            overwrite: run finished runs again.
        """
        for spec in todo:
            refuse_logs(spec.log)
        ray = import_ray()
        if not todo:
            return
        connects = not ray.is_initialized()
        if connects:
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
            if connects:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            host, _, port = (self.address or "").rpartition(":")
            if port.isdecimal() and "/" not in host:  # without this check Ray would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), 10).close()
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            where = self.address or "the address that RAY_ADDRESS gives"
            raise FsclError(f"no Ray cluster at {where} ({' '.join(str(error).split())[:200]})") from error

    def _check(self, ray: Any, todo: Sequence[RunSpec]) -> None:
        """Refuses runs that no machine is large enough for. Ray would wait for such a machine for ever."""
        needs = {"CPU": float(max(spec.threads for spec in todo)), "GPU": self.gpus_per_run}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(machine.get(kind, 0) >= need for kind, need in needs.items()) for machine in machines):
            sizes = "; ".join(f"{m.get('CPU', 0):g} cores and {m.get('GPU', 0):g} GPUs" for m in machines)
            raise FsclError(
                f"a run needs {needs['CPU']:g} cores and {needs['GPU']:g} GPUs, and no machine of the cluster has "
                f"that: {sizes}"
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
                    except ray.exceptions.RayTaskError as failure:  # the code of the run raised; its worker lives
                        cause = failure.cause or failure
                        error, crashed = f"{type(cause).__name__}: {cause}", True
                    except ray.exceptions.RayError as failure:
                        died = f"its worker died {RETRIES + 1} times ({type(failure).__name__})"
                        error, crashed = f"{died}; run the same command again to go on", True
                    yield Outcome(spec, spec.folder(out), error, crashed)
        finally:
            for unfinished in running:
                with contextlib.suppress(Exception):
                    ray.cancel(unfinished, force=True)


def _run(spec: RunSpec, out: Path, overwrite: bool, grid: str, keeper: Any) -> tuple[str, bool]:
    """Does one run on the machine that Ray chose. Returns the error and whether it was a crash."""
    import ray

    if (out / f"{MARK}{grid}").exists():
        return _restart_once(spec, out, overwrite, grid)
    local = Path(tempfile.gettempdir()) / f"fscl-{grid}"
    folder, name = spec.folder(local), spec.folder(Path())
    for file, content in ray.get(keeper.fetch.remote(name)).items():
        write_atomically(folder / file, partial(_put, content))
    sent: dict[str, int] = {}

    def send() -> None:
        paths = {file: folder / file for file in FILES if (folder / file).exists()}
        stamps = {file: path.stat().st_mtime_ns for file, path in paths.items()}
        changed = {file: paths[file].read_bytes() for file, stamp in stamps.items() if sent.get(file) != stamp}
        ray.get(keeper.keep.remote(name, changed, list(paths)))
        sent.clear()
        sent.update(stamps)

    ended = _restart_once(spec, local, overwrite, grid, send)
    send()
    shutil.rmtree(folder, ignore_errors=True)
    return ended


def _restart_once(
    spec: RunSpec, out: Path, overwrite: bool, grid: str, kept: Callable[[], None] | None = None
) -> tuple[str, bool]:
    """With ``overwrite`` a run restarts from its beginning once in a grid; after a worker's death it goes on."""
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
    """Keeps, on the driver's machine, the files of runs on machines that do not see the output folder."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def fetch(self, run: Path) -> dict[str, bytes]:
        """The files of a run, for the machine that goes on with it."""
        folder = self.out / run
        return {file: (folder / file).read_bytes() for file in FILES if (folder / file).exists()}

    def keep(self, run: Path, files: dict[str, bytes], present: list[str]) -> None:
        """Writes the files that changed and deletes those that are no longer ``present``."""
        folder = self.out / run
        for file in sorted(files, key=FILES.index):
            write_atomically(folder / file, partial(_put, files[file]))
        for file in set(FILES) - set(present):
            (folder / file).unlink(missing_ok=True)


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)
