"""Timing side by side: calls take turns within one run, so that a machine that slows down slows all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Quartiles", "alternately", "quartiles", "ratio", "synchronise"]


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of n repetitions: times have a long tail, of which a mean and its interval would tell."""

    median: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def alternately(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, budget: float | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, ``rounds`` times each, taking turns; the order is turned round after every round.

    Args:
        calls: what to time, by name. Each call must end with its work done (synchronise a GPU inside it). One that
            returns a float has timed the part that counts itself.
        rounds: how many times each is timed.
        warmup: rounds before those, not counted.
        budget: seconds after which no further round is begun (at least three are made).
    """
    order = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup):
        for name in order:
            calls[name]()
    began = time.perf_counter()
    gc.collect()
    for i in range(rounds):
        if budget is not None and i >= 3 and time.perf_counter() - began > budget:
            break
        for name in order:
            start = time.perf_counter()
            own = calls[name]()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
        order.reverse()
    return seconds


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles."""
    values = list(values)
    if len(values) < 2:
        return Quartiles(values[0], values[0], values[0], len(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, low, high, len(values))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Quartiles:
    """Of two calls timed by :func:`alternately`: the ratio round by round, so that drift cancels."""
    return quartiles([a / b for a, b in zip(numerator, denominator, strict=True)])


def synchronise(device: str | torch.device) -> None:
    """Waits until a GPU has done its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
