"""Calls side by side, each in the lane of its service, so that one that hangs holds up no other.

A service has two lanes, one for what asks and one for what was decided (``relay._lane``).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from schemas import FluxoraError

Job = TypeVar("Job")


#: A lane takes at most one of so many free places.
_SHARE = 4


class Overloaded(FluxoraError):
    """There is no room for another job to wait."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Of one lane, and of all together."""

    running: int = 64
    running_total: int = 512
    waiting: int = 1_000
    waiting_bytes: int = 8 << 20
    waiting_total: int = 20_000
    waiting_bytes_total: int = 64 << 20


@dataclass(slots=True)
class _Lane(Generic[Job]):
    running: int = 0
    #: With the size of each.
    waiting: deque[tuple[Job, int]] = field(default_factory=deque)
    waiting_bytes: int = 0


class Lanes(Generic[Job]):
    """Runs jobs on the event loop, at most so many at once, in order of arrival within a lane.

    A lane may have running a quarter of the places that are free, and no more than its limit: the more lanes hang, the
    less the next one may take, and dozens of them leave room for others (the dynamic threshold of Choudhury and
    Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). The last places go to lanes that have none. Lanes that
    wait take turns.
    """

    def __init__(self, limits: LaneLimits, run: Callable[[Job], Coroutine[Any, Any, None]]) -> None:
        """``run`` must not raise for anything that may happen; if it does, ``failure`` is set."""
        self._limits = limits
        self._run = run
        self._lanes: dict[str, _Lane[Job]] = {}
        #: Those with jobs that wait, whose turn is next first.
        self._turns: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.running = 0
        self.waiting = 0
        self.waiting_bytes = 0
        #: Set to what ``run`` raised, once.
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def submit(self, name: str, job: Job, size: int) -> None:
        """Run ``job`` in the lane ``name`` now or in its turn.

        Raises:
            Overloaded: no room; the message says how many wait for what.
        """
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane()
        if not lane.waiting and self._may_run(lane):
            self._start(name, lane, job)
            return
        limits = self._limits
        if len(lane.waiting) >= limits.waiting or lane.waiting_bytes + size > limits.waiting_bytes:
            raise Overloaded(f"the relay has {len(lane.waiting)} commands waiting for {name}")
        if self.waiting >= limits.waiting_total or self.waiting_bytes + size > limits.waiting_bytes_total:
            self._forget_if_idle(name, lane)
            raise Overloaded(f"the relay has {self.waiting} commands waiting, {len(lane.waiting)} of them for {name}")
        lane.waiting.append((job, size))
        self._count(lane, 1, size)
        self._turns.setdefault(name)

    def drop(self, unwanted: Callable[[Job], bool]) -> int:
        """Take out the jobs that wait and are not wanted any more; returns how many."""
        dropped = 0
        for name in list(self._turns):
            lane = self._lanes[name]
            gone = [entry for entry in lane.waiting if unwanted(entry[0])]
            if gone:
                lane.waiting = deque(entry for entry in lane.waiting if not unwanted(entry[0]))
                self._count(lane, -len(gone), -sum(size for _, size in gone))
                dropped += len(gone)
            if not lane.waiting:
                del self._turns[name]
                self._forget_if_idle(name, lane)
        return dropped

    async def finish(self, seconds: float) -> int:
        """Wait for what runs, at most so long, and then cancel it; returns how many were cancelled."""
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)

    def _may_run(self, lane: _Lane[Job]) -> bool:
        free = self._limits.running_total - self.running
        return free > 0 and lane.running < min(self._limits.running, max(1, free // _SHARE))

    def _start(self, name: str, lane: _Lane[Job], job: Job) -> None:
        lane.running += 1
        self.running += 1
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(name, lane, task))

    def _ended(self, name: str, lane: _Lane[Job], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        lane.running -= 1
        self.running -= 1
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            self.failure.set_exception(error)
        self._forget_if_idle(name, lane)
        self._next()

    def _next(self) -> None:
        """Give the free places to lanes that wait, in turn."""
        for name in list(self._turns):
            if self.running >= self._limits.running_total:
                return
            lane = self._lanes[name]
            if not self._may_run(lane):
                continue
            job, size = lane.waiting.popleft()
            self._count(lane, -1, -size)
            del self._turns[name]
            if lane.waiting:
                self._turns[name] = None
            self._start(name, lane, job)

    def _count(self, lane: _Lane[Job], jobs: int, size: int) -> None:
        lane.waiting_bytes += size
        self.waiting += jobs
        self.waiting_bytes += size

    def _forget_if_idle(self, name: str, lane: _Lane[Job]) -> None:
        if not lane.running and not lane.waiting:
            self._lanes.pop(name, None)
