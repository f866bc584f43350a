"""Commands from Kafka, on a thread of their own: decoded, handed to the loop, and committed once they are answered.

One thread does all that may block, so that the loop never does, and a command is handed over as soon as it has come.

Copies of a command that was answered, or is being called, are passed over: those of this process's time by the window,
those that a relay before it may have answered by the log (``predecessors``). What such a relay may have called without
an answer is marked, so that nobody takes "not called" or "refused" for "nothing was done".
"""

import dataclasses
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure
from prometheus_client import Counter

from outbox_relay.clock import BrokerClock
from outbox_relay.command import COMMAND, PARTICIPANT_REPLY, STEP_REPLY, HttpCommand
from outbox_relay.predecessors import Answered, read_answered
from outbox_relay.settings import RelaySettings
from outbox_relay.window import Window
from participant.dead_letters import DeadLetters
from participant.membership import NO_WAY_BACK, Hearing, sound, take_up
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
#: Seconds between two tries of what needs the schema registry.
_RETRY_S = 1.0
#: In the metadata of a commit: the relay left, and everything it had taken is below.
_LEFT = "left"
#: Seconds for a question to the brokers.
_ANSWER_S = 10.0

#: Seconds by which hosts' clocks may differ here: older answers are read, and younger commands looked up.
_CLOCKS_S = 5.0
#: Seconds for which what the log says is kept; it is read again if need be.
_KEEP_S = 60.0

SECOND = Counter(
    "fluxora_relay_second_copies_total", "Commands passed over: another copy was answered, or decided upon", ["by"]
)
DEAD = Counter("fluxora_relay_dead_lettered_total", "Commands put into the dead letter topic")


@dataclass(slots=True, eq=False)
class Taken:
    """A command and where it came from."""

    command: HttpCommand
    window: Window
    offset: int
    size: int
    #: Another relay may have called it, and its answer is lost.
    again: bool = False
    #: Why it must not be called though it has not expired.
    withheld: str | None = None
    #: What was decided upon it has come before its turn: it is passed over.
    over: bool = False

    def done(self) -> None:
        """It has been answered, and the answer is durable; or it needs none."""
        self.window.done(self.offset, self.command.command_id)


