"""A real Flower deployment on this machine's loopback: a SuperLink, SuperNodes, and the end of all their processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


class Deployment:
    """A SuperLink and SuperNodes. Nothing but 127.0.0.1 is connected to, and nothing outside the folder is written.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        home = folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # Flower starts its processes by name
            "HOME": str(folder),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.jobs: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.spawn("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", self.port)
        end = time.monotonic() + 90
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            log = (self.folder / "superlink.log").read_text()
            assert self.jobs[0].poll() is None, log
            assert time.monotonic() < end, log
            time.sleep(0.1)

    def node(self, client: int, clients: int, **config: object) -> None:
        """Starts the SuperNode of a client, or starts it again."""
        words = [f"partition-id={client}", f"num-partitions={clients}", *(f'{k}="{v}"' for k, v in config.items())]
        where = ("--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1", "--port", free_port())
        command = ("flower-supernode", "--insecure", *where, "--node-config", " ".join(words))
        self.nodes[client] = self.spawn(f"node{client}", *command)

    def spawn(self, name: str, *words: object) -> "subprocess.Popen[bytes]":
        with open(self.folder / f"{name}.log", "ab") as log:
            job = subprocess.Popen(
                [str(BIN / str(words[0])), *map(str, words[1:])],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        self.jobs.append(job)
        return job

    def kill(self, client: int) -> None:
        """Kills a client's node by signal 9, with all its processes, which are one group."""
        os.killpg(self.nodes[client].pid, signal.SIGKILL)
        self.nodes[client].wait()

    def works(self, client: int) -> bool:
        """Whether a process of a client's node answers a message."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.nodes[client].pid).children(recursive=True)
            return any("flwr-clientapp" in " ".join(child.cmdline()) for child in children)
        return False

    def begin(self, app: Path, **config: object) -> "subprocess.Popen[str]":
        words = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = [str(BIN / "flwr"), "run", str(app), "loop", "--stream", "--run-config", words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        job = subprocess.Popen(command, env=self.environment, cwd=self.folder, start_new_session=True, **pipes)
        self.jobs.append(job)  # type: ignore[arg-type]
        return job

    def run(self, app: Path, seconds: float = 280, **config: object) -> str:
        """Runs an app to its end, and returns what its server printed. It must have succeeded."""
        return self.ended(self.begin(app, **config), seconds)

    def ended(self, job: "subprocess.Popen[str]", seconds: float = 280) -> str:
        printed, _ = job.communicate(timeout=seconds)
        assert job.returncode == 0, printed
        command = [str(BIN / "flwr"), "ls", "loop", "--format", "json"]
        listed = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=True
        )
        newest = json.loads(listed.stdout[listed.stdout.index("{") :])["runs"][0]
        # `flwr run` returns 0 although its server failed
        assert newest["status"] == "finished:completed", f"{newest['status-details']}\n{printed}"
        return printed

    def stop(self) -> None:
        processes = []
        for job in self.jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(job.pid)
                processes += [process, *process.children(recursive=True)]  # some have sessions of their own
        for job in reversed(self.jobs):
            if job.poll() is None:
                job.terminate()
        psutil.wait_procs(processes, timeout=8)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=8)
        for job in self.jobs:
            job.wait(8)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "deployment")
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    def wait(condition: Callable[[], Any], seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.05)
        return value

    return wait
