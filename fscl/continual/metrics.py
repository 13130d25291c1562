"""Task-to-task subspace similarity as Avalanche metrics, for any strategy that trains convolutions."""

from typing import Any

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from torch import Tensor

from fscl.accuracy import forgetting_matrix
from fscl.atoms.bank import AtomBank
from fscl.compare.filter_history import FilterHistory
from fscl.continual.evaluate import class_mean_accuracy
from fscl.continual.learners.atoms import AtomBankPlugin
from fscl.errors import FsclError
from fscl.similarity.correlation import Correlation, mantel
from fscl.similarity.subspace import AGGREGATES, METRICS, similarity_matrix

__all__ = ["SubspaceSimilarity", "subspace_similarity_metrics"]


def subspace_similarity_metrics(
    metric: str = "cosine",
    aggregate: str = "product",
    heatmap: bool = True,
    correlate: bool = True,
    transfer: Any = None,
) -> list[PluginMetric]:
    """Metrics for ``EvaluationPlugin``: how alike the networks of the tasks are, without any data.

    After each training experience t: a value for each earlier experience i (``.../exp_i`` at step t), their mean, and
    a heatmap figure. After each evaluation: the Mantel correlation of similarity with forgetting, as soon as all
    experiences so far have been evaluated after each training experience. Forgetting is measured on the stream called
    ``test``; without one, on the first other stream that is evaluated, but never on ``train``.

    With :class:`~fscl.continual.AtomSwapping` or its plugin the atoms are read from the bank. For any other strategy
    the filters are remembered after each experience and projected on coefficients that span the first ones; the share
    of their energy that this keeps is emitted too (``.../explained``, mean over layers): where it is small, the
    similarity is that of a small part of the filters.

    Args:
        metric: ``cosine``, ``filter``, ``grassmann`` or ``projection``, see :func:`fscl.similarity.similarity_matrix`.
        aggregate: over layers, ``product`` (of squares), ``mean`` or ``depth``, see
            :func:`fscl.similarity.aggregate_layers`.
        heatmap: whether to emit figures (TensorBoard and W&B draw them; text and CSV loggers take the scalars).
        correlate: whether to correlate with forgetting.
        transfer: a benchmark with ``train_stream`` and ``test_stream``, to correlate with transfer as well: after each
            training experience the nearest-class-mean accuracy of its features on every experience is measured, which
            is the one part that needs data; see :func:`fscl.continual.class_mean_accuracy`.

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
    """The metric behind :func:`subspace_similarity_metrics`; ``result()`` is the (T, T) matrix so far."""

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
        for what, value, known in (("metric", metric, METRICS), ("aggregate", aggregate, AGGREGATES)):
            if value not in known:
                raise FsclError(f"{what} is {value!r}; known: {', '.join(known)}")
        self.metric, self.aggregate = metric, aggregate
        self.heatmap, self.correlate = heatmap, correlate
        self.reset()

    def reset(self) -> None:
        self._history = FilterHistory()
        self._names: list[str] = []
        self._bank: AtomBank | None = None
        self._accuracy: dict[tuple[int, int], float] = {}  # (experience trained last, experience evaluated)
        self._stream: str | None = None  # the one that the accuracies are of
        self._right: dict[tuple[str, int], tuple[float, int]] = {}
        self._transfer: list[dict[int, float]] = []  # of the features after each training experience, by experience
        self._order: list[int] = []  # current_experience of each training experience, in order
        self._tasks: dict[int, int] = {}  # what each is called in the bank
        self._training = False

    def result(self) -> Tensor | None:
        """(T, T) similarity of the experiences trained so far, in the order of training, or None before two."""
        if len(self._order) < 2:
            return None
        if self._bank is None:
            return self._history.similarity(self.metric, self.aggregate)
        rows = [self._bank.tasks.index(self._tasks[experience]) for experience in self._order]
        return similarity_matrix(self._bank, self.metric, self.aggregate)[rows][:, rows]

    def correlation(self) -> Correlation | None:
        """Mantel correlation of similarity with forgetting; None until the accuracies that it needs are there."""
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
        """Mantel correlation of similarity with transfer between the experiences trained so far; None before two."""
        similarity = self.result()
        if similarity is None or len(self._transfer) != len(similarity):
            return None
        # [i, j]: accuracy on experience i of the features of experience j
        accuracy = np.array([[row[i] for row in self._transfer] for i in self._order])
        return mantel(similarity, accuracy, names=("similarity", "transfer"))

    # training

    def before_training_exp(self, strategy: Any) -> None:
        self._training = True

    def after_training_exp(self, strategy: Any) -> list[MetricValue] | None:
        self._training = False
        experience, number = strategy.experience, strategy.experience.current_experience
        if number in self._order:  # trained again: its row is made anew
            at = self._order.index(number)
            for history in (
                self._order,
                self._names,
                self._history.atoms,
                self._history.explained,
                self._transfer,
            ):  # the last may be empty
                del history[at : at + 1]
            self._accuracy = {key: value for key, value in self._accuracy.items() if key[0] != number}
        self._order.append(number)
        self._names.append(getattr(experience, "task_name", f"task {number}"))
        swapping = next((p for p in strategy.plugins if isinstance(p, AtomBankPlugin)), None)
        self._bank = None if swapping is None else swapping.bank
        if swapping is None:
            self._history.add(strategy.model)
        else:
            self._tasks[number] = swapping.tasks_of(experience)[0]
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

    def _correlation_values(self, what: str, found: Correlation | None, step: int) -> list[MetricValue]:
        if found is None:
            return []
        if not found.defined:
            return [MetricValue(self, f"{self}/{what}_rho", str(found), step)]
        return [
            MetricValue(self, f"{self}/{what}_rho", found.statistic, step),
            MetricValue(self, f"{self}/{what}_p", found.p_value, step),
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
                continue  # forgetting is of images that were not trained on
            if self._stream is None or (stream == "test" and self._stream != "test"):
                self._stream, self._accuracy = stream, {}  # a validation stream counts until there is a test stream
            if stream == self._stream:
                self._accuracy[self._order[-1], experience] = right / n
        if not self.correlate:
            return None
        return self._correlation_values("forgetting", self.correlation(), strategy.clock.train_iterations)

    def __str__(self) -> str:
        return f"SubspaceSimilarity_{self.metric}"


def similarity_figure(similarity: Tensor, names: list[str]) -> Any:
    """A figure of its own for loggers to draw; it is not registered with pyplot, so nothing keeps it alive."""
    from fscl.plots import similarity_heatmap

    return similarity_heatmap(similarity.detach().cpu().double().numpy(), names).figure
