"""What goes on beside delivery: counting what is PENDING, forgetting what is old, reading changed rules."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.rules import Rules
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.messages.store import Status, Store
from web.admission import Admission
from web.database import DatabaseUnavailable

log = structlog.get_logger()

_SHOWN_DESTINATIONS = 100


class Upkeep:
    """Belongs to one event loop."""

    def __init__(
        self, settings: MessageSettings, store: Store, rules: Rules, metrics: Metrics, admission: Admission
    ) -> None:
        self._settings = settings
        self._store = store
        self._rules = rules
        self._metrics = metrics
        self._admission = admission
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: dict[str, int] = {}

    def start(self) -> None:
        settings = self._settings
        self._tasks = [
            asyncio.create_task(_repeat(what, pause), name=what.__name__)
            for what, pause in (
                (self._look_at_rules, settings.rules_interval_seconds),
                (self._count, settings.count_seconds),
                (self._prune, settings.prune_seconds),
            )
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pending(self, destination: str) -> int:
        """PENDING messages of a destination, as of the last count."""
        return self._pending.get(destination, 0)

    async def _look_at_rules(self) -> None:
        self._rules.look()
        self._metrics.rules.set(len(self._rules))
        self._metrics.rules_broken.set(self._rules.error is not None)

    async def _count(self) -> None:
        await self._admission.measure(self._pending_in_all)
        self._metrics.pending.clear()
        most = sorted(self._pending.items(), key=lambda item: -item[1])[:_SHOWN_DESTINATIONS]
        for destination, count in most:
            self._metrics.pending.labels(destination).set(count)

    async def _pending_in_all(self) -> int:
        self._pending = await self._store.pending()
        return sum(self._pending.values())

    async def _prune(self) -> None:
        settings = self._settings
        prunings = (
            partial(self._store.prune, Status.DELIVERED, settings.delivered_days),
            partial(self._store.prune, Status.FAILED, settings.failed_days),
            partial(self._store.prune_keys, settings.idempotency_days),
        )
        for prune in prunings:
            while deleted := await prune(settings.prune_rows):
                self._metrics.pruned.inc(deleted)
                if deleted < settings.prune_rows:
                    break


async def _repeat(what: Callable[[], Awaitable[None]], pause: float) -> None:
    while True:
        try:
            await what()
        except DatabaseUnavailable as error:
            log.warning("upkeep failed; trying again", error=str(error))
        except Exception:
            log.exception("upkeep failed unexpectedly")
        await asyncio.sleep(pause)
