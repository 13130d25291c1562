"""Wall time of whole runs of ``fscl run``: this checkout against an earlier revision, with the same recipes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import alternately, quartiles, ratio

__all__ = ["measure"]

ROOT = Path(__file__).resolve().parents[2]
CLI = "from fscl.cli.app import main; main()"


def measure(before: str, data: str | None = None, rounds: int = 3) -> dict[str, Any]:
    """Times the default ``split_digits``, in turns, then one seed of ``split_cifar100``, side by side.

    Both checkouts use the recipes of the earlier revision. On CIFAR-100 this checkout adds ``training.precision=auto``,
    a setting that an earlier revision may lack. The two runs side by side have a core each and share only the memory.

    Args:
        before: a git revision of this repository.
        data: data folder.
        rounds: how often ``split_digits`` is run.
    """
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "before"
        old.mkdir()
        archive = subprocess.run(["git", "archive", before], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "x", "-C", old], input=archive, check=True)
        now = Path(folder) / "now"  # a copy, so that edits of the checkout do not change the runs
        for name in ("fscl", "benchmarks", "strategies"):
            shutil.copytree(ROOT / name, now / name, ignore=shutil.ignore_patterns("__pycache__"))
        trees = {"before": old, "after": now}
        digits = str(old / "benchmarks" / "split_digits.toml")
        counter = iter(range(1000))
        calls = {
            name: lambda tree=tree: _wait(_start(tree, data, digits, Path(folder) / f"digits{next(counter)}"))
            for name, tree in trees.items()
        }
        seconds = alternately(calls, rounds, warmup=0)
        results: dict[str, Any] = {
            "before": before,
            "split_digits": {
                **{name: vars(quartiles(taken)) for name, taken in seconds.items()},
                "before_over_after": vars(ratio(seconds["before"], seconds["after"])),
            },
        }
        if data is not None and (Path(data) / "cifar100").is_dir():
            cifar = str(old / "benchmarks" / "split_cifar100.toml")
            options = ["-s", "atom_swapping", "--seeds", "1"]
            settings = {"before": [], "after": ["--set", "training.precision=auto"]}
            began = time.perf_counter()
            running = {
                name: _start(tree, data, cifar, Path(folder) / name, *options, *settings[name])
                for name, tree in trees.items()
            }
            ended: dict[str, float] = {}
            while running:
                for name, process in list(running.items()):
                    if process.poll() is not None:
                        _wait(running.pop(name))
                        ended[name] = time.perf_counter() - began
                time.sleep(0.2)
            results["split_cifar100"] = ended | {"before_over_after": ended["before"] / ended["after"]}
    return results


def _start(tree: Path, data: str | None, benchmark: str, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", CLI, "run", benchmark, "--out", str(out), "--report", str(out)]
    command += ["--data", data, *options] if data is not None else list(options)
    environment = os.environ | {"PYTHONPATH": str(tree), "FSCL_CACHE": str(out.parent / "cache")}
    return subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _wait(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"fscl run failed:\n{output[-2000:]}")
