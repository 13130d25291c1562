"""A mean over seeds with its spread and interval. Imports neither torch nor scipy.stats, so that it loads quickly."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fscl.errors import FsclError

__all__ = ["Estimate", "seed_interval"]


@dataclass(frozen=True)
class Estimate:
    """Mean over n seeds, sample standard deviation and 95 % t interval of the mean. For n = 1 all but the mean are NaN.

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

    Raises:
        FsclError: there are no values, or a value is not finite. Leaving it out silently would make ``n`` wrong.

    >>> print(seed_interval([81.0, 81.5, 82.0]))
    81.5 ± 0.5 [80.26, 82.74] (n=3)
    """
    from scipy.special import stdtrit

    sample = np.array([float(value) for value in values])
    not_finite = sample[~np.isfinite(sample)]
    if not sample.size or not_finite.size:
        problem = f"a seed has value {not_finite[0]}" if not_finite.size else "no values"
        raise FsclError(f"{problem}; give one finite value for each seed")
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    std = float(sample.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Estimate(mean, std, mean - half, mean + half, n)
