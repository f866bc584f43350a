"""Which destinations can be reached over Kafka: those with a ``<name>.messages`` or ``<name>.commands`` topic."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from outbox_relay.messages.names import COMMANDS, MESSAGES
from outbox_relay.messages.settings import APPLICATION, MessageSettings

log = structlog.get_logger()

#: Least seconds between two listings, however many unknown names come.
_INTERVAL_SECONDS = 0.5


def quiet_logger() -> logging.Logger:
    """For librdkafka, whose lines repeat each second while Kafka is down; we tell it once for each try."""
    quiet = logging.getLogger("outbox_relay.librdkafka")
    quiet.setLevel(logging.CRITICAL)
    return quiet


def list_topics(settings: MessageSettings) -> Callable[[], Iterable[str]]:
    """Return a blocking function that lists the topics; it raises KafkaException."""
    client = AdminClient(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "client.id": APPLICATION,
        },
        logger=quiet_logger(),
    )

    def listing() -> Iterable[str]:
        found = client.list_topics(timeout=settings.kafka_timeout_seconds)
        if not found.brokers:
            # Brokers that have just come back know neither themselves nor all of their topics.
            raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        return found.topics

    return listing


class Topics:
    """The names that are known; they survive an outage of Kafka. Belongs to one event loop."""

    def __init__(self, settings: MessageSettings, listing: Callable[[], Iterable[str]]) -> None:
        self._listing = listing
        self._pause = settings.topics_seconds
        self._known: frozenset[str] = frozenset()
        # A thread of its own: a listing that hangs must not take those that others use.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="topics")
        self._asking = asyncio.Lock()
        self._began = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        #: Why the last listing failed, if it did.
        self.error: str | None = "Kafka has not been asked yet"

    def start(self) -> None:
        self._refreshing = asyncio.create_task(self._refresh(), name="topics")

    async def stop(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        self._thread.shutdown(wait=False, cancel_futures=True)

    def has(self, destination: str) -> bool:
        """Whether the destination was known at the last listing."""
        return destination in self._known

    async def find(self, destination: str) -> bool:
        """As :meth:`has`, after a new listing if the name is not known; all who ask at once share it."""
        if destination not in self._known:
            await self._list(time.monotonic())
        return destination in self._known

    async def _list(self, needed_at: float) -> None:
        async with self._asking:
            if self._began >= needed_at:
                return
            await asyncio.sleep(max(0.0, self._began + _INTERVAL_SECONDS - time.monotonic()))
            self._began = time.monotonic()
            try:
                topics = await asyncio.get_running_loop().run_in_executor(self._thread, self._listing)
            except KafkaException as error:
                self.error = f"Kafka: {error.args[0].str()}"
                log.warning("listing the topics failed", error=self.error)
            else:
                self.error = None
                self._known = frozenset(
                    topic.removesuffix(suffix)
                    for topic in topics
                    for suffix in (MESSAGES, COMMANDS)
                    if topic.endswith(suffix)
                )

    async def _refresh(self) -> None:
        while True:
            try:
                await self._list(time.monotonic())
            except Exception:
                log.exception("listing the topics failed unexpectedly")
            await asyncio.sleep(self._pause)
