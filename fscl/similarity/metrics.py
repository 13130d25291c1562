"""The probing measures as metrics: features arrive batch by batch, in bounded memory."""

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity import canonical, kernels
from fscl.similarity.matrices import PAIR, Maps, Measure, Named, check_maps, checked
from fscl.similarity.scatter import Scatter

__all__ = [
    "PWCCA",
    "SVCCA",
    "AlignedCosine",
    "FeatureMetric",
    "LinearCKA",
    "MeanCCA",
    "MinibatchCKA",
    "Procrustes",
]


class _Statistics(Protocol):
    @property
    def samples(self) -> int: ...
    def merged(self, other: Self) -> Self: ...


Statistics = TypeVar("Statistics", bound=_Statistics)


class FeatureMetric(ABC, Generic[Statistics]):
    """Compares two networks by their features on data that arrives in batches.

    It has the methods of a metric of torchmetrics: ``update(x, y)`` for each batch, ``compute()``, ``reset()``, and
    ``merge_state(other)``, which adds the samples that another metric has seen, for example in another process. A
    metric can be pickled. It is no subclass of `torchmetrics.Metric`, because importing that library doubles the time
    that fscl.similarity takes to import; so `MetricCollection` does not accept it.

    What is kept is float64 and lies on the device of the first x (on the CPU for MPS, which has no float64); features
    of later batches and of other metrics are moved there.
    """

    def __init__(self, *, maps: Maps | None = None) -> None:
        check_maps(maps)
        self.maps = maps
        self.reset()

    @property
    def num_samples(self) -> int:
        """The number of samples so far. With ``maps="positions"`` every position of an image is a sample."""
        return self._statistics.samples if self._statistics else 0

    def update(self, x: Tensor | NDArray[Any], y: Tensor | NDArray[Any]) -> None:
        """Adds a batch of features.

        Args:
            x, y: (n, p) and (n, q) of the same n samples, or (n, c, h, w) if the metric has ``maps``; tensors or NumPy
                arrays of any real type.

        Raises:
            FsclError: shapes do not fit, or are (n, c, h, w) without ``maps``; values are not finite; or earlier
                batches had other numbers of features. The metric is then as it was before.
        """
        batch = checked([_as_tensor(name, values) for name, values in zip(PAIR, (x, y), strict=True)], PAIR, self.maps)
        num_features = tuple(values.shape[1] for _, values in batch)
        self._check_features(num_features)
        self._add(num_features, self._statistics_of(batch))

    def compute(self) -> float:
        """The measure of all samples so far. More batches may follow.

        Raises:
            FsclError: there were no batches, or as the function of the measure.
        """
        if not self._statistics:
            raise FsclError(f"{type(self).__name__} has no samples; call update(x, y) before compute()")
        return self._value(self._statistics)

    def reset(self) -> None:
        """Forgets all samples."""
        self._num_features: tuple[int, ...] = ()
        self._statistics: Statistics | None = None

    def merge_state(self, other: Self) -> None:
        """Adds the samples of another metric, which is not changed.

        Raises:
            FsclError: the other metric is of another class, or has other options or numbers of features.
        """
        if type(other) is not type(self):
            raise FsclError(f"{type(self).__name__} cannot add samples of {type(other).__name__}; use the same class")
        if other._options() != self._options():
            raise FsclError(
                f"{type(self).__name__} with {self._options()} cannot add samples of one with {other._options()}; use "
                "the same options"
            )
        if other._statistics:
            self._check_features(other._num_features)
            self._add(other._num_features, other._statistics)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self._options().items() if value is not None)
        features = f" of {' and '.join(map(str, self._num_features))} features" if self._num_features else ""
        return f"{type(self).__name__}({self.num_samples} samples{features}{options})"

    def _options(self) -> dict[str, object]:
        return {"maps": self.maps}

    def _check_features(self, num_features: tuple[int, ...]) -> None:
        for name, count, earlier in zip(PAIR, num_features, self._num_features, strict=False):
            if count != earlier:
                raise FsclError(
                    f"{name} has {count} features, and {earlier} in earlier batches; give batches of one layer and "
                    "image size, or call reset() first"
                )

    def _add(self, num_features: tuple[int, ...], statistics: Statistics) -> None:
        self._statistics = self._statistics.merged(statistics) if self._statistics else statistics
        self._num_features = num_features

    @abstractmethod
    def _statistics_of(self, batch: list[Named]) -> Statistics: ...

    @abstractmethod
    def _value(self, statistics: Statistics) -> float: ...


class _ScatterMetric(FeatureMetric[Scatter]):
    """A metric that depends only on the scatter of x and y about their means. It equals its function on all samples.

    Memory: at most about 2 (p + q)^2 values in float64, and no more than all samples so far, except for one batch.
    """

    _measure: Measure[Any]

    def _statistics_of(self, batch: list[Named]) -> Scatter:
        return Scatter.of(batch)

    def _value(self, statistics: Scatter) -> float:
        return self._measure.of_pair(*statistics.centred(self._num_features[0]))


