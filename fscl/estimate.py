"""A mean over seeds, how far seeds differ, and the interval of the mean. Imports neither torch nor scipy.stats."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fscl.errors import FsclError

__all__ = ["Estimate", "seed_interval"]


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, sample standard deviation, and 95 % t interval of the mean; NaN but for the mean when n = 1.

    >>> print(Estimate(81.5, 0.5, 80.26, 82.74, 3), Estimate(81.5, math.nan, math.nan, math.nan, 1), sep="; ")
    81.5 ± 0.5 [80.26, 82.74] (n=3); 81.5 (n=1)
    """

    mean: float
    std: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        spread = f" ± {self.std:.2g} [{self.low:.4g}, {self.high:.4g}]" if self.n > 1 else ""
        return f"{self.mean:.4g}{spread} (n={self.n})"


def seed_interval(values: Iterable[float]) -> Estimate:
    """Mean, spread and 95 % t interval of one result over independent seeds, in the units of the values.

    Raises :class:`FsclError` for no values, or one that is not finite: leaving it out silently would make n a lie.

    >>> print(seed_interval([81.0, 81.5, 82.0]))
    81.5 ± 0.5 [80.26, 82.74] (n=3)
    """
    from scipy.special import stdtrit

    sample = np.array([float(value) for value in values])
    bad = sample[~np.isfinite(sample)]
    if not sample.size or bad.size:
        raise FsclError(
            f"{f'a seed has value {bad[0]}' if bad.size else 'no values'}; give the finite value of each seed"
        )
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    std = float(sample.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Estimate(mean, std, mean - half, mean + half, n)
