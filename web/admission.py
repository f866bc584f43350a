"""Whether something new is taken on: under sustained overload latency may grow, but not without end.

Only what begins is refused, with 503 and Retry-After; what was taken on (verbs, answers, reads) goes on, because that
is what makes the backlog smaller. Nothing is asked for a request: the backlog is measured in the background, and what
was admitted since is added.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

from web.database import DatabaseUnavailable
from web.metrics import RequestMetrics
from web.problems import Unavailable
from web.settings import RestSettings

log = structlog.get_logger()


class Admission:
    """Belongs to one event loop."""

    def __init__(self, settings: RestSettings, metrics: RequestMetrics, what: str, max_backlog: int) -> None:
        """
        Args:
            what: that wait, for people, as ``messages that are not delivered``.
            max_backlog: with so many nothing new is admitted.
        """
        self._max_creating = settings.max_creating
        self._retry_after = settings.overload_retry_seconds
        self._metrics = metrics
        self._what = what
        self._max_backlog = max_backlog
        self._creating = 0
        self._backlog = 0
        #: Ever, and when the last measurement began.
        self._admitted = self._measured_at = 0

    def check(self) -> None:
        """Raise Unavailable if nothing may be created now."""
        if self._creating >= self._max_creating:
            raise self._refuse("creating", f"{self._creating} are being created here.")
        waiting = self._backlog + self._admitted - self._measured_at
        if waiting >= self._max_backlog:
            raise self._refuse("backlog", f"There are about {waiting} {self._what}; {self._max_backlog} may be.")

    @contextmanager
    def creating(self) -> Iterator[None]:
        """Within it something is created."""
        self._creating += 1
        self._admitted += 1
        try:
            yield
        finally:
            self._creating -= 1

    def _refuse(self, limit: str, detail: str) -> Unavailable:
        self._metrics.refused.labels(limit).inc()
        return Unavailable(f"{detail} Nothing was written; send it again later.", self._retry_after, "overloaded")

    async def measure(self, measurement: Callable[[], Awaitable[int]]) -> None:
        """Take what ``measurement`` returns for the backlog. While it fails, the last one counts."""
        began_at = self._admitted
        self._backlog = await measurement()
        self._measured_at = began_at
        self._metrics.backlog.set(self._backlog)


class Sampling:
    """Measures in the background."""

    def __init__(self, admission: Admission, measurement: Callable[[], Awaitable[int]], seconds: float) -> None:
        self._admission = admission
        self._measurement = measurement
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._sample(), name="backlog")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _sample(self) -> None:
        while True:
            try:
                await self._admission.measure(self._measurement)
            except DatabaseUnavailable as error:
                log.warning("the backlog is not known now", error=str(error))
            except Exception:
                log.exception("measuring the backlog failed unexpectedly")
            await asyncio.sleep(self._seconds)
