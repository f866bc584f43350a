"""Events of topics, handled exactly once, as far as the service's own database goes.

::

    consumer = Consumer("billing")

    @consumer.on(OrderPlaced)
    def invoice(connection, event):
        connection.execute(insert(invoices).values(order=event.data.order_id))
        outbox.publish(connection, InvoiceSent(…))

    consumer.run()

The handler's rows, the proof that the event was handled and what it publishes commit together or not at all
(``participant.delivery`` says what a crash does on every line).
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Literal, TypeVar

import structlog
from confluent_kafka import KafkaException as KafkaFailure
from confluent_kafka import Message
from prometheus_client import Counter
from sqlalchemy import create_engine

from participant.dead_letters import DeadLetters
from participant.delivery import Delivery, Fate
from participant.events import EventType, type_of
from participant.handlers import InvalidService
from participant.local_transaction import Retry, limit_idle_transactions
from participant.logs import log_to_stderr
from participant.settings import CONNECT, Settings, sqlalchemy_url
from participant.stream import Hold, Place, Stream, offset_of, place_of
from participant.subscriptions import Event, Subscription, Subscriptions
from schemas import Codec, UndecodableRecord

log = structlog.get_logger(__name__)

EVENTS = Counter("fluxora_events_total", "Events of topics, by what became of them", ["group", "type", "outcome"])

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


class Unknown(StrEnum):
    """What to do with an event that has no handler here."""

    #: pass it by and count it
    SKIP = "skip"
    #: put it into the dead letter topic
    DEAD_LETTER = "dead-letter"


class Consumer:
    """Handlers of events by type, and the process that runs them.

    A handler gets the connection of the batch's transaction and the event. It must not commit or roll back, and
    should do nothing outside this database that may not happen twice. If it raises, everything it wrote is rolled back
    and the event is tried again, while its partition waits; after ``FLUXORA_EVENT_ATTEMPTS`` tries it goes to
    ``<topic>.<group>.dlq``.
    """

    def __init__(
        self,
        service: str,
        *,
        group: str | None = None,
        unknown: Unknown | Literal["skip", "dead-letter"] = Unknown.SKIP,
        attempts: int | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        settings: Settings | None = None,
    ) -> None:
        """
        Args:
            service: ``ce_source`` of what the handlers publish.
            group: Kafka's consumer group; ``<service>.events`` by default. Two groups get every event each, also where
                they share a database.
            attempts: ``FLUXORA_EVENT_ATTEMPTS`` by default; 0: for ever, for those who must not pass an event by.
            start: where a group that is new begins.
        """
        if not service:
            raise InvalidService("a consumer needs the name of its service")
        self.service = service
        # Not the service's own name: that is the group of its commands.
        self.group = group or f"{service}.events"
        if group == service:
            raise InvalidService(f"the group {group!r} is that of the service's commands; choose another name")
        self.unknown = Unknown(unknown)
        self.attempts = attempts
        self.start = start
        self.subscriptions = Subscriptions()
        self._settings = settings
        self._paused = False
        self._running: Subscriber | None = None

    def on(
        self, type: str | EventType | type, *, topic: str | None = None, batch: bool = False
    ) -> Callable[[_Handler], _Handler]:
        """Register the handler of a type of event.

        Args:
            type: a class declared with ``@event_type`` or an EventType: older and newer versions are read as this one.
                Or the full name of a record, with ``topic``: the handler gets dicts, each as it was written.
            topic: the declared one by default.
            batch: the handler takes ``list[Event]``, those of one key in their order: several times faster, because
                it can write all rows with one statement.
        """
        declared = None if isinstance(type, str) else type_of(type)
        name = type if isinstance(type, str) else type_of(type).name
        where = topic or ("" if declared is None else declared.topic)

        def register(handler: _Handler) -> _Handler:
            self.subscriptions.add(where, name, Subscription(handler, batch, declared))
            return handler

        return register

    def pause(self) -> None:
        """Take no more events after the batch in hand, and keep the partitions. Safe from any thread."""
        self._paused = True
        if self._running is not None:
            self._running.stream.pause()

    def resume(self) -> None:
        """Go on where ``pause`` left off. Safe from any thread."""
        self._paused = False
        if self._running is not None:
            self._running.stream.resume()

    def stop(self) -> None:
        """Have ``run`` finish the batch in hand and return. Safe from any thread."""
        if self._running is not None:
            self._running.stream.stop()

    def run(self, *, signals: bool = True) -> None:
        """Handle events until SIGTERM or SIGINT, then finish the batch in hand, commit and return.

        Args:
            signals: False on any thread but the main one; ``stop`` then ends it.

        Raises:
            InvalidService: there is no handler.
        """
        if not self.subscriptions.topics:
            raise InvalidService("there is no handler: decorate a function with @consumer.on(type)")
        log_to_stderr()
        self._running = Subscriber(self, self._settings or Settings.from_environment())
        if self._paused:
            self._running.stream.pause()
        if signals:
            self._running.stream.stop_on_signals()
        try:
            self._running.run()
        finally:
            self._running = None


def letters_of(topic: str, group: str) -> str:
    """Return the dead letter topic of a group's consumer."""
    return f"{topic}.{group}.dlq"


