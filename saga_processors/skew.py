"""How far the brokers' clock is from one of ours, as far as records that were sent can tell. Pure."""

import math

#: Seconds for which a measurement is kept: a clock may be set.
_KEEP_S = 60.0


class Skew:
    """Between sending a record and hearing of it the broker looked at its clock (LogAppendTime).

    So its clock is ahead of ours by at least ``appended - told`` and at most ``appended - sent``; the shortest round
    trip says it best.
    """

    def __init__(self, max_width_s: float = math.inf) -> None:
        """``max_width_s``: a longer round trip says too little."""
        self._max_width = max_width_s
        #: The bound, the round trip that says so, and when that was; replaced as one, for threads.
        self._best: tuple[float, float, float] = (0.0, 0.0, -math.inf)

    def observe(self, sent: float, told: float, appended: float) -> None:
        """A record was sent, and reported as appended, at these times of our clock; ``appended`` is the broker's."""
        width = told - sent
        if 0 <= width < (self._best[1] if self.known(told) else self._max_width):
            self._best = (appended - sent, width, told)

    def known(self, now: float) -> bool:
        """Whether there is a measurement that is not too old, by our clock."""
        return abs(now - self._best[2]) <= _KEEP_S

    @property
    def width(self) -> float:
        """Seconds of the round trip that says so: by so much at most the bounds lie apart."""
        return self._best[1]

    @property
    def most(self) -> float:
        """By so many seconds the brokers' clock is ahead at most; 0 before the first measurement."""
        return self._best[0]

    @property
    def certain(self) -> float:
        """By so many seconds it is ahead (negative: behind) in any case; 0 if the two may agree."""
        most, width, _ = self._best
        return most if most < 0 else max(0.0, most - width)
