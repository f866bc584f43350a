"""Who waits for something to happen to a transaction, and the one connection that wakes them.

The processor does ``NOTIFY fluxora_changed, '<id>,<id>,…'`` in the transaction that changes the transactions, so
PostgreSQL delivers it exactly when, and only if, the change is committed. No waiter polls meanwhile.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from starlette.types import Receive

from coordinator.metrics import Metrics
from coordinator.settings import APPLICATION, Settings
from saga_processors.store import CHANGED_CHANNEL
from web.database import DatabaseUnavailable, connect_arguments
from web.problems import Unavailable

log = structlog.get_logger()

_RECONNECT_MAX_SECONDS = 2.0

_T = TypeVar("_T")
#: Finds what is waited for, of many waiters with one query: those of the keys for which it has happened.
Look = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, _T]]]


@dataclass(eq=False, slots=True)
class _Waiter:
    look: Look[Any]
    key: UUID
    enough: Callable[[Any], bool]
    woken: asyncio.Future[Any]


class Waiting:
    """Wakes waiters. Belongs to one event loop.

    Nothing is missed: a waiter is registered before it looks for itself (or before it writes what it waits for the
    answer to), and when the connection comes back all who are registered are looked up, with one query of each
    kind, after LISTEN.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._waiters: dict[UUID, set[_Waiter]] = {}
        self._count = 0
        self._released = False
        self._listening: asyncio.Task[None] | None = None
        self._wakes: set[asyncio.Task[None]] = set()
        #: Why nobody is listening, if so.
        self.error: str | None = "not connected yet"

    def start(self) -> None:
        self._listening = asyncio.create_task(self._listen(), name="waiting")

    async def stop(self) -> None:
        self.release()
        tasks = [task for task in (self._listening, *self._wakes) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def release(self) -> None:
        """Let all who wait, now or later, answer with the state as it is: the process is about to end."""
        self._released = True
        for waiter in [waiter for waiters in self._waiters.values() for waiter in waiters]:
            _resolve(waiter, None)

    @contextlib.contextmanager
    def register(
        self,
        transaction_id: UUID,
        look: Look[_T],
        *,
        key: UUID | None = None,
        enough: Callable[[_T], bool] = lambda found: True,
    ) -> Iterator[asyncio.Future[_T | None]]:
        """Take a place among the waiters; raises Unavailable when there is none.

        Args:
            transaction_id: whose changes wake it.
            look: how to find what is waited for. Waiters with the same one are looked up together.
            key: what to look for; default: the transaction's id.
            enough: whether what was found ends the wait.

        Yields:
            A future of what was found, or of ``None``: look yourself.
        """
        if self._count >= self._settings.max_waiters:
            raise Unavailable(f"{self._count} requests wait already; ask without waiting.", 1, "too-many-waiters")
        woken: asyncio.Future[_T | None] = asyncio.get_running_loop().create_future()
        if self._released:
            woken.set_result(None)
        waiter = _Waiter(look, key or transaction_id, enough, woken)
        waiters = self._waiters.setdefault(transaction_id, set())
        waiters.add(waiter)
        self._count += 1
        self._metrics.waiters.set(self._count)
        try:
            yield woken
        finally:
            self._count -= 1
            self._metrics.waiters.set(self._count)
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(transaction_id, None)

    async def until(self, woken: asyncio.Future[_T | None], seconds: float, receive: Receive) -> _T | None:
        """Wait for the future of :meth:`register`, for ``seconds``, or for the client to leave.

        ``receive`` is the request's, whose body has been read: its next message is the disconnect.

        Returns:
            What was found, or ``None``: look yourself.
        """
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((woken, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        return woken.result() if woken.done() else None

    async def _listen(self) -> None:
        pause = 0.1
        while True:
            began = time.monotonic()
            try:
                await self._listen_once()
            except (psycopg.Error, OSError, TimeoutError, DatabaseUnavailable) as error:
                self.error = f"LISTEN: {error or 'no answer in time'}"
                log.warning("the connection that wakes waiters was lost", error=str(error))
            except Exception as error:
                self.error = f"LISTEN: {error!r}"
                log.exception("listening failed unexpectedly")
            finally:
                self._metrics.listening.set(0)
            pause = 0.1 if time.monotonic() - began > 10 else min(pause * 2, _RECONNECT_MAX_SECONDS)
            await asyncio.sleep(pause)

    async def _listen_once(self) -> None:
        arguments = connect_arguments(self._settings, APPLICATION)
        silence = self._settings.listen_check_seconds
        async with await AsyncConnection.connect(self._settings.database_url, **arguments) as connection:
            await connection.execute(f"LISTEN {CHANGED_CHANNEL}")
            await self._wake(list(self._waiters))
            self.error = None
            self._metrics.listening.set(1)
            log.info("listening", waiters=self._count)
            while True:
                async for notify in connection.notifies(timeout=silence):
                    if ids := self._awaited(notify.payload):
                        task = asyncio.create_task(self._wake_or_defer(ids))
                        self._wakes.add(task)
                        task.add_done_callback(self._wakes.discard)
                # A connection whose other end has vanished is silent too.
                async with asyncio.timeout(silence):
                    await connection.execute("SELECT 1")

    def _awaited(self, payload: str) -> list[UUID]:
        ids = []
        for text in payload.split(","):
            try:
                transaction_id = UUID(text)
            except ValueError:
                log.warning("a notification that is no id", channel=CHANGED_CHANNEL, payload=text[:100])
                continue
            if transaction_id in self._waiters:
                ids.append(transaction_id)
        return ids

    async def _wake(self, transaction_ids: Iterable[UUID]) -> None:
        """Look for what those who wait for these transactions wait for, and hand it to them."""
        by_look: dict[Look[Any], list[_Waiter]] = {}
        for transaction_id in transaction_ids:
            for waiter in self._waiters.get(transaction_id, ()):
                if not waiter.woken.done():
                    by_look.setdefault(waiter.look, []).append(waiter)
        for look, waiters in by_look.items():
            found = await look(list({waiter.key for waiter in waiters}))
            for waiter in waiters:
                if waiter.key in found and waiter.enough(found[waiter.key]):
                    _resolve(waiter, found[waiter.key])

    async def _wake_or_defer(self, transaction_ids: list[UUID]) -> None:
        try:
            await self._wake(transaction_ids)
        except DatabaseUnavailable:
            for transaction_id in transaction_ids:
                for waiter in self._waiters.get(transaction_id, ()):
                    _resolve(waiter, None)


def _resolve(waiter: _Waiter, found: object) -> None:
    if not waiter.woken.done():
        waiter.woken.set_result(found)
