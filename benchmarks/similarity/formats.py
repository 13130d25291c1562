"""How the page writes numbers; they become text last, in tables and in templates."""

import math
from collections.abc import Sequence

from benchmarks.similarity.units import Spread

__all__ = ["count", "interval", "listed", "ranged", "seconds", "text", "times"]


def text(value: float, form: str = ".2f") -> str:
    """
    >>> text(0.25), text(0.00002, ".0e"), text(float("nan"))
    ('0.25', '2e-05', 'undefined')
    """
    return format(value, form) if math.isfinite(value) else "undefined"


def interval(value: float, low: float, high: float, form: str = ".2f") -> str:
    """
    >>> interval(0.5, 0.25, 0.75), interval(0.5, float("nan"), float("nan"))
    ('0.50 [0.25, 0.75]', '0.50')
    """
    if math.isnan(value):
        return "undefined"
    return f"{value:{form}}" if math.isnan(low) or math.isnan(high) else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def ranged(values: Spread) -> str:
    """
    >>> ranged(Spread(mean=0.5, low=0.25, high=0.75, n=3)), ranged(Spread(mean=1, low=1, high=1, n=3))
    ('0.50 [0.25, 0.75]', '1.00')
    """
    mean, low, high = text(values.mean), text(values.low), text(values.high)
    return mean if mean == low == high else f"{mean} [{low}, {high}]"


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "run"), count(2, "run")
    ('1 run', '2 runs')
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"]), listed(["a"]), listed([])
    ('a, b and c', 'a', '')
    """
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def seconds(value: float) -> str:
    """
    >>> seconds(4.2e-6), seconds(0.25), seconds(12.3), seconds(4321)
    ('4.2 µs', '250 ms', '12.3 s', '4,321 s')
    """
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if value < 1000 * size:
            return f"{value / size:.2g} {unit}" if value < 10 * size else f"{value / size:.0f} {unit}"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def times(value: float) -> str:
    """Two significant digits, written out.

    >>> times(123456), times(1.234)
    ('120,000', '1.2')
    """
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"
