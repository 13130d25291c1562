"""Similarity of tasks as Avalanche metrics, for any strategy that trains convolutions."""

from typing import Any

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from torch import Tensor

from fscl.accuracy import forgetting_matrix
from fscl.aggregates import AGGREGATES
from fscl.atoms.bank import AtomBank
from fscl.compare.filter_history import FilterHistory
from fscl.continual.evaluate import class_mean_accuracy
from fscl.continual.learners.atoms import AtomBankPlugin
from fscl.errors import FsclError
from fscl.similarity.correlation import Correlation, mantel
from fscl.similarity.subspace import METRICS, similarity_matrix

__all__ = ["SubspaceSimilarity", "subspace_similarity_metrics"]


def subspace_similarity_metrics(
    metric: str = "cosine",
    aggregate: str = "product",
    heatmap: bool = True,
    correlate: bool = True,
    transfer: Any = None,
) -> list[PluginMetric]:
    """Metrics for ``EvaluationPlugin``: the similarity of the tasks' networks, computed without data.

    After each training experience t they emit the similarity to each earlier experience i (``.../exp_i`` at step t),
    the mean similarity of all pairs, and a heatmap. After each evaluation they emit the Mantel correlation of
    similarity with forgetting, as soon as all experiences so far have been evaluated after each training experience.
    Forgetting is measured on the stream that is called ``test``. If there is none, it is measured on the first stream
    that is evaluated and is not called ``train``.

    With :class:`~fscl.continual.AtomSwapping` or its plugin the atoms are read from the bank. For any other strategy
    the filters after each experience are projected on coefficients that span the filters after the first. The share of
    the filters' energy that the projection keeps is emitted too (``.../explained``, mean over layers). If this share is
    small, the similarity describes only a small part of the filters.

    Args:
        metric: ``cosine``, ``filter``, ``grassmann`` or ``projection``, see :func:`fscl.similarity.similarity_matrix`.
        aggregate: how layers are aggregated: ``product`` (of squares), ``mean`` or ``depth``, see
            :func:`fscl.similarity.aggregate_layers`.
        heatmap: whether to emit figures. TensorBoard and W&B draw them; text and CSV loggers take the scalars.
        correlate: whether to correlate similarity with forgetting.
        transfer: a benchmark with ``train_stream`` and ``test_stream``; if given, similarity is correlated with
            transfer as well. Transfer is measured after each training experience, as the nearest-class-mean accuracy on
            every experience (:func:`fscl.continual.class_mean_accuracy`). Only this part needs data.

    Raises:
        FsclError: the metric or the aggregate is unknown.

    References:
        Chen, Miao, Qiu. Exploring Neural Network Representational Similarity using Filter Subspaces. 2023.

    Example:
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> evaluator = EvaluationPlugin(subspace_similarity_metrics())
    """
    return [SubspaceSimilarity(metric, aggregate, heatmap, correlate, transfer)]


