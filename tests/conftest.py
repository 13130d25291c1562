"""Fixtures of all tests: one thread and a fixed seed, the command line in this process, small fine-tuned networks."""

import atexit
import gc
import os
import shutil
import tempfile

gc.disable()  # until all tests are collected: to look for garbage among what is imported took 4 s of 17 s

os.environ.setdefault("MPLBACKEND", "Agg")
# decoded images do not go into the user's cache
os.environ["FSCL_CACHE"] = tempfile.mkdtemp(prefix="fscl-cache-")
atexit.register(shutil.rmtree, os.environ["FSCL_CACHE"], ignore_errors=True)

import copy
import json
import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fscl.cli import app
from fscl.runs import workers

torch.set_num_threads(1)

# one server forks the workers of all tests; what it lacks, each worker would import again, Avalanche for 8 s
workers.FOR_STREAMS += workers.FOR_FEDERATIONS
workers.FOR_FEDERATIONS[:] = workers.FOR_STREAMS


def pytest_collection_finish() -> None:
    gc.freeze()  # what has been imported is never garbage, and to look through it took a tenth of the tests' time
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extension modules complain of what is left at the end


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries draw from
    # torch.manual_seed formats a traceback for each kind of GPU: 1 ms for each of 5,000 tests
    torch.random.default_generator.manual_seed(0)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Fscl = Callable[..., Ended]


@pytest.fixture
def fscl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fscl:
    """Runs the command line in this process, in an empty folder without data, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FSCL_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fscl", *map(str, arguments)])
        code: Any = 0
        try:
            app.main()
        except SystemExit as stop:
            code = stop.code or 0
        return Ended(code, *capsys.readouterr())

    return call


ForkFscl = Callable[..., multiprocessing.process.BaseProcess]


@pytest.fixture
def fork_fscl(tmp_path: Path) -> Iterator[ForkFscl]:
    """Starts the command line in a process of its own, forked from the server of workers, which has imported Avalanche.

    A fork of this process could not train: PyTorch's autograd does not survive a fork once it has used threads. The
    command runs in an empty folder without data, and prints to ``out-<its id>`` and ``err-<its id>`` there.
    """
    processes = []

    def start(*arguments: object, before: str = "") -> multiprocessing.process.BaseProcess:
        environment = {**os.environ, "COLUMNS": "80"}
        environment.pop("FSCL_DATA", None)
        code = f"""
import os, sys
os.environ.clear()
os.environ.update({environment!r})
os.chdir({str(tmp_path)!r})
sys.path.insert(0, {str(tmp_path)!r})
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{{name}}-{{os.getpid()}}", os.O_WRONLY | os.O_CREAT), number)
sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
sys.argv = {["fscl", *map(str, arguments)]!r}
{before}
from fscl.cli import app
app.main()
"""
        workers.warm_up()
        process = workers._context().Process(target=exec, args=(code, {}))
        with workers._without_main_module():
            process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and comparisons have texts in place of their figures, because drawing takes most of their time.

    In a module of which all tests use this fixture, a test that also uses the fixture ``drawn`` is left out.
    """
    if "drawn" in request.fixturenames:
        return
    from matplotlib.text import Text

    from fscl.files import write_text_atomically

    def save_png(figure: Any, file: Path) -> None:
        write_text_atomically(file, f"{file.name}: not drawn. ".ljust(200))

    def inline_svg(figure: Any, slug: str, title: str) -> str:
        words = [text.get_text() for text in figure.findobj(Text)]
        return f'<svg id="{escape(slug)}">{escape(title)} {escape(" ".join(words))}</svg>'

    for module in ("fscl.report.page", "fscl.compare.comparison"):
        monkeypatch.setattr(f"{module}.save_png", save_png)
    monkeypatch.setattr("fscl.report.page.inline_svg", inline_svg)
    monkeypatch.setattr("adjustText.adjust_text", lambda *_, **__: None)  # draws, to move texts apart


@pytest.fixture
def drawn() -> None:
    """See ``undrawn``."""


def small_network(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, lr: float) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            if len(batch) > 1:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def fine_tuned() -> dict[str, nn.Module]:
    """Twelve networks on scikit-learn's digits: three starts, each fine-tuned to four tasks with a new head."""
    images, labels = digits()
    found: dict[str, nn.Module] = {}
    for s in range(3):
        torch.manual_seed(s)
        start = train(small_network(), images, labels, epochs=2, lr=0.05)
        for t, few in enumerate(([0, 1, 2], [3, 4, 5], [6, 7], [8, 9])):
            model = copy.deepcopy(start)
            model[-1] = nn.Linear(128, len(few))
            mine = torch.isin(labels, torch.tensor(few))
            found[f"start{s}_task{t}"] = train(model, images[mine], labels[mine] - few[0], epochs=4, lr=0.02)
    return found


@pytest.fixture(scope="session")
def from_scratch() -> dict[str, nn.Module]:
    """Twelve networks: three random initialisations, each trained on four tasks with the full learning rate."""
    images, labels = digits()
    found: dict[str, nn.Module] = {}
    for s in range(3):
        torch.manual_seed(s)
        start = small_network()
        for t, few in enumerate(([0, 1, 2], [3, 4, 5], [6, 7], [8, 9])):
            mine = torch.isin(labels, torch.tensor(few))
            found[f"start{s}_task{t}"] = train(copy.deepcopy(start), images[mine], labels[mine], epochs=3, lr=0.05)
    return found


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(classes)


@pytest.fixture
def folder(fine_tuned: dict[str, nn.Module], tmp_path: Path) -> Path:
    """A folder with checkpoints of the fine-tuned networks."""
    (tmp_path / "nets").mkdir()
    for name, model in fine_tuned.items():
        torch.save(model.state_dict(), tmp_path / "nets" / f"{name}.pt")
    return tmp_path / "nets"


@pytest.fixture(scope="session")
def wandb_rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the rows that offline runs of W&B below a folder logged, in the order of the runs' start.

    A scalar is a number in its row. An image is a dict in its row, with its ``path`` and size.
    """

    def rows(folder: Path) -> list[dict[str, Any]]:
        from wandb.proto.wandb_internal_pb2 import Record

        found = []
        for file in sorted(folder.rglob("offline-run-*/*.wandb")):
            for content in level_db_records(file.read_bytes()):
                record = Record()
                record.ParseFromString(content)
                if record.WhichOneof("record_type") == "history":
                    row: dict[str, Any] = {}
                    for item in record.history.item:
                        name, *inner = item.nested_key or [item.key]
                        value = json.loads(item.value_json)
                        if inner:
                            row.setdefault(name, {})[inner[0]] = value
                        else:
                            row[name] = value
                    found.append(row)
        return found

    return rows


def level_db_records(content: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """The records of a file in the log format of LevelDB, after a header of W&B."""
    at, parts = header, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # too short for the next part's checksum, length and kind
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
