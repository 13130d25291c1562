"""Startup times: commands that train nothing, mistakes at the command line, and what importing fscl adds to torch."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import alternately, quartiles

__all__ = ["measure"]

RUNS = Path(__file__).resolve().parents[2] / "reports/split_cifar100/runs.json"
COMMANDS = {
    "fscl --help": ["--help"],
    "fscl list": ["list"],
    "an unknown strategy is refused": ["run", "-s", "ewcc"],
    "an unknown engine is refused": ["run", "--engine", "slurm"],
    "a missing recipe is refused": ["run", "nowhere.toml"],
    "a missing run is refused": ["predict", "nowhere", "image.png"],
    "a missing checkpoint is refused": ["similarity", "nowhere.pt"],
    "an unknown metric is refused": ["heatmap", "bank.safetensors", "--metric", "cosin"],
    "a report of 42 runs of Split CIFAR-100 is written": ["report", str(RUNS)],
}
PROGRAMS = {
    **{
        name: f"import sys; sys.argv = {['fscl', *arguments]}; from fscl.cli.app import main; main()"
        for name, arguments in COMMANDS.items()
    },
    "import torch": "import torch",
    "import torch, fscl": "import torch, fscl",
    "import torch, atoms and similarity": "import torch; from fscl import AtomBank, decompose, similarity_matrix",
}


def measure(quick: bool) -> dict[str, Any]:
    """Wall time of whole processes, which take turns."""
    calls = {name: lambda code=code: _run(code) for name, code in PROGRAMS.items()}
    seconds = alternately(calls, rounds=3 if quick else 9)
    torch = seconds["import torch"]
    return {
        "processes": {name: vars(quartiles(taken)) for name, taken in seconds.items()},
        "beyond_torch": {
            name: vars(quartiles([a - b for a, b in zip(taken, torch, strict=True)]))
            for name, taken in seconds.items()
            if name.startswith("import torch,")
        },
    }


def _run(code: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if ended.returncode not in (0, 2):  # 2: a user's mistake
        raise RuntimeError(ended.stderr)
