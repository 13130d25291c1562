"""What ran where: versions, the code itself, the machine."""

import functools
import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fscl

__all__ = ["machine", "processor", "versions"]

PACKAGES = ("fscl", "torch", "torchvision", "avalanche-lib", "numpy")
# the rooms of fscl that decide a run's numbers
CODE = ("atoms", "compare", "continual", "data", "factories.py", "networks.py", "similarity")


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on; that of fscl ends with a digest of its code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "unknown"
    found["fscl"] += f"+{code(Path(fscl.__file__).parent)}"
    return found


@functools.cache
def code(package: Path) -> str:
    """Eight hexadecimal digits that tell one state of the code from another, whatever version both say they are."""
    digest = hashlib.sha256()
    rooms = [package / room for room in CODE]
    for file in sorted(file for room in rooms for file in ([room] if room.suffix else room.rglob("*.py"))):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def machine(device: str, threads: int, precision: str) -> dict[str, Any]:
    """What a run's record says of where it was made."""
    return {"device": _device_name(device), "processor": processor(), "threads": threads, "precision": precision}


def processor() -> str:
    """Its name, and the number of cores."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return device
