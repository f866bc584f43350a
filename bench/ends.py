"""When transactions end, as a client of the coordinator's database hears it (LISTEN): to the moment, without polling.

A saga's processor notifies when the saga has ended. A two-phase commit's does so with every change of state, so there
the state is looked up.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Self

import psycopg

from saga_processors.store import CHANGED_CHANNEL

SAGA_ENDS = ("COMPLETED", "FAILED")
TWO_PHASE_ENDS = ("COMMITTED", "ABORTED")


class NotEnded(Exception):
    """Transactions that have not ended in time. The message says how many."""


class Ends:
    """Hears of ends from when it is entered until it is left."""

    def __init__(self, database_url: str, *, look_up: Collection[str] = ()) -> None:
        """``look_up``: a notification counts only if the state is one of these; none: every notification is an end."""
        self._database_url = database_url
        self._states = list(look_up)
        self._changed = threading.Condition()
        #: Seconds since 1970, this machine's clock.
        self._at: dict[str, float] = {}
        #: Who waits for one of them, and how they are woken.
        self._waiting: dict[str, Callable[[], object]] = {}
        self._stopping = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._listen, name="ends", daemon=True)

    def __enter__(self) -> Self:
        self._listener = psycopg.connect(self._database_url, autocommit=True)
        self._listener.execute(f"LISTEN {CHANGED_CHANNEL}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._thread.join(timeout=5)
        self._listener.close()

    def at(self, id: str) -> float:
        """When a transaction ended; it has."""
        return self._at[id]

    def wait(self, ids: Iterable[str], limit_s: float) -> float:
        """Wait until all have ended; returns when the last one did.

        Raises:
            NotEnded: not all have within ``limit_s`` seconds, or the connection was lost.
        """
        wanted = set(ids)
        total, deadline = len(wanted), time.monotonic() + limit_s
        missing = wanted
        while missing := {id for id in missing if id not in self._at}:
            left = deadline - time.monotonic()
            if self._failure is not None or left <= 0:
                why = f"within {limit_s:.0f} s" if self._failure is None else f"; the listener failed: {self._failure}"
                raise NotEnded(
                    f"{len(missing)} of {total} transactions have not ended {why}, {min(missing)} among them"
                )
            with self._changed:
                self._changed.wait(min(left, 0.2))
        return max(self._at[id] for id in wanted)

    def wait_for_one(self, id: str, limit_s: float) -> float:
        """As ``wait`` for one, woken by its end alone: for many threads that wait at once."""
        with self._changed:
            if id in self._at:
                return self._at[id]
            ended = threading.Event()
            self._waiting[id] = ended.set
        if not ended.wait(limit_s):
            raise self._too_late(id, limit_s)
        return self._at[id]

    @staticmethod
    def _too_late(id: str, limit_s: float) -> NotEnded:
        return NotEnded(f"transaction {id} has not ended within {limit_s:.0f} s")

    async def heard(self, id: str, limit_s: float) -> None:
        """As ``wait_for_one``, for many tasks of one event loop."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            if id in self._at:
                return
            self._waiting[id] = lambda: loop.call_soon_threadsafe(ended.set)
        try:
            await asyncio.wait_for(ended.wait(), limit_s)
        except TimeoutError:
            raise self._too_late(id, limit_s) from None

    def _listen(self) -> None:
        try:
            with psycopg.connect(self._database_url, autocommit=True) as looking:
                while not self._stopping:
                    for notification in self._listener.notifies(timeout=0.2):
                        self._note(looking, notification.payload.split(","))
        except Exception as error:
            self._failure = error

    def _note(self, looking: psycopg.Connection, ids: list[str]) -> None:
        if self._states:
            found = looking.execute(
                "SELECT id::text FROM transactions WHERE id = ANY(%s::uuid[]) AND state = ANY(%s)", (ids, self._states)
            )
            ids = [row[0] for row in found]
        now = time.time()
        with self._changed:
            for id in ids:
                self._at.setdefault(id, now)
                if (wake := self._waiting.pop(id, None)) is not None:
                    wake()
            self._changed.notify_all()
