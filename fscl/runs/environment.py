"""The device of a run, and what its record says about the software and the machine."""

import functools
import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fscl
from fscl.errors import FsclError

__all__ = ["find_device", "machine", "processor", "versions"]

PACKAGES = ("fscl", "torch", "torchvision", "avalanche-lib", "numpy")
# folders and files of fscl that decide a run's numbers
CODE = ("atoms", "compare", "continual", "data", "factories.py", "networks.py", "similarity")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers. The one of fscl ends with a code digest."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            numbers[package] = "unknown"
    numbers["fscl"] += f"+{code(Path(fscl.__file__).parent)}"
    return numbers


@functools.cache
def code(package: Path) -> str:
    """Eight hexadecimal digits that change whenever code changes, even if the version number does not."""
    digest = hashlib.sha256()
    paths = [package / name for name in CODE]
    for file in sorted(file for path in paths for file in ([path] if path.suffix else path.rglob("*.py"))):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def machine(device: str, threads: int, precision: str) -> dict[str, Any]:
    """What a run's record says about its machine."""
    return {"device": _device_name(device), "processor": processor(), "threads": threads, "precision": precision}


def processor() -> str:
    """The processor's name and number of cores."""
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


def find_device(name: str, option: str = "device ") -> str:
    """The device of this name. ``auto`` is a GPU if there is one, else the CPU. Imports PyTorch, but not Avalanche.

    Raises:
        FsclError: the device is not available; ``option`` names the argument in the message.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FsclError(f"{option}{name}: not available here ({str(error).splitlines()[0]})") from error
    return name
