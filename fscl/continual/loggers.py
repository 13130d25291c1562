"""Loggers of Avalanche 0.6 that do not take every metric without a repair.

Each class says what it repairs. For each repair a test checks that Avalanche still needs it. Avalanche's other loggers
(``InteractiveLogger``, ``TextLogger`` and ``TensorboardLogger``) need none.
"""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.logging import CSVLogger as AvalancheCSVLogger
from avalanche.logging import WandBLogger as AvalancheWandBLogger
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

__all__ = ["CSVLogger", "WandBLogger"]


class CSVLogger(AvalancheCSVLogger):
    """Avalanche's CSV logger that also writes all scalars to ``metrics.csv``.

    Avalanche's class has columns for accuracy, loss and forgetting, and leaves out all other metrics. Here every scalar
    of every metric is a row of ``metrics.csv``, with the columns ``step`` (training iterations so far), ``name`` and
    ``value``. Figures and tensors are left out.

    Args:
        log_folder: folder of the three files; ``csvlogs`` by default. Files that are there are replaced.

    Example:
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from fscl.continual import CSVLogger, subspace_similarity_metrics
        >>> import tempfile
        >>> logger = CSVLogger(tempfile.mkdtemp())
        >>> evaluator = EvaluationPlugin(subspace_similarity_metrics(), loggers=[logger])
    """

    def __init__(self, log_folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__(None if log_folder is None else os.fspath(log_folder))
        self.metrics_file = open(Path(self.log_folder) / "metrics.csv", "w", encoding="utf-8", newline="")  # noqa: SIM115
        self._write("step", "name", "value")

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(float, int)
        if isinstance(value, float | int):
            self._write(x_plot, name, value)

    def _write(self, *row: Any) -> None:
        csv.writer(self.metrics_file, lineterminator="\n").writerow(row)
        self.metrics_file.flush()

    def close(self) -> None:
        super().close()
        self.metrics_file.close()


class WandBLogger(AvalancheWandBLogger):
    """Avalanche's W&B logger that works with today's ``wandb``, and shows figures as images.

    Avalanche's class calls ``wandb.util.generate_id`` and ``wandb.viz``, which ``wandb`` no longer has. It also passes
    figures to ``wandb`` as they are, which then asks for plotly.

    Args:
        **arguments: as in ``avalanche.logging.WandBLogger``. With ``WANDB_MODE=offline`` nothing is sent.

    Example:
        >>> # evaluator = EvaluationPlugin(subspace_similarity_metrics(), loggers=[WandBLogger(project_name="digits")])
    """

    def before_run(self) -> None:
        if self.wandb is None:  # when it is unpickled
            self.import_wandb()
        # wandb chooses an id if there is none. It is kept, so that an unpickled logger goes on with the same run.
        self.init_kwargs["id"] = self.wandb.init(**self.init_kwargs).id

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        if name.startswith("WeightCheckpoint"):
            super().log_single_metric(name, value, x_plot)
            return
        self.step = x_plot
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(Image, Tensor, TensorImage, Figure, float, int)
        if isinstance(value, Figure):
            from fscl.plots.figures import image_of  # it imports seaborn, which takes long

            value = image_of(value)
        if isinstance(value, Image):
            value = self.wandb.Image(value)
        elif isinstance(value, TensorImage):
            value = self.wandb.Image(value.image)
        elif isinstance(value, Tensor):
            value = self.wandb.Histogram(np_histogram=np.histogram(value.detach().cpu().numpy()))
        elif not isinstance(value, float | int):
            return
        self.wandb.log({name: value}, step=x_plot)
