"""When a message is attempted again, and how many attempts a destination may have under way. Pure."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Seconds that a destination which fails is left alone between two attempts: a dead one with a large backlog would
#: else take the processor from the live ones.
FAILING_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The wait after failure n: ``initial * multiplier^(n-1)``, at most ``longest``, less a share up to ``jitter``."""

    max_attempts: int
    initial_seconds: float
    multiplier: float
    longest_seconds: float
    jitter: float

    def wait_after(self, failures: int, seed: str, asked_for: float | None = None) -> float | None:
        """Seconds until the next attempt, or None if there is none.

        Args:
            failures: attempts that failed, this one included.
            seed: makes the waits of messages that failed together differ; the message's id.
            asked_for: the receiver's own Retry-After in seconds: not before it, but never longer than the longest.
        """
        if failures >= self.max_attempts:
            return None
        grown = min(self.initial_seconds * self.multiplier ** min(failures - 1, 64), self.longest_seconds)
        share = zlib.crc32(f"{seed}:{failures}".encode()) / 0xFFFFFFFF
        return min(max(grown * (1.0 - self.jitter * share), asked_for or 0.0), self.longest_seconds)


class Slots:
    """Attempts under way, and whom the next may go to.

    A destination that fails gets half as many at once with every failure, down to one, and one more with every
    success. And none gets more than its share of all, with one share always left for a destination that has none: a
    slow destination, or many, cannot take every place.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._busy: dict[str, int] = {}
        #: Of those that have failed lately.
        self._limits: dict[str, int] = {}
        self._paused_until: dict[str, float] = {}

    @property
    def in_flight(self) -> int:
        return sum(self._busy.values())

    @property
    def free(self) -> int:
        return self._total - self.in_flight

    def limits(self, now: float) -> tuple[Mapping[str, int], int]:
        """How many more may begin: for the destinations where it is not the usual number, and the usual number."""
        share = max(1, self._total // (len(self._busy) + 1))
        known: Iterable[str] = {*self._busy, *self._limits}
        return {name: self._free_of(name, share, now) for name in known}, min(self._each, share)

    def _free_of(self, name: str, share: int, now: float) -> int:
        if self._paused_until.get(name, 0.0) > now:
            return 0
        return max(0, min(self._limits.get(name, self._each), share) - self._busy.get(name, 0))

    def pause_ends(self, now: float) -> float | None:
        """Seconds until the first pause ends, if there is one."""
        return min((until - now for until in self._paused_until.values() if until > now), default=None)

    def begin(self, destination: str) -> None:
        self._busy[destination] = self._busy.get(destination, 0) + 1

    def end(self, destination: str, *, failed: bool | None, now: float) -> None:
        """An attempt is over; ``failed`` is None if it says nothing about the destination."""
        left = self._busy[destination] - 1
        if left:
            self._busy[destination] = left
        else:
            del self._busy[destination]
        if failed is None:
            return
        limit = self._limits.get(destination, self._each)
        if failed:
            self._limits[destination] = max(1, limit // 2)
            if self._limits[destination] == 1:
                self._paused_until[destination] = now + FAILING_PAUSE_SECONDS
        elif limit + 1 >= self._each:
            self._limits.pop(destination, None)
            self._paused_until.pop(destination, None)
        else:
            self._limits[destination] = limit + 1
            self._paused_until.pop(destination, None)
