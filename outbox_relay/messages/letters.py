"""FAILED messages leave as dead letters to ``fluxora.messages.dlq``, with the header names of Kafka Connect's own.

Not through ``fluxora.outbox``: EventRouter makes headers of fixed columns, and a dead letter's are its own. The row
says ``letter_due`` in the transaction that makes the message FAILED, and it is taken back when the broker has
acknowledged; so a letter leaves at least once, also after a crash, and FAILED never waits for Kafka.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.names import DEAD_LETTERS, MESSAGES
from outbox_relay.messages.settings import APPLICATION, MessageSettings
from outbox_relay.messages.store import DEFAULT_TYPE, SOURCE, Store
from outbox_relay.messages.topics import quiet_logger
from web.database import DatabaseUnavailable

log = structlog.get_logger()

#: Their payloads, 960 KiB each at most, are in memory three times: the row, its bytes, the producer's queue.
_BATCH = 20
_PAUSE_SECONDS = 1.0

Headers = list[tuple[str, str | bytes | None]]


class Letters:
    """Belongs to one event loop."""

    def __init__(self, settings: MessageSettings, store: Store, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._producer: Producer | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="letters")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                rows = await self._store.letters(_BATCH)
                if rows:
                    await asyncio.to_thread(self._produce, rows)
                    await self._store.letters_left([(row["id"], row["ended_at"]) for row in rows])
                    self._metrics.letters.inc(len(rows))
                    continue
            except (KafkaException, DatabaseUnavailable) as error:
                # A producer that has failed for good would never send again.
                self._producer = None
                log.warning("dead letters not produced; trying again", error=str(error))
            except Exception:
                log.exception("producing dead letters failed unexpectedly")
            await asyncio.sleep(_PAUSE_SECONDS)

    def _produce(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Returns when all are acknowledged; raises KafkaException if one is not. Blocks."""
        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self._settings.kafka_bootstrap_servers,
                    "client.id": APPLICATION,
                    "acks": "all",
                    "enable.idempotence": True,
                    "partitioner": "murmur2_random",
                    "message.max.bytes": 2 * 1024 * 1024,
                    "delivery.timeout.ms": int(self._settings.kafka_timeout_seconds * 1000),
                },
                logger=quiet_logger(),
            )
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        for row in rows:
            self._producer.produce(
                DEAD_LETTERS,
                key=row["key"] or str(row["id"]),
                value=row["payload"].encode(),
                headers=headers_of(row),
                on_delivery=delivered,
            )
        if self._producer.flush(self._settings.kafka_timeout_seconds + 1) or failed:
            raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))


def headers_of(row: Mapping[str, Any]) -> Headers:
    """CloudEvents' headers, and why it failed by the names of Connect's DeadLetterQueueReporter."""
    why = {
        "topic": f"{row['routed_to']}{MESSAGES}",
        "connector.name": APPLICATION,
        "stage": "DELIVERY",
        "class.name": "outbox_relay.messages.delivery.Delivery",
        "exception.message": row["last_error"] or "",
    }
    headers: Headers = [
        ("ce_id", str(row["id"])),
        ("ce_type", row["type"] or DEFAULT_TYPE),
        ("ce_source", SOURCE),
        ("ce_specversion", "1.0"),
        ("ce_time", row["created_at"].isoformat()),
        ("content-type", "application/json"),
        ("fluxora_destination", row["destination"]),
        ("fluxora_retry_count", str(row["retry_count"])),
    ]
    if row["traceparent"]:
        headers.append(("traceparent", row["traceparent"]))
    return headers + [(f"__connect.errors.{name}", value.encode()) for name, value in why.items()]
