"""Virtual time, and processes that live in it: each a coroutine that may be killed, or frozen, wherever it waits.

A process gives way with ``yield`` or ``await line(name)`` between any two lines of which the order matters; there it
may be killed, or frozen for so long that others think it dead. What it held in memory is gone when it is killed; what
is in a database or a topic stays. Then it is started anew.
"""

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
        #: What happened, for people; kept only when a run is told.
        self.story: list[str] | None = None
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def later(self, delay: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + delay, next(self._order), action))

    def run(self, until: Callable[[], bool]) -> None:
        """Do what is due until there is nothing left or ``until`` says so, which is asked before every step."""
        while self._agenda and not until():
            self.now, _, action = heapq.heappop(self._agenda)
            self.steps += 1
            action()

    def tell(self, what: str) -> None:
        if self.story is not None:
            self.story.append(f"{self.now:>7} ms  {what}")


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
        mortal: bool = True,
    ) -> None:
        """
        Args:
            live: its ``main``.
            died: what others see of its death at once: its connections are closed.
            crash_only: exceptions on which it ends itself.
        """
        self.name = name
        self._schedule = schedule
        self._chance = schedule.chance
        self._live = live
        self._died = died
        self._crash_only = (Dies, *crash_only)
        self._mortal = mortal
        self._life: Life | None = None
        #: Which life this is: what was scheduled for an earlier one does nothing.
        self._number = 0
        self._asleep = False
        self._woken = False
        self._start()

    def wake(self) -> None:
        """Something has come. One that is at work looks again before it sleeps."""
        if self._asleep:
            self._asleep = False
            self._next(_LINE)
        else:
            self._woken = True

    def kill(self) -> None:
        if self._life is not None:
            self._schedule.tell(f"{self.name} dies")
            self._life.close()
            self._end()

    def _start(self) -> None:
        self._life = self._live()
        self._woken = True
        self._asleep = False
        self._next(_LINE)

    def _end(self) -> None:
        self._life = None
        self._number += 1
        self._asleep = False
        self._died()
        self._schedule.later(_RESTART, self._start)

    def _next(self, delay: int) -> None:
        number = self._number
        self._schedule.later(delay, lambda: self._step(number))

    def _step(self, number: int) -> None:
        if number != self._number or self._life is None:
            return
        try:
            point = self._life.send(None)
        except self._crash_only as error:
            self._schedule.tell(f"{self.name} ends: {str(error)[:60]}")
            self._end()
            return
        except StopIteration:
            self._life = None
            self._number += 1
            return
        if point == ASLEEP:
            if self._woken:
                self._woken = False
                self._next(_LINE)
            else:
                self._asleep = True
        elif isinstance(point, int):
            self._next(point)
        else:
            self._at(point)

    def _at(self, point: str) -> None:
        chance, place = self._chance, f"{self.name}: {point}"
        if self._mortal and chance.fault("kill", place, _KILLED):
            self.kill()
        elif chance.fault("freeze", place, _FROZEN):
            delay = 1_000 + chance.amount("freeze", place, 8_000)
            self._schedule.tell(f"{place}: frozen for {delay} ms")
            self._next(delay)
        elif chance.fault("slow", place, _SLOW):
            self._next((5, 50, 700)[chance.amount("slow", place, 3)])
        else:
            self._next(_LINE)
