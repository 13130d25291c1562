"""Small deterministic fixtures that every test may use: one thread, a fixed seed, no downloads."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")
# decoded images go where nothing of the user's is
os.environ["FSCL_CACHE"] = tempfile.mkdtemp(prefix="fscl-cache-")
atexit.register(shutil.rmtree, os.environ["FSCL_CACHE"], ignore_errors=True)

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries draw from
    torch.manual_seed(0)
