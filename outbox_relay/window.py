"""Which offset of a partition may be committed when commands end in another order than they came. Pure, but locked."""

from collections import deque
from threading import Lock


class Window:
    """The commands of one partition from the lowest unfinished one on, for as long as it is assigned to us.

    A committed offset says that everything below it has been answered, so it stays below the lowest that has not.
    ``taken`` is called from the thread that consumes, ``done`` from the loop.
    """

    def __init__(self, inherited: int = 0) -> None:
        """``inherited``: what stands below this offset, whoever had the partition before may have called."""
        self.inherited = inherited
        self._lock = Lock()
        #: Offsets taken and not yet below the position, in order.
        self._offsets: deque[int] = deque()
        self._done: set[int] = set()
        self._position: int | None = None
        self._committed: int | None = None
        #: The partition is somebody else's now: what waits is dropped, and nothing is committed.
        self.revoked = False

    def __len__(self) -> int:
        """Offsets from the lowest unfinished one on: what comes again after a crash."""
        return len(self._offsets)

    def taken(self, offset: int) -> None:
        with self._lock:
            self._offsets.append(offset)

    def done(self, offset: int) -> None:
        """The command has been answered, and the answer is durable."""
        with self._lock:
            self._done.add(offset)
            while self._offsets and self._offsets[0] in self._done:
                self._position = self._offsets.popleft() + 1
                self._done.discard(self._position - 1)

    def to_commit(self) -> int | None:
        """The offset to commit; None if it has not moved since it was asked for last."""
        with self._lock:
            if self._position == self._committed:
                return None
            self._committed = self._position
            return self._position
