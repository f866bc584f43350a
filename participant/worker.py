"""The process of a service: commands from Kafka, through the batch, until it is told to stop.

Kafka's offsets are committed after the database. A crash in between brings the commands again, and the inbox
skips them. An unexpected exception ends the process (crash-only); whoever supervises it starts it anew.
"""

import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from threading import Event
from types import FrameType
from typing import cast

import stamina
import structlog
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure
from prometheus_client import Counter, Histogram
from sqlalchemy import Engine, create_engine

from participant.batch import AnyReply, Batch, Retry, limit_idle_transactions
from participant.dead_letters import DeadLetters
from participant.handlers import Handlers
from participant.health import HealthServer
from participant.incoming import AnyCommand, decoder
from participant.resources import ResourceManager
from participant.settings import Settings, sqlalchemy_url
from participant.sweep import sweep_from_environment
from participant.two_phase import Participant
from schemas import Codec, RegistryUnavailable, UndecodableRecord

log = structlog.get_logger(__name__)

#: Seconds without a turn of the loop after which the process counts as hung. A handler may take its time.
HUNG_AFTER_S = 120
#: Seconds of one wait for a message: how long a stop may take on an idle service.
POLL_S = 0.5

COMMANDS = Counter("fluxora_commands_total", "Commands handled", ["service", "operation", "outcome"])
DEAD = Counter("fluxora_commands_dead_lettered_total", "Commands put into the dead letter topic", ["service"])
RETRIES = Counter("fluxora_batch_retries_total", "Batches tried again as a whole", ["service"])
BATCH_SIZE = Histogram(
    "fluxora_batch_size", "Commands in one batch", ["service"], buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
BATCH_SECONDS = Histogram(
    "fluxora_batch_seconds",
    "Time of one batch, its retries included",
    ["service"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30),
)


class Stopped(Exception):
    """The process was told to stop while a dependency was down; nothing of the batch in hand is lost."""


class Worker:
    """Consumes ``<service>.commands`` as the group ``<service>``."""

    def __init__(
        self, service: str, handlers: Handlers, settings: Settings, participant: Participant | None = None
    ) -> None:
        """``participant`` takes part in two-phase commits; without one, every prepare is refused."""
        self._service = service
        self._settings = settings
        self._topic = f"{service}.commands"
        self._stopping = Event()
        self._turned = time.monotonic()
        self._trouble: str | None = "no partitions assigned yet"
        self._assigned: set[int] = set()
        self._engine: Engine = create_engine(
            sqlalchemy_url(settings.database_url),
            pool_size=1,
            max_overflow=1,
            isolation_level="READ COMMITTED",
            connect_args={"application_name": f"fluxora-{service}", "connect_timeout": 5},
        )
        limit_idle_transactions(self._engine, settings.transaction_idle_limit_s)
        codec = Codec(settings.schema_registry_url)
        self._decode = decoder(codec)
        self._dead_letters = DeadLetters(settings.kafka_bootstrap_servers, service)
        #: The records of the batch in hand, by command id, for the dead letters.
        self._records: dict[str, Message] = {}
        #: Undecodable records of the batch in hand that have their letter: a retried batch writes no second one.
        self._buried: set[tuple[int | None, int | None]] = set()
        self._batch = Batch(
            self._engine,
            handlers,
            codec,
            service=service,
            idle_limit_s=settings.transaction_idle_limit_s,
            dead_letter=self._bury,
            observe=self._observe,
            participant=participant or ResourceManager(self._engine, service=service),
        )
        self._sweep = None if participant is None else sweep_from_environment(participant)
        self._consumer = Consumer(self._consumer_settings(), logger=logging.getLogger("librdkafka"))

    def run(self) -> None:
        """Consume until ``stop``; then finish the batch in hand, commit its offsets and leave the group."""
        health = None
        if self._settings.health_port:
            health = HealthServer(self._settings.health_port, self._live, self._ready, self._settings.health_host)
            health.start()
        self._consumer.subscribe([self._topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)
        log.info("service_started", service=self._service, topic=self._topic)
        if self._sweep is not None:
            self._sweep.start()
        try:
            while not self._stopping.is_set():
                self._turned = time.monotonic()
                self._turn()
        except Stopped:
            log.warning("stopped_while_waiting", service=self._service, trouble=self._trouble)
        finally:
            self._consumer.close()
            if self._sweep is not None:
                self._sweep.stop()
            self._engine.dispose()
            if health is not None:
                health.stop()
        log.info("service_stopped", service=self._service)

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe from a signal handler or another thread."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """Stop on SIGTERM and SIGINT. Only from the main thread."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)

    def _turn(self) -> None:
        first = self._consumer.poll(POLL_S)
        if first is None:
            return
        # Drained without waiting: a timeout here would add itself to every hop (PROTOTYPE.md).
        messages = self._good([first, *self._consumer.consume(self._settings.batch_limit - 1, timeout=0)])
        if not messages:
            return
        BATCH_SIZE.labels(self._service).observe(len(messages))
        with BATCH_SECONDS.labels(self._service).time():
            self._handle(messages)
        self._commit(messages)

    def _handle(self, messages: Sequence[Message]) -> None:
        paused = False
        try:
            for attempt in stamina.retry_context(
                on=(Retry, RegistryUnavailable),
                attempts=None,
                timeout=None,
                wait_max=self._settings.retry_wait_max_s,
            ):
                with attempt:
                    if attempt.num > 1:
                        paused = self._stay_in_group()
                    try:
                        self._batch.handle(self._commands(messages))
                    except (Retry, RegistryUnavailable) as error:
                        self._trouble = str(error)
                        RETRIES.labels(self._service).inc()
                        log.warning("batch_retried", service=self._service, attempt=attempt.num, error=str(error))
                        raise
            self._trouble = None
        finally:
            self._records.clear()
            self._buried.clear()
            if paused:
                self._consumer.resume(self._consumer.assignment())

    def _stay_in_group(self) -> bool:
        """Poll without taking messages, so that a long outage does not cost the group membership."""
        if self._stopping.is_set():
            raise Stopped
        self._turned = time.monotonic()
        self._consumer.pause(self._consumer.assignment())
        if (message := self._consumer.poll(0)) is not None and message.error() is None:
            # Fetched before the pause took hold: read it again after this batch.
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and partition is not None and offset is not None
            self._consumer.seek(TopicPartition(topic, partition, offset))
        return True

    def _commands(self, messages: Iterable[Message]) -> list[AnyCommand]:
        commands = []
        for message in messages:
            try:
                command = self._decode(message.value(), _header(message, "traceparent"))
            except UndecodableRecord as error:
                place = (message.partition(), message.offset())
                if place not in self._buried:
                    self._put(message, error, stage="VALUE_CONVERTER")
                    self._buried.add(place)
                continue
            self._records[command.command_id] = message
            commands.append(command)
        return commands

    def _bury(self, command: AnyCommand, error: BaseException) -> None:
        self._put(self._records[command.command_id], error, stage="TASK_PUT")

    def _put(self, message: Message, error: BaseException, *, stage: str) -> None:
        try:
            self._dead_letters.put(message, error, stage=stage)
        except KafkaFailure as failure:
            raise Retry(f"the dead letter topic {self._dead_letters.topic} does not take it: {failure}") from failure
        DEAD.labels(self._service).inc()
        log.error(
            "dead_lettered",
            service=self._service,
            topic=self._dead_letters.topic,
            partition=message.partition(),
            offset=message.offset(),
            error=repr(error),
        )

    def _good(self, messages: Iterable[Message]) -> list[Message]:
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.fatal() or error.code() in _NO_WAY_BACK:
                raise KafkaFailure(error)
            else:
                # The topic is not there yet, or all brokers are away: librdkafka goes on trying.
                if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._trouble = f"the topic {self._topic} does not exist; `fluxora service add` creates it"
                log.warning("consumer_error", service=self._service, error=error.str())
        return good

    def _commit(self, messages: Sequence[Message]) -> None:
        positions: dict[int, int] = {}
        for message in messages:
            positions[message.partition() or 0] = (message.offset() or 0) + 1
        self._consumer.commit(
            offsets=[TopicPartition(self._topic, partition, offset) for partition, offset in positions.items()],
            asynchronous=True,
        )

    def _observe(self, command: AnyCommand, reply: AnyReply) -> None:
        COMMANDS.labels(self._service, command.operation.value, reply.outcome.value).inc()

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned |= {partition.partition for partition in partitions}
        self._trouble = None
        log.info("partitions_assigned", service=self._service, partitions=sorted(self._assigned))

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned -= {partition.partition for partition in partitions}
        log.info("partitions_revoked", service=self._service, partitions=sorted(self._assigned))

    def _live(self) -> list[str]:
        still = time.monotonic() - self._turned
        return [f"the loop has not turned for {still:.0f} s"] if still > HUNG_AFTER_S else []

    def _ready(self) -> list[str]:
        return [self._trouble] if self._trouble else []

    def _consumer_settings(self) -> dict[str, str | int | bool]:
        settings: dict[str, str | int | bool] = {
            "bootstrap.servers": self._settings.kafka_bootstrap_servers,
            "group.id": self._service,
            "client.id": f"{self._service}-{self._settings.instance or os.getpid()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": self._settings.session_timeout_ms,
            "heartbeat.interval.ms": max(1, self._settings.session_timeout_ms // 6),
            # The broker is asked again soon after it was away.
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
        }
        if self._settings.instance:
            settings["group.instance.id"] = f"{self._service}-{self._settings.instance}"
        return settings


#: After these librdkafka never consumes again, though the binding does not call them fatal: a broker that was away
#: for longer than the session timeout fences the static member that comes back. The process must start anew.
_NO_WAY_BACK = (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)


def _header(message: Message, name: str) -> str | None:
    # The stubs allow a mapping too; what was received is always a list of pairs.
    headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
    value = next((value for key, value in headers if key == name and value is not None), None)
    # Printable ASCII or nothing: it goes on into the reply's outbox row, which holds no NUL.
    return value.decode("ascii") if value is not None and value.isascii() and value.decode().isprintable() else None
