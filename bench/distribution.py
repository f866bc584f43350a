"""Distributions of times: percentiles, arrivals. Pure."""

import math
import random
from collections.abc import Iterator, Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` (0 to 1) of the values do not exceed (nearest rank).

    A value that was measured, never one between two: with few values p99 is the largest.

    Raises:
        ValueError: there are no values, or ``share`` is not between 0 and 1.
    """
    if not values:
        raise ValueError("there is no percentile of nothing")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: it is between 0 and 1")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """The nearest rank at one half: a value that was measured."""
    return percentile(values, 0.5)


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """What a result line says of times: how many, the median, the 99th percentile and the longest, in ms."""
    if not milliseconds:
        return {"n": 0}
    return {
        "n": len(milliseconds),
        "p50_ms": round(percentile(milliseconds, 0.5), 2),
        "p99_ms": round(percentile(milliseconds, 0.99), 2),
        "max_ms": round(max(milliseconds), 2),
    }


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Times of a Poisson process, in seconds from now: users do not wait for each other.

    Args:
        rate: arrivals a second, on average.
    """
    chance = random.Random(seed)
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)
