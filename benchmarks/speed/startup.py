"""Startup times: the help of the command line, and the time that importing fscl adds to importing torch."""

import subprocess
import sys
from typing import Any

from benchmarks.speed.timing import alternately, quartiles

__all__ = ["measure"]

PROGRAMS = {
    "fscl --help": "import sys; sys.argv = ['fscl', '--help']; from fscl.cli.app import main; main()",
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
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