class Intake:
    """Consumes the commands as a static member of the relays' group."""

    def __init__(
        self,
        settings: RelaySettings,
        codec: Codec,
        clock: BrokerClock,
        deliver: Callable[[Sequence[Taken], threading.Event], None],
    ) -> None:
        """``deliver`` is called on this thread; it sets the event when more may come, until then nothing does."""
        self._settings = settings
        self._codec = codec
        self._clock = clock
        self._deliver = deliver
        self._windows: dict[int, Window] = {}
        #: Assigned, and nothing of them taken: what was committed of each.
        self._new: dict[int, TopicPartition] = {}
        #: What the log says, for the windows that were there when it was read; with the time of that.
        self._answered: tuple[Answered, float] | None = None
        self._paused: set[int] = set()
        self._stopping = threading.Event()
        self._turned = time.monotonic()
        self._committed_at = time.monotonic()
        self._dead_letters = DeadLetters(
            settings.kafka_bootstrap_servers, _SERVICE, reported_by="outbox_relay.intake.Intake"
        )
        self._trouble: str | None = "no partitions assigned yet"
        self._hearing = Hearing()
        self._consumer = Consumer(
            {**self._hearing.settings, **_consumer_settings(settings)}, logger=logging.getLogger("librdkafka")
        )

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
            self._hearing.check((TOPIC, partition) for partition in self._windows)
            first = self._consumer.poll(POLL_S)
            if first is None:
                self._take_over()
            else:
                # Drained without waiting: a timeout here would add itself to every call.
                messages = [first, *self._consumer.consume(self._settings.batch_limit - 1, timeout=0)]
                # Either call may have brought partitions, and so may their first records come with it.
                self._take_over()
                self._take(messages)
            self._hold_back()
            if time.monotonic() - self._committed_at >= self._settings.commit_interval_s:
                self._commit()

    def leave(self) -> None:
        """Commit what has been answered and close. After ``run`` has returned."""
        self._leave(self._windows)
        self._consumer.close()

    def _leave(self, partitions: Iterable[int]) -> None:
        """Commit what has been answered of ``partitions``, and where nothing is open say so to whoever comes next."""
        windows = {p: window for p in partitions if (window := self._windows.get(p)) is not None}
        offsets = [
            TopicPartition(TOPIC, partition, window.position, "" if len(window) else _LEFT)
            for partition, window in windows.items()
        ]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaFailure as failure:
            # The commands come again, and the log says which have been answered.
            log.warning("last_commit_failed", error=str(failure))

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
                if error.fatal() or error.code() in NO_WAY_BACK:
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
            elif window.begins(command.command_id):
                again = offset < window.taken_over_to
                batch.append(Taken(command, window, offset, len(message.value() or b""), again))
            else:
                SECOND.labels("memory").inc()
                window.done(offset)
        batch = self._not_answered(batch)
        if batch:
            handed = threading.Event()
            self._deliver(batch, handed)
            # The loop takes them at once, unless it is over its ears in work: then more would only pile up.
            while not handed.wait(POLL_S) and not self._stopping.is_set():
                pass

    def _take_over(self) -> None:
        """Begin with the partitions that came to us: another relay may have had what is in them now.

        Unless the last one left nothing open and said so in its commit. That is taken back before anything is called,
        so that it is not believed after we have crashed.
        """
        if not self._new:
            return
        begun = []
        for found in self._new.values():
            low, end = self._consumer.get_watermark_offsets(found, timeout=_ANSWER_S)
            if end < 0:
                raise KafkaFailure(KafkaError(KafkaError._NO_OFFSET, f"{TOPIC}[{found.partition}] has no end now"))
            start = max(found.offset, low)
            untouched = found.offset < 0 or found.metadata == _LEFT
            if untouched:
                begun.append(TopicPartition(TOPIC, found.partition, start))
            taken_over_to = 0 if untouched else end
            window = Window(self._settings.remembered, start, self._clock.now(), taken_over_to)
            self._windows[found.partition] = window
        if begun:
            sound(self._consumer.commit(offsets=begun, asynchronous=False) or ())
        # What was read of the log is older than this.
        self._answered = None
        self._new.clear()
        self._trouble = None

    def _not_answered(self, batch: list[Taken]) -> list[Taken]:
        """Pass over what the log says is answered, as far as a relay before this one may have done it."""
        now = self._clock.now()
        if self._answered is not None and now - self._answered[1] > _KEEP_S:
            self._answered = None
        asked = {
            taken.command.command_id: taken.command.issued_at
            for taken in batch
            # After it has expired it is not called anyway.
            if taken.command.expires_at > now
            and (taken.again or taken.command.issued_at < taken.window.taken_over_at + _CLOCKS_S)
        }
        if not asked:
            return batch
        answered = self._read_answered(min(asked.values()) - _CLOCKS_S)
        left = []
        for taken in batch:
            id = taken.command.command_id
            if id in asked and id in answered.command_ids:
                SECOND.labels("log").inc()
                taken.done()
            elif id in asked and answered.gap is not None:
                why = f"a relay before this one may have called: {answered.gap}"
                left.append(dataclasses.replace(taken, again=True, withheld=why))
            else:
                left.append(taken)
        return left

    def _read_answered(self, since: float) -> Answered:
        if self._answered is None or since < self._answered[0].since:
            began = time.monotonic()
            settings = self._settings
            answered = read_answered(
                settings.kafka_bootstrap_servers, since, settings.takeover_records, settings.takeover_s
            )
            self._answered = (answered, self._clock.now())
            self._turned = time.monotonic()
            log.info(
                "log_read_for_answers",
                commands=len(answered.command_ids),
                gap=answered.gap,
                seconds=round(self._turned - began, 3),
            )
        return self._answered[0]

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

    def _commit(self) -> None:
        self._committed_at = time.monotonic()
        offsets = [
            TopicPartition(TOPIC, partition, offset)
            for partition, window in self._windows.items()
            if (offset := window.to_commit()) is not None
        ]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        found = take_up(consumer, partitions, OFFSET_BEGINNING)
        self._new.update((one.partition, one) for one in found)
        log.info("partitions_assigned", partitions=sorted({*self._windows, *self._new}))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._leave(partition.partition for partition in partitions)
        self._lost(consumer, partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._new.pop(partition.partition, None)
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
