"""The brokers' clock, which commands expire by, as far as this host can know it."""

import time
from collections.abc import Callable

#: Seconds for which an estimate is kept: a clock may be set.
_KEEP_S = 60.0
#: Seconds of one round trip; a longer one says too little.
_MAX_WIDTH_S = 1.0


class BrokerClock:
    """Estimates it from the replies, whose topic has the brokers' time of arrival (LogAppendTime).

    Between sending a record and hearing of it the broker looked at its clock, so its clock is ahead of ours by at most
    ``appended - sent``; the shortest round trip says it best. That bound is what counts: a command is held to expire by
    one round trip too early rather than too late. Before the first reply our own clock is taken for the brokers'.
    """

    def __init__(self, own: Callable[[], float] = time.time) -> None:
        self._own = own
        #: How far theirs is ahead, the round trip that says so, and when that was; replaced as one, for threads.
        self._best: tuple[float, float, float] = (0.0, _MAX_WIDTH_S, 0.0)

    def own(self) -> float:
        """Seconds since the epoch, by this host."""
        return self._own()

    def now(self) -> float:
        """Seconds since the epoch, by the brokers."""
        return self._own() + self._best[0]

    def observe(self, sent: float, told: float, appended: float) -> None:
        """A record was sent, and reported as appended, at these times of our clock; ``appended`` is the broker's."""
        _, width, at = self._best
        if 0 <= told - sent < (_MAX_WIDTH_S if abs(told - at) > _KEEP_S else width):
            self._best = (appended - sent, told - sent, told)
