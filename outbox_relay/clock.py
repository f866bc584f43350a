"""The brokers' clock, which commands expire by, as far as this host can know it."""

import time
from collections.abc import Callable

from saga_processors.skew import Skew

#: Seconds of one round trip; a longer one says too little.
_MAX_WIDTH_S = 1.0


class BrokerClock:
    """Estimates it from the replies, whose topic has the brokers' time of arrival (LogAppendTime).

    The most by which it can be ahead is what counts: a command is held to expire by one round trip too early rather
    than too late. Before the first reply our own clock is taken for the brokers'.
    """

    def __init__(self, own: Callable[[], float] = time.time) -> None:
        self._own = own
        self._skew = Skew(_MAX_WIDTH_S)

    def own(self) -> float:
        """Seconds since the epoch, by this host."""
        return self._own()

    def now(self) -> float:
        """Seconds since the epoch, by the brokers."""
        return self._own() + self._skew.most

    def observe(self, sent: float, told: float, appended: float) -> None:
        """A record was sent, and reported as appended, at these times of our clock; ``appended`` is the broker's."""
        self._skew.observe(sent, told, appended)
