"""Trains one learner on one stream, experience by experience. Measures after each, and can resume between two."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fscl.atoms.bank import AtomBank
from fscl.atoms.entries import within
from fscl.compare.filter_history import FilterHistory
from fscl.continual.avalanche_private import SilentEvaluator
from fscl.continual.heads import build_network
from fscl.continual.learner import (
    Learner,
    PluginStrategy,
    has_own_loss,
    only_trains,
    scenarios_of,
    strategy_class,
)
from fscl.continual.learners.atoms import AtomBankPlugin
from fscl.continual.loader import InMemoryLoader
from fscl.continual.metrics import metric_name, similarity_figure, similarity_values
from fscl.continual.stream import Stream
from fscl.continual.task_switch import TaskSwitchPlugin, head_names
from fscl.continual.training.acceleration import Acceleration
from fscl.continual.training.learner_state import (
    Codec,
    plugin_state,
    restore_plugins,
    restore_strategy,
    stored_bytes,
    strategy_state,
)
from fscl.continual.training.measuring import Measurements
from fscl.continual.training.reporter import Progress, Reporter, accuracy_values, step_of
from fscl.continual.training.schedule import LearningRateSchedule
from fscl.errors import FsclError
from fscl.optimization import build_optimizer
from fscl.settings import Network, Training

__all__ = ["Measured", "Trainer"]


@dataclass(frozen=True)
class Measured:
    """The measurements after experience t.

    Attributes:
        accuracy: share of right answers on the test images of tasks 0 to t, in [0, 1].
        transfer: nearest-class-mean accuracy on every task, of the features after task t.
        start: nearest-class-mean accuracy on task t, of the features just before training on it.
        train_seconds, evaluate_seconds: wall time.
        stored: bytes that the learner keeps besides its network.
    """

    accuracy: list[float]
    transfer: list[float]
    start: float
    train_seconds: float
    evaluate_seconds: float
    stored: int


class Trainer:
    """Builds a strategy for a stream and trains it one experience at a time.

    The random states at the start of an experience depend only on the seed and the number of the experience. So a
    resumed run ends with the same numbers as an uninterrupted run.

    Args:
        stream: the tasks.
        learner: an Avalanche strategy and its arguments.
        training: how a task is trained.
        network: the network to train.
        seed: seed of the initial weights and of everything that is drawn later.
        device: the device to train on.
        loader: where images are kept, see :class:`fscl.continual.InMemoryLoader`.
        progress: called with (experience, epoch, epochs) after each epoch.

    Attributes:
        reporter: its ``log`` may be set, and is then called with the values of each epoch and each task. Numbers do not
            depend on it.

    Raises:
        FsclError: the strategy, one of its arguments or the network is unknown; the learner cannot learn the scenario
            of the stream; a training option does not fit; or the learner keeps a value that cannot be saved.
    """

    def __init__(
        self,
        stream: Stream,
        learner: Learner,
        training: Training,
        network: Network,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        loader: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.stream, self.training, self.seed, self.device = stream, training, seed, torch.device(device)
        strategy_type = strategy_class(learner.class_path, learner.arguments)
        _seed_all(seed, 0)
        model = build_network(network.name, stream.image_shape, stream.classes_per_task, network.args)
        if issubclass(strategy_type, PluginStrategy):
            model = strategy_type.prepare(model, **learner.arguments)  # the optimizer needs the final parameters
        self.reporter = Reporter(progress)
        self._measurements = Measurements(stream, self.device)
        self._acceleration = Acceleration(training.precision, training.channels_last, training.compile)
        self.strategy = strategy_type(
            model=model,
            optimizer=build_optimizer(training, model.parameters(), self.device),
            criterion=nn.CrossEntropyLoss(label_smoothing=training.label_smoothing),
            train_mb_size=training.batch_size,
            train_epochs=training.epochs,
            eval_mb_size=512,
            device=self.device,
            evaluator=SilentEvaluator(),
            plugins=[
                InMemoryLoader(loader),  # type: ignore[arg-type]  # InMemoryLoader checks it
                self._acceleration,
                LearningRateSchedule(training),
                *self._measurements.plugins,
                self.reporter,
            ],
            **learner.arguments,
        )
        if stream.scenario not in (scenarios := scenarios_of(self.strategy)):
            reason = ", because it needs a test image's task label" if scenarios == ["task"] else ""
            raise FsclError(
                f"{learner.class_path} cannot learn a stream of scenario {stream.scenario!r}{reason}; use "
                f"{' or '.join(f'split.scenario={name}' for name in scenarios)}"
            )
        if training.label_smoothing and has_own_loss(self.strategy):
            raise FsclError(
                f"{learner.class_path} has a loss of its own without label smoothing; set training.label_smoothing=0"
            )
        self._codec = Codec(stream, lambda: self.strategy.model)
        self._learner_state()  # refuses a learner that cannot be resumed before anything is trained
        smallest = min(len(e.dataset) for e in stream.train_stream)
        if training.drop_last and smallest < training.batch_size:
            raise FsclError(
                f"drop_last leaves no batch of a task of {smallest} images, because batch_size is "
                f"{training.batch_size}; set drop_last=false or a smaller batch_size"
            )
        self.done = 0
        self._history = FilterHistory()
        self._stored: list[int] = []

    def __repr__(self) -> str:
        learned = f"{self.done} of {len(self.stream.tasks)} tasks learned"
        return f"Trainer({type(self.strategy).__name__}, {learned}, seed {self.seed}, {self.device})"

    @property
    def bank(self) -> AtomBank | None:
        """The learner's bank, or None if it has none."""
        return next((p.bank for p in self.strategy.plugins if isinstance(p, AtomBankPlugin)), None)

    @property
    def precision(self) -> str:
        """The precision of convolutions on this device: ``float32``, ``bfloat16`` or ``float16``."""
        return self._acceleration.resolved(self.device)

    def untrained(self) -> list[float]:
        """Nearest-class-mean accuracy on every task, of the features before any training."""
        self.strategy.model.to(self.device)
        self._accelerate()  # so that the precision is that of training
        return self._measurements.class_means(self.strategy.model)

    def train_next(self) -> Measured:
        """Trains the next experience and measures the network.

        Raises:
            FsclError: training diverged: a weight is not finite.
        """
        t = self.done
        _seed_all(self.seed, t + 1)
        began = time.perf_counter()
        if t > 0 and self.training.epochs_next is not None:
            self.strategy.train_epochs = self.training.epochs_next
        try:
            self.strategy.train(self.stream.train_stream[t], drop_last=self.training.drop_last)
        except Exception:
            self._check_finite()  # if training diverged, this explains it better than the learner's own error
            raise
        self._check_finite()
        trained = time.perf_counter()
        accuracy, transfer = self._measurements.after_task(self.strategy, t)
        if self.bank is None:
            self._history.add(self.strategy.model)
        self.done = t + 1
        self._stored.append(stored_bytes(self._learner_state()))
        # it is measured within the training time, so its seconds are taken off
        start = self._measurements.start
        train_seconds = trained - began - start.seconds
        measured = Measured(
            accuracy, transfer, start.value, train_seconds, time.perf_counter() - trained, self._stored[-1]
        )
        self._log_task(accuracy)
        return measured

    def _log_task(self, accuracy: list[float]) -> None:
        if self.reporter.log is None:
            return
        values, figures = accuracy_values(self.stream.test_stream[: self.done], accuracy), {}
        if self.done > 1:
            similarity = self._history.similarity() if self.bank is None else self.bank.similarity()
            explained = self._history.explained[-1] if self.bank is None else None
            values |= similarity_values(similarity, range(self.done), explained)
            names = self.stream.names[: self.done]
            figures[f"{metric_name()}/heatmap"] = lambda: similarity_figure(similarity, names)
        self.reporter.log(self.step, values, figures)

    @property
    def step(self) -> int:
        """The step of the last values that were logged, between two experiences."""
        return step_of(self.strategy, self.done)

    def similarity(self) -> tuple[list[str], Tensor, str]:
        """(layers, (L, T, T) cosine similarity of the tasks so far, what was compared: ``atoms`` or ``filters``)."""
        if self.bank is not None:
            return self.bank.layers, self.bank.similarity(per_layer=True), "atoms"
        return list(self._history.first), self._history.similarity(per_layer=True), "filters"

    def explained(self) -> list[list[float]] | None:
        """[layer][task]: share of the filters' energy that the similarity compares; None with a bank (all of it)."""
        if self.bank is not None:
            return None
        return [[shares[layer] for shares in self._history.explained] for layer in self._history.first]

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes that must be kept to serve every task: (for each task, once for all tasks), both by kind."""
        for plugin in self.strategy.plugins:
            if isinstance(plugin, TaskSwitchPlugin):
                return plugin.memory(), plugin.shared_memory()
        state = self.strategy.model.state_dict()
        heads = head_names(self.strategy.model) or []
        head = sum(t.nbytes for n, t in state.items() if within(n, heads))
        body = sum(t.nbytes for t in state.values()) - head
        first, last = self._stored[0], self._stored[-1]
        # the mean if each task adds more than the task before it, so that the sum over tasks is right
        growth = min((last - first) / max(self.done - 1, 1), last / self.done)
        heads_grow = self.stream.scenario != "domain"
        per_task, shared = ({"head": round(head / self.done)}, {}) if heads_grow else ({}, {"head": head})
        return (
            {**per_task, "other": round(growth)},
            {"network": body, **shared, "other": round(last - self.done * growth)},
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a new process needs to continue after the last experience, as tensors and plain values.

        Raises:
            FsclError: the learner keeps a value that cannot be written without pickling code.
        """
        return {
            "done": self.done,
            "model": self.strategy.model.state_dict(),
            "trains": [name for name, weight in self.strategy.model.named_parameters() if weight.requires_grad],
            **self._learner_state(),
            "first": self._history.first,
            "atoms": self._history.atoms,
            "explained": self._history.explained,
            "stored": self._stored,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state_dict`. The trainer must have been built with the same arguments."""
        self.load_served_state(state)
        for name, weight in self.strategy.model.named_parameters():
            weight.requires_grad_(name in state["trains"])
        self._history.first, self._history.atoms = dict(state["first"]), list(state["atoms"])
        self._history.explained = list(state["explained"])
        self._stored = list(state["stored"])

    def served_state(self) -> dict[str, Any]:
        """The part of :meth:`state_dict` that evaluation needs: no exemplars, and no plugin that acts in training only.

        Raises:
            FsclError: the learner keeps a value that cannot be written without pickling code.
        """
        codec = Codec(self.stream, lambda: self.strategy.model, with_samples=False)
        strategy = self.strategy
        left_out = [plugin for plugin in strategy.plugins if only_trains(strategy, plugin)]
        return {
            "done": self.done,
            "model": strategy.model.state_dict(),
            "strategy": strategy_state(strategy, codec),
            "plugins": plugin_state(strategy, codec, left_out),
        }

    def load_served_state(self, state: Mapping[str, Any]) -> None:
        """Evaluates as the trainer of a :meth:`served_state`. This one must have been built with the same arguments."""
        self.done = state["done"]
        strategy = self.strategy
        strategy.model.to(self.device).train()
        strategy.is_training = True
        for experience in list(self.stream.train_stream)[: self.done]:
            strategy.experience = experience
            strategy.model_adaptation()  # adds the heads
        strategy.is_training, strategy.experience = False, None
        strategy.model.load_state_dict(state["model"])
        self._accelerate()  # first, because former states of the network are copies of it and need its precision
        restore_plugins(strategy, state["plugins"], self._codec, self.device)
        restore_strategy(strategy, state["strategy"], self._codec, self.device)

    def _accelerate(self) -> None:
        """Prepares the network as for the first task, whose images decide whether channels last can be used."""
        self.strategy.experience = self.stream.train_stream[0]
        self._acceleration.before_eval(self.strategy)
        self.strategy.experience = None

    def _learner_state(self) -> dict[str, Any]:
        return {
            "strategy": strategy_state(self.strategy, self._codec),
            "plugins": plugin_state(self.strategy, self._codec),
        }

    def _check_finite(self) -> None:
        model = self.strategy.model
        statistics = ((n, t) for n, t in model.named_buffers() if n.endswith(("running_mean", "running_var")))
        for name, tensor in (*model.named_parameters(), *statistics):
            if not bool(tensor.isfinite().all()):
                raise FsclError(
                    f"training diverged on task {self.done + 1}: {name} is not finite; a smaller training.lr, "
                    "training.lr_next or penalty may help"
                )


def _seed_all(seed: int, step: int) -> None:
    seed_of_step = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(seed_of_step)
    np.random.seed(seed_of_step)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(seed_of_step)
