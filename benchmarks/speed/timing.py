"""Timing side by side: calls take turns, so a machine that slows down slows all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Quartiles", "alternately", "quartiles", "ratio", "synchronise"]


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of n repetitions. Times have a long tail, which would dominate a mean."""

    median: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def alternately(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, budget: float | None = None
) -> dict[str, list[float]]:
    """Seconds of each call in each round. Calls take turns; their order is reversed after every round.

    Args:
        calls: the calls to time, by name. A call must return only when its work is done, so it must synchronise a GPU.
            A call that returns a float has timed itself, and this number counts.
        rounds: how many times each call is timed.
        warmup: earlier rounds that do not count.
        budget: seconds after which no further round begins; there are at least three rounds.

    Returns:
        Seconds by name, in the order of the rounds.
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
            timed_itself = calls[name]()
            seconds[name].append(timed_itself if isinstance(timed_itself, float) else time.perf_counter() - start)
        order.reverse()
    return seconds


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of values."""
    values = list(values)
    if len(values) < 2:
        return Quartiles(values[0], values[0], values[0], len(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, low, high, len(values))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Quartiles:
    """Ratio of two calls timed by :func:`alternately`. It is taken in each round, so drift of the machine cancels."""
    return quartiles([a / b for a, b in zip(numerator, denominator, strict=True)])


def synchronise(device: str | torch.device) -> None:
    """Waits until a GPU has done its work; does nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
