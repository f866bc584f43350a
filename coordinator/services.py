"""Which Kafka services there are: those whose command topic exists.

A known name costs nothing and survives an outage of Kafka. An unknown one makes us ask, at most twice a
second however many come, so that a service added a moment ago is found.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from coordinator.metrics import Metrics
from coordinator.settings import Settings
from schemas import FluxoraError

log = structlog.get_logger()

SUFFIX = ".commands"


class KafkaUnavailable(FluxoraError):
    """Kafka could not be asked which services there are."""


def kafka_topics(bootstrap_servers: str, timeout_seconds: float) -> Callable[[], Iterable[str]]:
    """Return a blocking function that lists the topics; it raises KafkaException."""
    # Its own log lines repeat each second while Kafka is down; we tell it once for each listing.
    quiet = logging.getLogger("coordinator.librdkafka")
    quiet.setLevel(logging.CRITICAL)
    client = AdminClient(
        {
            "bootstrap.servers": bootstrap_servers,
            "socket.connection.setup.timeout.ms": max(1000, int(timeout_seconds * 1000)),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "client.id": "fluxora-coordinator",
        },
        logger=quiet,
    )

    def listing() -> Iterable[str]:
        found = client.list_topics(timeout=timeout_seconds)
        if not found.brokers:
            # Brokers that have just come back know neither themselves nor all of their topics.
            raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        return found.topics

    return listing


class Services:
    """The names that are known. Belongs to one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, topics: Callable[[], Iterable[str]]) -> None:
        self._topics = topics
        self._ttl = settings.services_ttl_seconds
        self._interval = settings.services_interval_seconds
        self._metrics = metrics
        self._known: frozenset[str] = frozenset()
        self._asking = asyncio.Lock()
        #: When the last listing began, by the monotonic clock, and what came of it.
        self._began = float("-inf")
        self._error: KafkaUnavailable | None = KafkaUnavailable("Kafka has not been asked yet")
        # A thread of its own: a listing that hangs must not take those that others use.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="topics")
        self._refreshing: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._refreshing = asyncio.create_task(self._refresh(), name="services")

    async def stop(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def error(self) -> str | None:
        """Why the last listing failed, if it did."""
        return None if self._error is None else str(self._error)

    @property
    def known(self) -> frozenset[str]:
        return self._known

    async def unknown(self, names: Iterable[str]) -> set[str]:
        """Return those of ``names`` that are no service.

        Raises:
            KafkaUnavailable: some are not known here, and Kafka does not say.
        """
        missing = set(names) - self._known
        if missing:
            await self._list(time.monotonic())
            missing -= self._known
        return missing

    async def _list(self, needed_at: float) -> None:
        """Make sure of a listing that began after ``needed_at``; all who wait share one."""
        async with self._asking:
            if self._began < needed_at:
                await asyncio.sleep(max(0.0, self._began + self._interval - time.monotonic()))
                self._began = time.monotonic()
                try:
                    topics = await asyncio.get_running_loop().run_in_executor(self._thread, self._topics)
                except KafkaException as error:
                    self._error = KafkaUnavailable(f"Kafka: {error.args[0].str()}")
                    log.warning("listing the Kafka services failed", error=str(self._error))
                else:
                    self._error = None
                    self._known = frozenset(
                        topic.removesuffix(SUFFIX)
                        for topic in topics
                        # fluxora.http.commands is the relay's, not a service's.
                        if topic.endswith(SUFFIX) and topic != SUFFIX and not topic.startswith("fluxora.")
                    )
                    self._metrics.services.set(len(self._known))
            if self._error is not None:
                raise self._error

    async def _refresh(self) -> None:
        while True:
            try:
                await self._list(time.monotonic())
                await asyncio.sleep(self._ttl)
            except KafkaUnavailable:
                await asyncio.sleep(min(2.0, self._ttl))
            except Exception:
                log.exception("refreshing the Kafka services failed unexpectedly")
                await asyncio.sleep(self._ttl)
