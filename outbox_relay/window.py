"""Which offset of a partition may be committed when commands end in another order than they came. Pure, but locked."""

from collections import OrderedDict, deque
from threading import Lock


class Window:
    """The commands of one partition from the lowest unfinished one on, for as long as it is assigned to us.

    A committed offset says that everything below it has been answered, so it stays below the lowest that has not.
    It knows a second copy of a command, which comes when a processor that crashed publishes again: copies have one
    key, so one partition. ``taken`` and ``begins`` are called from the thread that consumes, ``done`` from the loop.
    """

    def __init__(self, remembered: int, start: int = 0, taken_over_at: float = 0.0, taken_over_to: int = 0) -> None:
        """Begin at a takeover.

        Args:
            remembered: answered commands whose second copies are known; the oldest are forgotten first.
            start: the committed offset.
            taken_over_at: when, s since the epoch.
            taken_over_to: the partition's end then. What is below it and comes, another relay may have had.
        """
        self._lock = Lock()
        self._remembered = remembered
        self.taken_over_at = taken_over_at
        self.taken_over_to = taken_over_to
        self._unanswered: set[str] = set()
        self._answered: OrderedDict[str, None] = OrderedDict()
        #: Offsets taken and not yet below the position, in order.
        self._offsets: deque[int] = deque()
        self._done: set[int] = set()
        self._position = self._committed = start
        #: The partition is somebody else's now: what waits is dropped, and nothing is committed.
        self.revoked = False

    def __len__(self) -> int:
        """Offsets from the lowest unfinished one on: what comes again after a crash."""
        return len(self._offsets)

    @property
    def position(self) -> int:
        """Everything below has been answered."""
        return self._position

    def taken(self, offset: int) -> None:
        with self._lock:
            self._offsets.append(offset)

    def begins(self, command_id: str) -> bool:
        """Whether this is the first copy of a command; a second one needs no answer."""
        with self._lock:
            if command_id in self._unanswered or command_id in self._answered:
                return False
            self._unanswered.add(command_id)
            return True

    def done(self, offset: int, command_id: str | None = None) -> None:
        """The command has been answered, and the answer is durable; or it needs none."""
        with self._lock:
            if command_id is not None:
                self._unanswered.discard(command_id)
                self._answered[command_id] = None
                if len(self._answered) > self._remembered:
                    self._answered.popitem(last=False)
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
