"""The stack under measurement, and what every benchmark needs of it."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from bench import cpu
from bench.distribution import summary
from bench.ends import Ends, NotEnded
from bench.load import ORDERS, FromOutbox, Load, OverRest, refusals
from bench.order import NAMES
from bench.results import Results
from deploy.stack import Stack

SERVICES = Path(__file__).with_name("order.toml")
PAIR = Path(__file__).with_name("pair.toml")
#: CPU time of what follows the last end is counted too, as in the peers' driver.
TRAILING_S = 1.0
#: Sagas of the warm-up that are under way at once.
_WARM_UP_CHUNK = 2_000


class BenchmarkFailed(Exception):
    """What was measured is not what should have been done, or not in time. Its figures would mean nothing."""


class OutOfTime(Exception):
    """The time of the whole run is over; what is left is skipped."""


@dataclass
class Stage:
    """A stack that runs, with our ear at its ends of sagas."""

    endpoints: dict[str, str]
    stack: Stack
    results: Results
    #: Takes a line of progress.
    say: Callable[[str], None]
    ends: Ends
    #: Monotonic; nothing begins after it.
    deadline: float
    #: Seconds that one measured run may take.
    limit_s: float

    @property
    def pids(self) -> Path:
        return self.stack.settings.pid_dir

    @property
    def orders_url(self) -> str:
        return self.endpoints["DATABASE_URL"] + ORDERS

    def look_at_the_clock(self) -> None:
        """Raise OutOfTime if the run's time is over."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time of the whole run is over")

    def measure(self, load: Load, sagas: int, fail_every: int) -> dict[str, Any]:
        """Start sagas, wait for the last end, check what they did; returns rate and CPU a saga.

        Raises:
            BenchmarkFailed: they have not all ended in time, or not as they should.
            OutOfTime: nothing was begun.
        """
        self.look_at_the_clock()
        before = cpu.snapshot(self.pids)
        began = time.time()
        ids = load.start(sagas, fail_every)
        started = time.time() - began
        try:
            seconds = self.ends.wait(ids, self.limit_s) - began
        except NotEnded as error:
            raise BenchmarkFailed(str(error)) from error
        time.sleep(TRAILING_S)
        after = cpu.snapshot(self.pids)
        self.check(ids, refusals(sagas, fail_every))
        return {
            "sagas": sagas,
            "fail_every": fail_every,
            "seconds": round(seconds, 2),
            "sagas_per_s": round(sagas / seconds, 1),
            "started_within_s": round(started, 2),
            **cpu.per_saga(before, after, sagas),
        }

    def check(self, ids: list[str], refused: int, steps: Sequence[str] = NAMES) -> None:
        """Compare states and rows with what must be there, as the peers' driver does."""
        with psycopg.connect(self.endpoints["DATABASE_URL"]) as connection:
            states: dict[str, int] = dict(
                connection.execute(
                    "SELECT state, count(*) FROM transactions WHERE id = ANY(%s::uuid[]) GROUP BY state", (ids,)
                ).fetchall()
            )
        want = {"COMPLETED": len(ids) - refused, "FAILED": refused}
        if states != {state: count for state, count in want.items() if count}:
            raise BenchmarkFailed(f"of {len(ids)} sagas, {refused} to be refused, there are {states}")
        with psycopg.connect(self.orders_url) as connection:
            for name in steps:
                [row] = connection.execute(
                    f"SELECT count(*), count(*) FILTER (WHERE state <> 'done') FROM {name} "
                    "WHERE order_id = ANY(%s::uuid[])",
                    (ids,),
                ).fetchall()
                expected = (len(ids) - refused, 0) if name == NAMES[-1] else (len(ids), refused)
                if row != expected:
                    raise BenchmarkFailed(f"{name} has (rows, undone) {row}, not {expected}")

    def warm_up(self, sagas: int) -> None:
        """Run sagas that are not measured: a fresh JVM climbs for tens of thousands of them."""
        began, done = time.monotonic(), 0
        with FromOutbox(self.endpoints, per_transaction=50) as many, OverRest(self.endpoints) as rest:
            while done < sagas:
                self.look_at_the_clock()
                count = min(_WARM_UP_CHUNK, sagas - done)
                ids = many.start(count - count // 4, 10) + rest.start(count // 4, 0)
                try:
                    self.ends.wait(ids, self.limit_s)
                except NotEnded as error:
                    raise BenchmarkFailed(f"warm-up: {error}") from error
                done += count
                self.say(f"warm-up: {done} of {sagas} sagas, {done / (time.monotonic() - began):.0f}/s on average")

    def idle(self, seconds: float) -> dict[str, Any]:
        """What the stack costs doing nothing."""
        self.look_at_the_clock()
        time.sleep(2)  # what the load has left behind
        before, began = cpu.snapshot(self.pids), time.monotonic()
        time.sleep(seconds)
        after, took = cpu.snapshot(self.pids), time.monotonic() - began
        used = cpu.cores(before, after, took)
        return {
            "seconds": round(took, 1),
            "percent_of_a_core": round(sum(used.values()), 2),
            "percent_of_a_core_by_process": used,
        }


@contextmanager
def open_stage(
    stack: Stack, results: Results, say: Callable[[str], None], *, deadline: float, limit_s: float, keep: bool
) -> Iterator[Stage]:
    """A fresh stack; with ``keep`` the one that runs already, and it goes on. Raises ``deploy.stack.StackError``."""
    if not keep:
        stack.clean()
    try:
        endpoints = stack.up()
        with Ends(endpoints["DATABASE_URL"]) as ends:
            yield Stage(endpoints, stack, results, say, ends, deadline, limit_s)
    finally:
        if not keep:
            stack.clean()


def end_on_sigterm() -> None:
    """SIGTERM ends the process as an exception does: what was started is stopped first."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """The summary of times in seconds."""
    return summary([one * 1000 for one in seconds])
