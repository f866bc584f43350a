"""Commands from Kafka, on a thread of their own: decoded, handed to the loop, and committed once they are answered.

One thread does all that may block, so that the loop never does, and a command is handed over as soon as it has come.
"""

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import structlog
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure
from prometheus_client import Counter

from outbox_relay.command import COMMAND, PARTICIPANT_REPLY, STEP_REPLY, HttpCommand
from outbox_relay.seen import Seen
from outbox_relay.settings import RelaySettings
from outbox_relay.window import Window
from participant.dead_letters import DeadLetters
from saga_processors.records import HTTP_COMMANDS_TOPIC
from schemas import Codec, RegistryUnavailable, UndecodableRecord

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

TOPIC = HTTP_COMMANDS_TOPIC
GROUP = "fluxora.http-relay"
#: Name whose commands these are: the dead letters are in ``<name>.commands.dlq``.
_SERVICE = "fluxora.http"
#: Seconds of one wait for a message: how long a stop may take when there is nothing to do.
POLL_S = 0.1
#: Seconds for the brokers to say how far a partition goes.
_BROKER_S = 10.0
#: Seconds between two tries of what needs the schema registry.
_RETRY_S = 1.0

DEAD = Counter("fluxora_relay_dead_lettered_total", "Commands put into the dead letter topic")


@dataclass(frozen=True, slots=True)
class Taken:
    """A command and where it came from."""

    command: HttpCommand
    window: Window
    offset: int
    size: int
    #: A copy of it may have been called before, by this process or by another one.
    again: bool = False

    def done(self) -> None:
        """It has been answered, and the answer is durable."""
        self.window.done(self.offset)