class SubspaceSimilarity(PluginMetric[Tensor]):
    """The metric that :func:`subspace_similarity_metrics` makes. ``result()`` is the (T, T) similarity so far."""

    def __init__(
        self,
        metric: str = "cosine",
        aggregate: str = "product",
        heatmap: bool = True,
        correlate: bool = True,
        transfer: Any = None,
    ) -> None:
        super().__init__()
        self.transfer = transfer
        for argument, value, known in (("metric", metric, METRICS), ("aggregate", aggregate, AGGREGATES)):
            if value not in known:
                raise FsclError(f"{argument} is {value!r}; known: {', '.join(known)}")
        self.metric, self.aggregate = metric, aggregate
        self.heatmap, self.correlate = heatmap, correlate
        self.reset()

    def reset(self) -> None:
        self._history = FilterHistory()
        self._names: list[str] = []
        self._bank: AtomBank | None = None
        self._accuracy: dict[tuple[int, int], float] = {}  # (experience trained last, experience evaluated)
        self._stream: str | None = None  # the stream on which self._accuracy was measured
        self._right: dict[tuple[str, int], tuple[float, int]] = {}  # (stream, experience) -> (right answers, samples)
        # for each training experience: experience -> accuracy of the features on it
        self._transfer: list[dict[int, float]] = []
        self._order: list[int] = []  # current_experience of each training experience, in the order of training
        self._tasks: dict[int, int] = {}  # experience -> its task in the bank
        self._training = False

    def result(self) -> Tensor | None:
        """(T, T) similarity of the experiences trained so far, in the order of training; None before two."""
        if len(self._order) < 2:
            return None
        if self._bank is None:
            return self._history.similarity(self.metric, self.aggregate)
        rows = [self._bank.tasks.index(self._tasks[experience]) for experience in self._order]
        return similarity_matrix(self._bank, self.metric, self.aggregate)[rows][:, rows]

    def correlation(self) -> Correlation | None:
        """Mantel correlation of similarity with forgetting; None until all accuracies that it needs were measured."""
        similarity = self.result()
        if similarity is None:
            return None
        n = len(self._order)
        accuracy = np.full((n, n), np.nan)
        for (trained, experience), value in self._accuracy.items():
            if experience in self._order:
                accuracy[self._order.index(trained), self._order.index(experience)] = value
        if np.isnan(accuracy[np.tril_indices(n)]).any():
            return None
        return mantel(similarity, forgetting_matrix(accuracy), pairs="lower", names=("similarity", "forgetting"))

    def transfer_correlation(self) -> Correlation | None:
        """Mantel correlation of similarity with transfer; None before two experiences, or without ``transfer``."""
        similarity = self.result()
        if similarity is None or len(self._transfer) != len(similarity):
            return None
        # [i, j]: accuracy on experience i of the features after experience j
        accuracy = np.array([[row[i] for row in self._transfer] for i in self._order])
        return mantel(similarity, accuracy, names=("similarity", "transfer"))

    # training

    def before_training_exp(self, strategy: Any) -> None:
        self._training = True

    def after_training_exp(self, strategy: Any) -> list[MetricValue] | None:
        self._training = False
        experience, number = strategy.experience, strategy.experience.current_experience
        if number in self._order:  # trained again: the new values replace the old
            position = self._order.index(number)
            for history in (
                self._order,
                self._names,
                self._history.atoms,
                self._history.explained,
                self._transfer,
            ):
                del history[position : position + 1]  # a slice, because some of these lists may be empty
            self._accuracy = {key: value for key, value in self._accuracy.items() if key[0] != number}
        self._order.append(number)
        self._names.append(getattr(experience, "task_name", f"task {number}"))
        bank_plugin = next((p for p in strategy.plugins if isinstance(p, AtomBankPlugin)), None)
        self._bank = None if bank_plugin is None else bank_plugin.bank
        if bank_plugin is None:
            self._history.add(strategy.model)
        else:
            self._tasks[number] = bank_plugin.tasks_of(experience)[0]
        if self.transfer is not None:
            self._transfer.append(self._class_means(strategy))
        similarity = self.result()
        if similarity is None:
            return None
        step = strategy.clock.train_iterations
        values = [
            MetricValue(self, f"{self}/exp_{i:03d}", float(v), step)
            for i, v in zip(self._order[:-1], similarity[-1, :-1].tolist(), strict=True)
        ]
        off_diagonal = similarity[~torch.eye(len(similarity), dtype=torch.bool)]
        values.append(MetricValue(self, f"{self}/mean", float(off_diagonal.mean()), step))
        if self._bank is None:
            shares = self._history.explained[-1].values()
            values.append(MetricValue(self, f"{self}/explained", sum(shares) / len(shares), step))
        if self.heatmap:
            figure = similarity_figure(similarity, self._names)
            values.append(MetricValue(self, f"{self}/heatmap", AlternativeValues(figure, similarity.clone()), step))
        return values + self._correlation_values("transfer", self.transfer_correlation(), step)

    def _class_means(self, strategy: Any) -> dict[int, float]:
        pairs = zip(self.transfer.train_stream, self.transfer.test_stream, strict=True)
        return {
            train.current_experience: class_mean_accuracy(
                strategy.model, train.dataset, test.dataset, device=strategy.device
            )
            for train, test in pairs
        }

    def _correlation_values(self, name: str, correlation: Correlation | None, step: int) -> list[MetricValue]:
        if correlation is None:
            return []
        if not correlation.defined:
            return [MetricValue(self, f"{self}/{name}_rho", str(correlation), step)]
        return [
            MetricValue(self, f"{self}/{name}_rho", correlation.statistic, step),
            MetricValue(self, f"{self}/{name}_p", correlation.p_value, step),
        ]

    # evaluation

    def before_eval(self, strategy: Any) -> None:
        self._right = {}

    def after_eval_iteration(self, strategy: Any) -> None:
        stream = getattr(strategy.experience.origin_stream, "name", "")
        key = stream, strategy.experience.current_experience
        right, n = self._right.get(key, (0.0, 0))
        right += float((strategy.mb_output.argmax(1) == strategy.mb_y).sum())
        self._right[key] = right, n + len(strategy.mb_y)

    def after_eval(self, strategy: Any) -> list[MetricValue] | None:
        if not self._order or self._training:
            return None
        for (stream, experience), (right, n) in self._right.items():
            if stream == "train":
                continue  # forgetting is measured on images that were not trained on
            if self._stream is None or (stream == "test" and self._stream != "test"):
                self._stream, self._accuracy = stream, {}  # a test stream replaces a validation stream
            if stream == self._stream:
                self._accuracy[self._order[-1], experience] = right / n
        if not self.correlate:
            return None
        return self._correlation_values("forgetting", self.correlation(), strategy.clock.train_iterations)

    def __str__(self) -> str:
        return f"SubspaceSimilarity_{self.metric}"


def similarity_figure(similarity: Tensor, names: list[str]) -> Any:
    """A heatmap for loggers. It is not registered with pyplot, which would keep its memory."""
    from fscl.plots import similarity_heatmap

    return similarity_heatmap(similarity.detach().cpu().double().numpy(), names).figure
