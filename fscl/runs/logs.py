"""Logs of a run while it trains, for TensorBoard, as CSV and for Weights & Biases. All are in the run's folder.

What is logged, under Avalanche's own names: after each epoch the loss and the training accuracy, after each task the
accuracy on each task so far and the similarity of the tasks. A step is the number of training iterations so far plus
the number of tasks learned so far, so each of these has a step of its own.

A log that a resumed run continues has every step once. The values of epochs after the last finished task, which are
trained again, replace the former ones. Only what went to W&B cannot be replaced: such steps are not sent again.
"""

import contextlib
import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from fscl.choices import Log
from fscl.errors import FsclError
from fscl.files import write_text_atomically

__all__ = ["Logged", "opened_logs", "remove_logs"]

TABLE, BOARD, WANDB = "log.csv", "events.out.tfevents.*", "wandb"
COLUMNS = ["step", "name", "value"]

Figures = Mapping[str, Callable[[], Any]]  # name -> a function that draws the figure


Logged = Callable[[int, Mapping[str, float], Figures], None]  # logs the values and figures of a step


class Writer(Protocol):
    """Writes one log. Only the libraries of the logs that a run has are imported."""

    def write(self, step: int, scalars: Mapping[str, float], figures: Figures) -> None: ...

    def close(self, failed: bool) -> None: ...


@contextlib.contextmanager
def opened_logs(
    logs: Collection[Log], folder: Path, after: int, name: str, config: Mapping[str, Any]
) -> Iterator[Logged | None]:
    """Opens the logs of a run, and closes them at the end of the block.

    Args:
        logs: names of :data:`fscl.choices.Log`.
        folder: the run's folder.
        after: the last step before the block. What the logs hold of later steps is removed.
        name: the run's name in W&B, ``<benchmark>/<strategy>/seed_0``.
        config: recipes and other plain facts of the run, for W&B.

    Yields:
        a function that logs the values of a step; None if the run has no logs.

    Raises:
        FsclError: a log cannot be read or written, or W&B refuses.
    """
    writers: dict[Log, Writer] = {}
    failed = True
    try:
        for log in logs:
            with _named_errors(log, folder):
                writers[log] = _WRITERS[log](folder, after, name, config)

        def write(step: int, scalars: Mapping[str, float], figures: Figures) -> None:
            drawn = {name: cache(draw) for name, draw in figures.items()}  # one figure for all logs
            for log, writer in writers.items():
                with _named_errors(log, folder):
                    writer.write(step, scalars, drawn)

        yield write if writers else None
        failed = False
    finally:
        for log, writer in writers.items():
            with _named_errors(log, folder):
                writer.close(failed)


def remove_logs(folder: Path) -> None:
    """Removes all logs of a run that begins anew."""
    for file in (*folder.glob(BOARD), folder / TABLE):
        file.unlink(missing_ok=True)
    shutil.rmtree(folder / WANDB, ignore_errors=True)


@contextlib.contextmanager
def _named_errors(log: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FsclError(f"{folder}: cannot write its log for --log {log} ({error.strerror or error})") from error


class _Table:
    """``log.csv``: a row for each value."""

    def __init__(self, folder: Path, after: int, name: str, config: Mapping[str, Any]) -> None:
        path = folder / TABLE
        former = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = former[: former.rfind("\n") + 1]  # a killed process may have written half a row
        try:
            rows = [row for row in csv.reader(io.StringIO(whole)) if row != COLUMNS and int(row[0]) <= after]
        except (ValueError, IndexError) as error:
            raise FsclError(f"{path}: not the log of a run ({error}); move it elsewhere") from error
        write_text_atomically(path, _lines([COLUMNS, *rows]))
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed by close()

    def write(self, step: int, scalars: Mapping[str, float], figures: Figures) -> None:
        self._file.write(_lines([[step, name, value] for name, value in scalars.items()]))
        self._file.flush()

    def close(self, failed: bool) -> None:
        self._file.close()


def _lines(rows: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class _Board:
    """Event files of TensorBoard in the run's folder, so that ``tensorboard --logdir runs`` names the run by it."""

    def __init__(self, folder: Path, after: int, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides the steps from purge_step on that are in former files of the folder
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def write(self, step: int, scalars: Mapping[str, float], figures: Figures) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, draw in figures.items():
            self._writer.add_figure(name, draw(), step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of W&B. A resumed run has the same id; ``wandb/fscl.json`` holds the id and the last step that was sent."""

    def __init__(self, folder: Path, after: int, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, self._state = wandb, folder / WANDB / "fscl.json"
        former = json.loads(self._state.read_text(encoding="utf-8")) if self._state.exists() else {}
        self._id, self._sent = former.get("id", secrets.token_hex(4)), former.get("step", -1)
        self._state.parent.mkdir(exist_ok=True)
        write_text_atomically(self._state, json.dumps({"id": self._id, "step": self._sent}))
        try:
            self._run = wandb.init(
                project=None if "WANDB_PROJECT" in os.environ else "fscl",
                name=name,
                group=name.rpartition("/")[0],
                id=self._id,
                resume="allow",
                reinit="create_new",  # the caller may have a run of its own
                dir=folder,
                config=dict(config),
                settings=wandb.Settings(**_wandb_settings(wandb)),
            )
        except wandb.Error as error:
            raise FsclError(
                f"W&B refuses the run ({' '.join(str(error).split())}); run `wandb login` once, or set "
                "WANDB_MODE=offline and `wandb sync` the run's folder later"
            ) from error

    def write(self, step: int, scalars: Mapping[str, float], figures: Figures) -> None:
        if step <= self._sent:
            return
        from fscl.plots.figures import image_of

        images = {name: self._wandb.Image(image_of(draw())) for name, draw in figures.items()}
        self._run.log({**scalars, **images}, step=step, commit=True)
        self._sent = step
        write_text_atomically(self._state, json.dumps({"id": self._id, "step": step}))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _wandb_settings(wandb: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"console": "off", "silent": True}  # its lines would break the live table
    flush = "x_transaction_log_flush_interval"
    if flush in wandb.Settings.model_fields:  # not in older versions
        settings[flush] = 0.05  # seconds; by default a killed process loses what it logged in the last 15
    return settings


_WRITERS: dict[Log, Callable[[Path, int, str, Mapping[str, Any]], Writer]] = {
    "tensorboard": _Board,
    "csv": _Table,
    "wandb": _WandB,
}
