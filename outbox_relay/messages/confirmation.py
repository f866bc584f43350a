"""Messages that went to Kafka are DELIVERED when their records are seen in their topics.

A consumer group of our own reads every ``<service>.messages`` topic, whatever its consumers do, and takes the
``ce_id`` of each record. The rows are written first and the offsets committed after, so a crash in between reads
records again, which changes nothing: a message is marked once.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from uuid import UUID

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.names import MESSAGES
from outbox_relay.messages.settings import APPLICATION, MessageSettings
from outbox_relay.messages.store import Store
from outbox_relay.messages.topics import quiet_logger
from participant.membership import Hearing
from web.database import DatabaseUnavailable

log = structlog.get_logger()

_PATTERN = f"^.*{MESSAGES.replace('.', '[.]')}$"
_BATCH = 500
_POLL_SECONDS = 0.2
_PAUSE_SECONDS = 1.0


class Confirmation:
    """The consumer blocks, so it has a thread; its SQL runs on the event loop."""

    def __init__(self, settings: MessageSettings, store: Store, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: Why nothing is confirmed now, if so.
        self.error: str | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="confirmation", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            try:
                self._consume(loop)
            except (KafkaException, DatabaseUnavailable, TimeoutError) as error:
                self.error = f"confirming: {error}"
                log.warning("confirming failed; trying again", error=str(error))
            except Exception as error:
                self.error = f"confirming: {error!r}"
                log.exception("confirming failed unexpectedly")
            self._stop.wait(_PAUSE_SECONDS)

    def _consume(self, loop: asyncio.AbstractEventLoop) -> None:
        refresh_ms = int(self._settings.confirm_refresh_seconds * 1000)
        hearing = Hearing()
        consumer = Consumer(
            {
                **hearing.settings,
                "bootstrap.servers": self._settings.kafka_bootstrap_servers,
                "group.id": self._settings.confirm_group,
                "client.id": APPLICATION,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                # A new topic is found by the pattern with the next look at the cluster.
                "topic.metadata.refresh.interval.ms": refresh_ms,
                "metadata.max.age.ms": max(3 * refresh_ms, 10_000),
                "allow.auto.create.topics": False,
                # Only headers are wanted, but records come whole.
                "queued.max.messages.kbytes": 8 * 1024,
                "fetch.max.bytes": 4 * 1024 * 1024,
                "session.timeout.ms": 10_000,
            },
            logger=quiet_logger(),
        )
        try:
            consumer.subscribe([_PATTERN])
            while not self._stop.is_set():
                # An error, and a partition that is not fetched, make a new consumer.
                hearing.check((one.topic, one.partition) for one in consumer.assignment())
                records = consumer.consume(_BATCH, _POLL_SECONDS)
                good = []
                for record in records:
                    if (error := record.error()) is None:
                        good.append(record)
                    elif error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:  # deleted since the last look
                        raise KafkaException(error)
                if good:
                    if ids := ids_of(good):
                        self._confirm(loop, ids)
                    consumer.commit(asynchronous=False)
                self.error = None
        finally:
            consumer.close()

    def _confirm(self, loop: asyncio.AbstractEventLoop, ids: Sequence[UUID]) -> None:
        writing = asyncio.run_coroutine_threadsafe(self._store.confirm(ids), loop)
        began = time.monotonic()
        while not writing.done() and not self._stop.is_set() and time.monotonic() - began < 30:
            self._stop.wait(0.002)
        self._metrics.confirmed.inc(writing.result(timeout=1))


def ids_of(records: Sequence[Message]) -> list[UUID]:
    """The ids of the messages among the records; what others put into these topics has none."""
    ids = []
    for record in records:
        found = dict(record.headers() or ()).get("ce_id")
        if isinstance(found, bytes):
            with contextlib.suppress(ValueError):
                ids.append(UUID(found.decode("ascii")))
    return ids