class Intake:
    """Consumes the commands as a static member of the relays' group."""

    def __init__(
        self, settings: RelaySettings, codec: Codec, deliver: Callable[[Sequence[Taken], threading.Event], None]
    ) -> None:
        """``deliver`` is called on this thread; it sets the event when more may come, until then nothing does."""
        self._settings = settings
        self._codec = codec
        self._deliver = deliver
        self._windows: dict[int, Window] = {}
        self._seen = Seen(settings.seen)
        self._paused: set[int] = set()
        self._stopping = threading.Event()
        self._turned = time.monotonic()
        self._committed_at = time.monotonic()
        self._dead_letters = DeadLetters(
            settings.kafka_bootstrap_servers, _SERVICE, reported_by="outbox_relay.intake.Intake"
        )
        self._trouble: str | None = "no partitions assigned yet"
        self._consumer = Consumer(_consumer_settings(settings), logger=logging.getLogger("librdkafka"))

    @property
    def trouble(self) -> str | None:
        """Why no commands come, in words; None if they do."""
        return self._trouble

    @property
    def silent_s(self) -> float:
        """Seconds since the thread's last turn."""
        return time.monotonic() - self._turned

    def stop(self) -> None:
        """Take no more; what was taken is committed by :meth:`run`'s end once :meth:`leave` is called."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until ``stop``. Raises what makes it impossible to go on: the process must start anew."""
        self._warm_up()
        self._consumer.subscribe([TOPIC], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        while not self._stopping.is_set():
            self._turned = time.monotonic()
            first = self._consumer.poll(POLL_S)
            if first is not None:
                # Drained without waiting: a timeout here would add itself to every call.
                self._take([first, *self._consumer.consume(self._settings.batch_limit - 1, timeout=0)])
            self._hold_back()
            if time.monotonic() - self._committed_at >= self._settings.commit_interval_s:
                self._commit(asynchronous=True)

    def leave(self) -> None:
        """Commit what has been answered and close. After ``run`` has returned."""
        try:
            self._commit(asynchronous=False)
        except KafkaFailure as failure:
            # The commands come again, with the same Idempotency-Key.
            log.warning("last_commit_failed", error=str(failure))
        self._consumer.close()

    def _warm_up(self) -> None:
        """Learn the ids of the replies' schemas here, where the registry may be waited for."""
        for name, record in _SAMPLES.items():
            self._patiently(functools.partial(self._codec.encode, name, record))

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask again while the schema registry is away, for so long that the group still counts on us.

        Raises:
            RegistryUnavailable: it stayed away; the process starts anew.
        """
        give_up = time.monotonic() + self._settings.registry_outage_s
        while True:
            try:
                return ask()
            except RegistryUnavailable as error:
                if time.monotonic() > give_up or self._stopping.is_set():
                    raise
                self._turned = time.monotonic()
                self._trouble = str(error)
                log.warning("schema_registry_unavailable", error=str(error))
                self._stopping.wait(_RETRY_S)

    def _take(self, messages: Sequence[Message]) -> None:
        batch = []
        for message in messages:
            error = message.error()
            if error is not None:
                if error.fatal() or error.code() in _NO_WAY_BACK:
                    raise KafkaFailure(error)
                if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._trouble = f"the topic {TOPIC} does not exist; `fluxora init` creates it"
                log.warning("consumer_error", error=error.str())
                continue
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None
            window = self._windows.get(partition)
            if window is None:
                continue  # revoked while it was on its way here; its next owner gets it
            window.taken(offset)
            command = self._decode(message)
            if command is None:
                window.done(offset)
            else:
                again = self._seen.add(command.command_id) or offset < window.inherited
                batch.append(Taken(command, window, offset, len(message.value() or b""), again))
        if batch:
            handed = threading.Event()
            self._deliver(batch, handed)
            # The loop takes them at once, unless it is over its ears in work: then more would only pile up.
            while not handed.wait(POLL_S) and not self._stopping.is_set():
                pass

    def _decode(self, message: Message) -> HttpCommand | None:
        """Understand a record; what cannot be understood is poison, and is dead-lettered before it is passed over."""
        try:
            name, record = self._patiently(lambda: self._codec.decode(message.value()))
            if name != COMMAND:
                raise UndecodableRecord(f"a {name} where a {COMMAND} belongs")
            return HttpCommand.from_record(record, _traceparent(message))
        except (UndecodableRecord, ValueError, KeyError, OverflowError) as error:
            self._dead_letters.put(message, error, stage="VALUE_CONVERTER")
            DEAD.inc()
            log.error("dead_lettered", partition=message.partition(), offset=message.offset(), error=repr(error))
            return None

    def _hold_back(self) -> None:
        """Pause partitions of which too much would come again after a crash, until half of it is answered."""
        for partition, window in self._windows.items():
            if partition not in self._paused and len(window) >= self._settings.window:
                self._consumer.pause([TopicPartition(TOPIC, partition)])
                self._paused.add(partition)
                log.warning("partition_paused", partition=partition, unanswered_from=len(window))
            elif partition in self._paused and len(window) <= self._settings.window // 2:
                self._consumer.resume([TopicPartition(TOPIC, partition)])
                self._paused.discard(partition)

    def _commit(self, *, asynchronous: bool) -> None:
        self._committed_at = time.monotonic()
        offsets = [
            TopicPartition(TOPIC, partition, offset)
            for partition, window in self._windows.items()
            if (offset := window.to_commit()) is not None
        ]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)  # type: ignore[call-overload]

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            # What was in the log before it became ours, another relay may have called without saying so. Raises if
            # the brokers do not answer: then the process starts anew.
            _, end = consumer.get_watermark_offsets(partition, timeout=_BROKER_S)
            self._windows[partition.partition] = Window(inherited=end)
        self._trouble = None
        log.info("partitions_assigned", partitions=sorted(self._windows))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._commit(asynchronous=False)
        except KafkaFailure as failure:
            log.warning("commit_on_revoke_failed", error=str(failure))
        self._lost(consumer, partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            if (window := self._windows.pop(partition.partition, None)) is not None:
                window.revoked = True
            self._paused.discard(partition.partition)
        # Nothing new: an empty delivery has the loop drop what waits of them.
        self._deliver([], threading.Event())
        log.info("partitions_revoked", partitions=sorted(self._windows))


def _consumer_settings(settings: RelaySettings) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool] = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "group.id": GROUP,
        "client.id": f"http-relay-{settings.instance or os.getpid()}",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": round(settings.session_timeout_s * 1000),
        "heartbeat.interval.ms": max(1, round(settings.session_timeout_s * 1000 / 6)),
        # Bodies are up to 1 MiB; what is fetched ahead counts in our memory.
        "queued.max.messages.kbytes": 16 * 1024,
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.refresh.interval.ms": 30_000,
    }
    if settings.instance:
        found["group.instance.id"] = f"{GROUP}-{settings.instance}"
    return found


#: After these librdkafka never consumes again, though the binding does not call them fatal (participant.worker).
_NO_WAY_BACK = (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)

_SAMPLE = {"transaction_id": "", "command_id": "", "attempt": 1, "outcome": "DONE", "reason": None}
_SAMPLES = {
    STEP_REPLY: {**_SAMPLE, "step": "", "operation": "ACTION", "result": None},
    PARTICIPANT_REPLY: {**_SAMPLE, "participant": "", "operation": "COMMIT"},
}


def _traceparent(message: Message) -> str | None:
    """Visible ASCII or nothing: it goes on into a header."""
    headers = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    value = next((value for key, value in headers if key == "traceparent" and value is not None), None)
    return value.decode("ascii") if value is not None and value.isascii() and value.decode().isprintable() else None
