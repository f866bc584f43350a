"""A run that failed, with as few faults as it takes: Zeller's delta debugging over the list of faults.

A fault that is left out changes what comes after it, but not which of the others strike (``tests.simulation.chance``),
so most lists shrink well.
"""

from collections.abc import Callable, Sequence, Set
from typing import TypeVar

_T = TypeVar("_T")


def shrunk(faults: Sequence[_T], fails: Callable[[Set[_T]], bool], most: int) -> list[_T]:
    """Return some of ``faults`` with which it still fails; calls ``fails`` at most ``most`` times."""
    left = list(faults)
    parts = 2
    while left and most > 0:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            fewer = left[:start] + left[start + size :]
            most -= 1
            if fails(frozenset(fewer)):
                left, parts = fewer, max(parts - 1, 2)
                break
            if most <= 0:
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(left))
    return left