class LinearCKA(_ScatterMetric):
    """`linear_cka`, batch by batch; see :class:`FeatureMetric`.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> metric = LinearCKA()
    >>> metric.update(x[:2], x[:2, :1])
    >>> metric.update(x[2:], x[2:, :1])
    >>> metric, round(metric.compute(), 6)
    (LinearCKA(3 samples of 2 and 1 features), 0.790569)
    """

    _measure = kernels.LINEAR_CKA


class Procrustes(_ScatterMetric):
    """`procrustes`, batch by batch; see :class:`FeatureMetric`.

    >>> x = torch.arange(12.0).reshape(6, 2).sin()
    >>> metric = Procrustes()
    >>> for part in x.split(2):
    ...     metric.update(part, 5 - 2 * part)
    >>> round(metric.compute(), 6)
    1.0
    """

    _measure = kernels.PROCRUSTES


class AlignedCosine(_ScatterMetric):
    """`aligned_cosine`, batch by batch; see :class:`FeatureMetric`. x and y need the same number of features.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> metric = AlignedCosine()
    >>> metric.update(x, x.flip(1))
    >>> round(metric.compute(), 6)
    0.25
    """

    _measure = kernels.ALIGNED_COSINE

    def _check_features(self, num_features: tuple[int, ...]) -> None:
        super()._check_features(num_features)
        kernels.check_channels(dict(zip(PAIR, num_features, strict=True)))


class MeanCCA(_ScatterMetric):
    """`mean_cca`, batch by batch; see :class:`FeatureMetric`. ``compute`` needs more samples than features.

    The scatter is kept as a triangular factor, so its condition number is not squared: directions that are 1e-10 as
    strong as the strongest count as they do in the function.

    >>> x = torch.arange(20.0).reshape(10, 2).sin()
    >>> metric = MeanCCA()
    >>> for part in x.split(3):
    ...     metric.update(part, part @ torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    >>> round(metric.compute(), 6)
    1.0
    """

    _measure = canonical.MEAN_CCA


class PWCCA(_ScatterMetric):
    """`pwcca` of a pair, weighted by x, batch by batch; see :class:`FeatureMetric` and :class:`MeanCCA`.

    With fewer than p + q samples several correlations are 1. Their weights are then not unique, as `pwcca` says, and
    the value may differ from that of the function.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, -3.0]])
    >>> metric = PWCCA()
    >>> for part in x.split(2):
    ...     metric.update(part, part.square())
    >>> round(metric.compute(), 4)
    0.6934
    """

    _measure = canonical.PWCCA_OF_PAIR


class SVCCA(_ScatterMetric):
    """`svcca`, batch by batch; see :class:`FeatureMetric` and :class:`MeanCCA`.

    Args:
        keep, maps: as of `svcca`.

    Raises:
        FsclError: ``keep`` is not in (0, 1].

    >>> x = torch.tensor([[1.0, 0.01], [2.0, -0.01], [-3.0, 0.0], [4.0, 0.02]])
    >>> metric = SVCCA()
    >>> for part in x.split(2):
    ...     metric.update(part, part[:, :1])
    >>> round(metric.compute(), 6)
    1.0
    """

    def __init__(self, *, keep: float = 0.99, maps: Maps | None = None) -> None:
        self._measure = canonical.svcca_measure(keep)
        self.keep = keep
        super().__init__(maps=maps)

    def _options(self) -> dict[str, object]:
        return {"keep": self.keep, **super()._options()}


class _HsicTerms(NamedTuple):
    total: Tensor  # HSIC_1 of (x, x), (x, y) and (y, y), summed over batches, (2, 2)
    samples: int

    def merged(self, other: "_HsicTerms") -> "_HsicTerms":
        return _HsicTerms(self.total + other.total.to(self.total), self.samples + other.samples)


class MinibatchCKA(FeatureMetric[_HsicTerms]):
    """`minibatch_cka` of the batches that arrive; see :class:`FeatureMetric`. It keeps three numbers.

    It depends on which samples share a batch, and a batch needs 4 samples or more.

    >>> x = torch.arange(32.0).reshape(16, 2).sin()
    >>> metric = MinibatchCKA()
    >>> for part in x.split(8):
    ...     metric.update(part, 3 * part)
    >>> round(metric.compute(), 6)
    1.0
    """

    def _statistics_of(self, batch: list[Named]) -> _HsicTerms:
        return _HsicTerms(kernels.hsic_terms(batch), len(batch[0][1]))

    def _value(self, statistics: _HsicTerms) -> float:
        return float(kernels.ratio_of_terms(statistics.total, PAIR)[0, 1])


def _as_tensor(name: str, values: Tensor | NDArray[Any]) -> Tensor:
    if not isinstance(values, np.ndarray):
        return values
    try:  # a copy in native byte order, because torch refuses arrays of the other order and warns of read-only ones
        return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise FsclError(f"{name}: an array of {values.dtype}; real numbers would do, such as float32") from None
