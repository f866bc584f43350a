"""Which commands may have been called before: only of the others can "not called" be said for sure.

A command comes again after a crash of the relay between the call and the commit of the offset, after a rebalance, and
when the processor publishes it twice. If the service has meanwhile become unreachable, the second copy is not sent;
but the first one was, and what it did (a promise, a reservation) is still there.
"""

from collections import OrderedDict


class Seen:
    """The ids of the latest commands that this process has taken, at most ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, command_id: str) -> bool:
        """Remember it; True if it was there already."""
        known = command_id in self._ids
        self._ids[command_id] = None
        self._ids.move_to_end(command_id)
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
        return known
