"""Virtual time, and processes that live in it: each a coroutine that may be killed, or frozen, wherever it waits.

A process gives way with ``yield`` or ``await line(name)`` between any two lines of which the order matters; there it
may be killed, or frozen for so long that others think it dead. What it held in memory is gone when it is killed; what
is in a database or a topic stays. Then it is started anew.
"""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Generator
from itertools import count
from typing import Any

from tests.simulation.chance import Chance

#: A name: a line at which the process may die. A number: milliseconds to wait. ``ASLEEP``: until it is woken.
Point = str | int
ASLEEP = -1
Life = Generator[Point, None, None] | Coroutine[Any, None, None]

#: ms that a line takes.
_LINE = 1
#: Shares of lines at which a process dies, is slow, is frozen.
_KILLED, _SLOW, _FROZEN = 0.02, 0.03, 0.004
_RESTART = 300


class Dies(Exception):
    """The process ends itself (crash-only), and is started anew."""


class line:
    """``await line(name)``: a line at which the process may die."""

    __slots__ = ("point",)

    def __init__(self, point: Point) -> None:
        self.point = point

    def __await__(self) -> Generator[Point, None, None]:
        yield self.point


class Schedule:
    """The agenda of one world."""

    def __init__(self, chance: Chance) -> None:
        self.chance = chance
        self.now = 0
        self.steps = 0
        self.running: Process | None = None
        #: What happened, for people; kept only when a run is told.
        self.story: list[str] | None = None
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def later(self, delay: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + delay, next(self._order), action))

    def run(self, until: Callable[[], bool]) -> None:
        """Do what is due until there is nothing left or ``until`` says so, which is asked before every step."""
        asyncio._set_running_loop(Loop(self))  # type: ignore[arg-type]
        try:
            while self._agenda and not until():
                self.now, _, action = heapq.heappop(self._agenda)
                self.steps += 1
                action()
        finally:
            asyncio._set_running_loop(None)

    def tell(self, what: str) -> None:
        if self.story is not None:
            self.story.append(f"{self.now:>7} ms  {what}")


class Task:
    """A coroutine within a process; ``await`` gives what it came to."""

    def __init__(self, process: "Process", life: Life) -> None:
        self.process = process
        self.life = life
        self.done = False
        self._error: Exception | None = None
        self._asleep = False
        self._woken = False

    def __await__(self) -> Generator[Point, None, None]:
        while not self.done:
            yield ASLEEP
        if self._error is not None:
            raise self._error

    def wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self.next(_LINE)
        else:
            self._woken = True

    def next(self, delay: int) -> None:
        self.process.schedule.later(delay, self._step)

    def end(self) -> None:
        """With its process."""
        if not self.done:
            self.done = True
            self.life.close()

    def _step(self) -> None:
        process = self.process
        if self.done:
            return
        if process.schedule.now < process.frozen_until:
            self.next(process.frozen_until - process.schedule.now)
            return
        process.schedule.running = process
        try:
            point = self.life.send(None)
        except StopIteration:
            self._over(None)
        except Exception as error:
            self._over(error)
        else:
            if point == ASLEEP:
                if self._woken:
                    self._woken = False
                    self.next(_LINE)
                else:
                    self._asleep = True
            elif isinstance(point, int):
                self.next(point)
            elif (delay := process.at(point)) is not None:
                self.next(delay)

    def _over(self, error: Exception | None) -> None:
        self.done = True
        self._error = error
        self.process.ended(self, error)


class Process:
    """One process: started, killed, frozen, started anew."""

    def __init__(
        self,
        schedule: Schedule,
        name: str,
        live: Callable[[], Life],
        *,
        died: Callable[[], None] = lambda: None,
        crash_only: tuple[type[Exception], ...] = (),
    ) -> None:
        """
        Args:
            live: its ``main``.
            died: what others see of its death at once: its connections are closed.
            crash_only: exceptions on which it ends itself.
        """
        self.name = name
        self.schedule = schedule
        #: It stands still until then, ms.
        self.frozen_until = 0
        self._chance = schedule.chance
        self._live = live
        self._died = died
        self._crash_only = (Dies, *crash_only)
        #: The first is ``main``; none while it is down.
        self._tasks: list[Task] = []
        self._start()

    def wake(self) -> None:
        """Something has come. What is at work looks again before it sleeps."""
        if self._tasks:
            self._tasks[0].wake()

    def kill(self) -> None:
        if self._tasks:
            self.schedule.tell(f"{self.name} dies")
            self._end()

    def spawn(self, life: Life) -> Task:
        """Another coroutine of this process."""
        task = Task(self, life)
        self._tasks.append(task)
        task.next(_LINE)
        return task

    def _start(self) -> None:
        self.spawn(self._live())

    def _end(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.end()
        self.frozen_until = 0
        self._died()
        self.schedule.later(_RESTART, self._start)

    def ended(self, task: Task, error: Exception | None) -> None:
        """``main`` takes the process with it; what another one has raised waits for its ``await``."""
        if task is not self._tasks[0]:
            self._tasks.remove(task)
            self._tasks[0].wake()
        elif error is None:
            self._tasks = []
        elif isinstance(error, self._crash_only):
            self.schedule.tell(f"{self.name} ends: {str(error)[:60]}")
            self._end()
        else:
            raise error

    def at(self, point: str) -> int | None:
        """How long it takes to get past a line, ms; ``None``: it never does."""
        chance, place = self._chance, f"{self.name}: {point}"
        if chance.fault("kill", place, _KILLED):
            self.kill()
            return None
        if chance.fault("freeze", place, _FROZEN):
            delay = 1_000 + chance.amount("freeze", place, 8_000)
            self.schedule.tell(f"{place}: frozen for {delay} ms")
            self.frozen_until = self.schedule.now + delay
            return delay
        if chance.fault("slow", place, _SLOW):
            return (5, 50, 700)[chance.amount("slow", place, 3)]
        return _LINE


class Loop:
    """What ``asyncio.create_task`` finds: a task of the process that runs now."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def create_task(self, life: Life) -> Task:
        assert self._schedule.running is not None
        return self._schedule.running.spawn(life)
