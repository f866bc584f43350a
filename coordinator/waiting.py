"""Who waits for a saga's end, and the one connection that wakes them.

The processor does ``NOTIFY fluxora_ended, '<id>,<id>,…'`` in the transaction that ends the sagas, so
PostgreSQL delivers it exactly when, and only if, their end is committed. No waiter polls meanwhile.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from starlette.types import Receive

from coordinator.metrics import Metrics
from coordinator.settings import APPLICATION, Settings
from coordinator.store import Store
from coordinator.views import SagaRow
from web.database import DatabaseUnavailable, connect_arguments
from web.problems import Unavailable

log = structlog.get_logger()

CHANNEL = "fluxora_ended"
_RECONNECT_MAX_SECONDS = 2.0

#: Its result is the saga's row, or ``None``: look yourself.
Woken = asyncio.Future[SagaRow | None]


class Waiting:
    """Wakes waiters. Belongs to one event loop.

    Nothing is missed: a waiter is registered before it reads the saga, and when the connection comes back
    all who are registered are looked up, with one query, after LISTEN.
    """

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._waiters: dict[UUID, set[Woken]] = {}
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
        for woken in [woken for waiters in self._waiters.values() for woken in waiters]:
            _resolve(woken, None)

    @contextlib.contextmanager
    def register(self, saga_id: UUID) -> Iterator[Woken]:
        """Take a place among the waiters; raises Unavailable when there is none."""
        if self._count >= self._settings.max_waiters:
            raise Unavailable(f"{self._count} requests wait already; ask without ?wait=.", 1, "too-many-waiters")
        woken: Woken = asyncio.get_running_loop().create_future()
        if self._released:
            woken.set_result(None)
        waiters = self._waiters.setdefault(saga_id, set())
        waiters.add(woken)
        self._count += 1
        self._metrics.waiters.set(self._count)
        try:
            yield woken
        finally:
            self._count -= 1
            self._metrics.waiters.set(self._count)
            waiters.discard(woken)
            if not waiters:
                self._waiters.pop(saga_id, None)

    async def until(self, woken: Woken, seconds: float, receive: Receive) -> SagaRow | None:
        """Wait for the end, for ``seconds``, or for the client to leave. ``None``: look yourself.

        ``receive`` is the request's, whose body has been read: its next message is the disconnect.
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
            await connection.execute(f"LISTEN {CHANNEL}")
            await self._wake(list(self._waiters))
            self.error = None
            self._metrics.listening.set(1)
            log.info("listening for ended sagas", waiters=self._count)
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
                saga_id = UUID(text)
            except ValueError:
                log.warning("a notification that is no id", channel=CHANNEL, payload=text[:100])
                continue
            if saga_id in self._waiters:
                ids.append(saga_id)
        return ids

    async def _wake(self, saga_ids: Iterable[UUID]) -> None:
        """Look up those of the sagas that have ended and hand the rows to who waits for them."""
        ids = list(saga_ids)
        if not ids:
            return
        for row in await self._store.read_ended(ids):
            for woken in self._waiters.get(row.id, ()):
                _resolve(woken, row)

    async def _wake_or_defer(self, saga_ids: list[UUID]) -> None:
        try:
            await self._wake(saga_ids)
        except DatabaseUnavailable:
            for saga_id in saga_ids:
                for woken in self._waiters.get(saga_id, ()):
                    _resolve(woken, None)


def _resolve(woken: Woken, row: SagaRow | None) -> None:
    if not woken.done():
        woken.set_result(row)
