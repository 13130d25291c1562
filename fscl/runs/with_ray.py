"""Ray, an optional extra."""

import importlib.util
import os
from typing import Any

from fscl.errors import FsclError

__all__ = ["check_ray", "import_ray"]


def check_ray() -> None:
    """Raises :class:`FsclError` if Ray is not installed. It is not imported."""
    if importlib.util.find_spec("ray") is None:
        raise FsclError("--engine ray needs Ray; install fscl[ray]")


def import_ray() -> Any:
    """The module ``ray``.

    Raises:
        FsclError: Ray is not installed.
    """
    check_ray()
    # Under `uv run`, Ray would send the current folder to every machine and make an environment for each worker,
    # although fscl is installed there.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray
    import ray.exceptions
    import ray.util.scheduling_strategies

    return ray