class Subscriber:
    """The process of a consumer: records from its topics, through the delivery."""

    def __init__(self, consumer: Consumer, settings: Settings) -> None:
        self._group = consumer.group
        self._unknown = consumer.unknown
        self._subscriptions = consumer.subscriptions
        self._engine = create_engine(
            sqlalchemy_url(settings.database_url),
            pool_size=1,
            max_overflow=1,
            isolation_level="READ COMMITTED",
            connect_args={"application_name": f"fluxora-{consumer.group}"[:63], **CONNECT},
        )
        limit_idle_transactions(self._engine, settings.transaction_idle_limit_s)
        self._codec = Codec(settings.schema_registry_url)
        for type in self._subscriptions.types:
            self._codec.add(type.schema)
        self._dead_letters = DeadLetters(
            settings.kafka_bootstrap_servers,
            consumer.group,
            reported_by="participant.consumer.Subscriber",
            topic=self._letters,
        )
        #: Records of the batch in hand that have their letter: a retried batch writes no second one.
        self._buried: set[tuple[Place, int]] = set()
        self._delivery = Delivery(
            self._engine,
            self._subscriptions,
            self._codec,
            service=consumer.service,
            group=consumer.group,
            attempts=settings.event_attempts if consumer.attempts is None else consumer.attempts,
            wait_s=settings.event_retry_wait_s,
            wait_max_s=settings.event_retry_wait_max_s,
            idle_limit_s=settings.transaction_idle_limit_s,
            dead_letter=self._bury,
            observe=self._observe,
        )
        self.stream = Stream(
            self._subscriptions.topics,
            self._work,
            settings,
            group=consumer.group,
            missing_topic="whoever publishes to it creates it",
            start=consumer.start,
            released=self._delivery.forget,
        )

    def run(self) -> None:
        """Consume until the stream is stopped."""
        self._dead_letters.create([self._letters(topic) for topic in self._subscriptions.topics])
        try:
            self.stream.run()
        finally:
            self._engine.dispose()
            self._codec.close()

    def _letters(self, topic: str) -> str:
        return letters_of(topic, self._group)

    def _work(self, messages: Sequence[Message]) -> Sequence[Hold]:
        holds = self._delivery.handle(self._events(messages))
        # Not after an exception: the same batch comes again.
        self._buried.clear()
        return holds

    def _events(self, messages: Sequence[Message]) -> list[Event]:
        events = []
        for message in messages:
            place = (place_of(message), offset_of(message))
            if place in self._buried:
                continue
            if message.value() is None:
                # A compacted topic's tombstone: it says that a key is gone, and is no event.
                EVENTS.labels(self._group, "", Fate.SKIPPED.value).inc()
                continue
            try:
                event = self._subscriptions.event(self._codec, message)
                if self._subscriptions.find(event.topic, event.type) is not None:
                    events.append(event)
                    continue
                if self._unknown is Unknown.SKIP:
                    self._observe(event, Fate.SKIPPED)
                    continue
                raise UndecodableRecord(f"there is no handler of {event.type} from {event.topic} in {self._group}")
            except UndecodableRecord as error:
                self._put(message, error, stage="VALUE_CONVERTER")
                self._buried.add(place)
                EVENTS.labels(self._group, "", Fate.DEAD_LETTERED.value).inc()
        return events

    def _bury(self, event: Event, error: BaseException) -> None:
        assert event.record is not None, "it came from Kafka"
        self._put(event.record, error, stage="TASK_PUT")

    def _put(self, message: Message, error: BaseException, *, stage: str) -> None:
        letters = self._letters(message.topic() or "")
        try:
            self._dead_letters.put(message, error, stage=stage)
        except KafkaFailure as failure:
            raise Retry(f"the dead letter topic {letters} does not take it: {failure}") from failure
        log.error(
            "dead_lettered",
            group=self._group,
            topic=letters,
            partition=message.partition(),
            offset=message.offset(),
            error=repr(error),
        )

    def _observe(self, event: Event, fate: Fate) -> None:
        EVENTS.labels(self._group, event.type, fate.value).inc()
