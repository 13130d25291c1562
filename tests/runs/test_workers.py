"""Worker processes: they see the caller's environment, run nothing of its script, and their deaths are told."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from fscl.runs import workers
from fscl.runs.workers import Died, each_in_a_worker


def results(code: list[str], jobs: int = 2) -> dict[str, Any]:
    return dict(each_in_a_worker(exec, code, jobs))


def test_a_worker_sees_the_environment_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "two"):  # the server that forks workers has started with the first
        monkeypatch.setenv("FSCL_OF_THIS_TEST", value)
        assert list(each_in_a_worker(os.getenv, ["FSCL_OF_THIS_TEST"], 1)) == [("FSCL_OF_THIS_TEST", value)]


def test_the_death_of_a_worker_is_told_and_other_workers_go_on() -> None:
    killed, ended, well = "import os; os.kill(os.getpid(), 9)", "import os; os._exit(3)", "x = 1"
    assert results([killed, ended, well]) == {killed: Died(-signal.SIGKILL), ended: Died(3), well: None}


def test_a_worker_that_goes_on_after_its_result_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    endless = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()"
    assert results([endless]) == {endless: None}


def test_the_death_of_a_worker_is_told_although_its_child_lives() -> None:
    began = time.monotonic()
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\nos.kill(os.getpid(), 9)"
    assert results([code]) == {code: Died(-signal.SIGKILL)}
    assert time.monotonic() - began < 50


def test_a_script_without_a_guard_is_not_run_again_in_its_workers() -> None:
    script = "print('once')\nimport os\nfrom fscl.runs import workers\nworkers.warm_up([])\n"
    script += "print(len(list(workers.each_in_a_worker(os.getenv, ['HOME', 'PATH'], 2))))"
    ended = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "once\n2\n", "")


def test_ctrl_c_while_the_server_imports_prints_no_traceback() -> None:
    code = "import signal, time\nfrom fscl.runs import workers\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "workers.warm_up(['torch'])\nprint('begun', flush=True)\ntime.sleep(1.5)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
