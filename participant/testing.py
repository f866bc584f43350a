"""Tests of a service's handlers without Kafka, without a schema registry and without a process.

On a database with the platform's tables (``participant.migrations.upgrade``) and your own::

    def test_an_order_is_invoiced_once(connection):
        test = ConsumerTest(consumer, connection)
        assert test.deliver(OrderPlaced(…), id="1") is Fate.HANDLED
        assert test.deliver(OrderPlaced(…), id="1") is Fate.DUPLICATE
        assert [sent.type for sent in test.published()] == ["shop.InvoiceSent"]

All of it happens in the transaction that is open on ``connection``: roll it back, and nothing was.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from participant.batch import AnyReply, Batch
from participant.command import Command, Operation, Reply
from participant.consumer import Consumer
from participant.delivery import Delivery, Fate
from participant.events import EventType, declared_type
from participant.local_transaction import Culprit
from participant.resources import ResourceManager
from participant.service import Service
from participant.subscriptions import Event
from schemas import Codec, WrongShape
from schemas.registry import MemoryRegistry

__all__ = ["ConsumerTest", "Fate", "Published", "ServiceTest"]

_PUBLISHED = text("SELECT id, topic, aggregateid, type, payload, source, traceparent FROM fluxora.outbox ORDER BY id")


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the outbox, decoded."""

    id: uuid.UUID
    topic: str
    key: str
    type: str
    #: the record; or the bytes, if they are no Avro of this test
    data: Any
    source: str
    traceparent: str | None


class _Outbox:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._codec = Codec(MemoryRegistry())
        self._before = {row.id for row in connection.execute(_PUBLISHED)}

    def published(self) -> list[Published]:
        """What the handlers have published since this test began, in order."""
        found = []
        for id, topic, key, type, payload, source, traceparent in self._connection.execute(_PUBLISHED):
            if id not in self._before:
                data = self._codec.decode(bytes(payload))[1] if bytes(payload[:1]) == b"\0" else bytes(payload)
                found.append(Published(id, topic, key, type, data, source, traceparent))
        return found


class ConsumerTest(_Outbox):
    """A consumer's handlers, on one connection."""

    def __init__(self, consumer: Consumer, connection: Connection) -> None:
        super().__init__(connection)
        self._consumer = consumer
        for type in consumer.subscriptions.types:
            self._codec.add(type.schema)
        self._offset = 0
        self._delivery = Delivery(
            connection.engine,
            consumer.subscriptions,
            self._codec,
            service=consumer.service,
            group=consumer.group,
            dead_letter=lambda event, error: None,
        )

    def deliver(
        self,
        event: object,
        *,
        type: str | EventType | None = None,
        topic: str | None = None,
        id: str | None = None,
        key: str | None = None,
        source: str = "test",
        traceparent: str | None = None,
    ) -> Fate:
        """Deliver one event, through its Avro schema and back, and return HANDLED, DUPLICATE or SKIPPED.

        Args:
            event: an instance of a declared class; or a mapping, with ``type``.
            type: a full name needs ``topic``; such an event is handed over as it is.
            id: ``ce_id``; a new one by default.

        Raises:
            WrongShape: the event does not fit its schema.
            Exception: what the handler raises; what it wrote is rolled back, as in a service.
        """
        declared = type if isinstance(type, EventType) else declared_type(event)
        name = declared.name if declared is not None else type
        topic = topic or (None if declared is None else declared.topic)
        if not isinstance(name, str) or topic is None:
            raise WrongShape("give an instance of a class declared with @event_type, or type=…; a name needs topic=…")
        data: Any = event
        if declared is not None:
            record = declared.record(event)
            key = declared.key_of(record) if key is None else key
            # As in a service, where publisher and consumer may know different versions.
            name, data = self._round_trip(declared, record)
            data = self._consumer.subscriptions.data(topic, name, data)
        self._offset += 1
        received = Event(
            data, name, id or str(uuid.uuid4()), source, None, key, topic, 0, self._offset, traceparent=traceparent
        )
        if self._consumer.subscriptions.find(topic, name) is None:
            return Fate.SKIPPED
        with self._connection.begin_nested() as savepoint:
            try:
                new = self._delivery.within(self._connection, [received])
            except Culprit as culprit:
                savepoint.rollback()
                raise culprit.cause from None
        return Fate.HANDLED if new else Fate.DUPLICATE

    def _round_trip(self, declared: EventType, record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        registry = MemoryRegistry()
        writer, reader = Codec(registry), Codec(registry)
        writer.add(declared.schema)
        for type in self._consumer.subscriptions.types:
            reader.add(type.schema)
        return reader.decode(writer.encode(declared.name, record))


class ServiceTest(_Outbox):
    """A service's command handlers, on one connection."""

    def __init__(self, service: Service, connection: Connection) -> None:
        super().__init__(connection)
        service.check()
        self._batch = Batch(
            connection.engine,
            service.handlers,
            self._codec,
            service=service.name,
            dead_letter=lambda command, error: None,
            participant=ResourceManager(connection.engine, service=service.name),
        )

    def act(self, name: str, payload: Any = None, *, transaction: uuid.UUID | None = None, attempt: int = 1) -> Reply:
        """Send the action ``name``, as a saga's step of that name, and return its reply.

        Raises:
            Exception: what the handler raises; what it wrote is rolled back, and a service would answer FAILED.
        """
        return self._send(Operation.ACTION, name, payload, transaction, attempt)

    def compensate(
        self, name: str, payload: Any = None, *, transaction: uuid.UUID | None = None, attempt: int = 1
    ) -> Reply:
        """Send the compensation of ``name``; give the transaction of the action that it undoes. As ``act``."""
        return self._send(Operation.COMPENSATION, name, payload, transaction, attempt)

    def _send(
        self, operation: Operation, name: str, payload: Any, transaction: uuid.UUID | None, attempt: int
    ) -> Reply:
        transaction = transaction or uuid.uuid4()
        command = Command(
            command_id=f"{transaction}:{name}:{operation.value}:{attempt}",
            transaction_id=transaction,
            saga_name="test",
            step=name,
            name=name,
            operation=operation,
            attempt=attempt,
            payload={} if payload is None else payload,
        )
        reply: AnyReply | None = self._batch.perform(self._connection, command)
        if reply is None:
            raise ValueError(f"{command.command_id} was sent before: its reply is in the outbox; give another attempt")
        assert isinstance(reply, Reply), "it answers a command of a saga"
        return reply
