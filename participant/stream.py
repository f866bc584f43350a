"""Records of Kafka's topics, in batches, as a member of a group, until told to stop.

Kafka's offsets are committed after the batch has been worked on, which for all users of this module means: after its
local transaction. A crash in between brings the records again, and the inbox skips them. An unexpected exception ends
the process (crash-only); whoever supervises it starts it anew.

While PostgreSQL, the registry or the dead letter topic is away the batch in hand is tried again, with pauses, and the
member stays in its group. A single partition can be held back at one of its records; the others go on.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Event
from types import FrameType
from typing import Any, Literal, cast

import stamina
import structlog
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure
from prometheus_client import Counter, Gauge, Histogram

from participant.health import HealthServer, hung
from participant.local_transaction import Retry
from participant.membership import NO_WAY_BACK, Hearing, take_up
from participant.settings import Settings
from schemas import RegistryUnavailable

log = structlog.get_logger(__name__)

#: Seconds of one wait for a message: how long a stop may take on an idle service.
POLL_S = 0.5
#: Seconds between two looks at the lag.
LAG_EVERY_S = 5.0
#: Seconds that the broker may take to answer where only a metric, or a shortcut after a restart, depends on it.
ASIDE_S = 2.0

RETRIES = Counter("fluxora_batch_retries_total", "Batches tried again as a whole", ["service"])
BATCH_SIZE = Histogram(
    "fluxora_batch_size", "Records in one batch", ["service"], buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
BATCH_SECONDS = Histogram(
    "fluxora_batch_seconds",
    "Time of one batch, its retries included",
    ["service"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30),
)
LAG = Gauge(
    "fluxora_consumer_lag", "Records of the partition that are not worked on yet", ["group", "topic", "partition"]
)
HELD = Gauge("fluxora_consumer_held_partitions", "Partitions that wait for a record's next try", ["group"])

#: A partition: topic and number.
Place = tuple[str, int]


class Stopped(Exception):
    """The process was told to stop while a dependency was down; nothing of the batch in hand is lost."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A record that could not be worked on, and with it the rest of its partition: to be tried again."""

    topic: str
    partition: int
    offset: int
    delay_s: float


#: Works on a batch. Raises Retry or RegistryUnavailable to get the same batch again, after a pause.
Work = Callable[[Sequence[Message]], Sequence[Hold]]


class Stream:
    """Consumes ``topics`` as a member of ``group``; one thread, that of ``run``."""

    def __init__(
        self,
        topics: Sequence[str],
        work: Work,
        settings: Settings,
        *,
        group: str,
        missing_topic: str,
        start: Literal["earliest", "latest"] = "earliest",
        released: Callable[[Place], None] = lambda place: None,
    ) -> None:
        """
        Args:
            missing_topic: what to do about a topic that is not there, for the report.
            start: where a group without offsets begins.
            released: told of a partition that is no longer this member's.
        """
        self._topics = list(topics)
        self._work = work
        self._settings = settings
        self._group = group
        self._missing_topic = missing_topic
        self._released = released
        self._stopping = Event()
        self._pausing = Event()
        self._turned = time.monotonic()
        self._measured = 0.0
        self._trouble: str | None = "no partitions assigned yet"
        self._assigned: set[Place] = set()
        #: Assigned since the last turn: whether librdkafka remembers an earlier pause of theirs is not documented.
        self._fresh: set[Place] = set()
        self._quiet: set[Place] = set()
        #: Where held partitions go on, and when.
        self._held: dict[Place, tuple[int, float]] = {}
        #: The next offset of each partition, worked on before; what is committed.
        self._positions: dict[Place, int] = {}
        self._start = OFFSET_END if start == "latest" else OFFSET_BEGINNING
        self._hearing = Hearing()
        self._consumer = Consumer(self._consumer_settings(start), logger=logging.getLogger("librdkafka"))

    def run(self) -> None:
        """Consume until ``stop``; then finish the batch in hand, commit its offsets and leave the group."""
        health = None
        if self._settings.health_port:
            health = HealthServer(self._settings.health_port, self._live, self._ready, self._settings.health_host)
            health.start()
        self._consumer.subscribe(self._topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)
        log.info("stream_started", group=self._group, topics=self._topics)
        try:
            while not self._stopping.is_set():
                self._turned = time.monotonic()
                self._turn()
            self._commit_for_good()
        except Stopped:
            log.warning("stopped_while_waiting", group=self._group, trouble=self._trouble)
        finally:
            self._consumer.close()
            if health is not None:
                health.stop()
        log.info("stream_stopped", group=self._group)

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe from a signal handler or another thread."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """Stop on SIGTERM and SIGINT. Only from the main thread."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)

    def pause(self) -> None:
        """Take no more records after the batch in hand, and stay in the group. Safe from another thread."""
        self._pausing.set()

    def resume(self) -> None:
        """Take records again, from where ``pause`` left off. Safe from another thread."""
        self._pausing.clear()

    @property
    def paused(self) -> bool:
        return self._pausing.is_set()

    def _turn(self) -> None:
        self._settle()
        self._measure_lag()
        self._hearing.check(self._assigned)
        first = self._consumer.poll(self._patience())
        if first is None:
            return
        # Drained without waiting: a timeout here would add itself to every hop (PROTOTYPE.md).
        drained = self._consumer.consume(self._settings.batch_limit - 1, timeout=0) if self._drains else []
        messages = self._wanted(self._good([first, *drained]))
        if not messages:
            return
        BATCH_SIZE.labels(self._group).observe(len(messages))
        with BATCH_SECONDS.labels(self._group).time():
            holds = self._try(messages)
        for hold in holds:
            self._hold(hold)
        self._commit(messages)

    @property
    def _drains(self) -> bool:
        return self._settings.batch_limit > 1

    def _try(self, messages: Sequence[Message]) -> Sequence[Hold]:
        holds: Sequence[Hold] = ()
        for attempt in stamina.retry_context(
            on=(Retry, RegistryUnavailable),
            attempts=None,
            timeout=None,
            wait_max=self._settings.retry_wait_max_s,
        ):
            with attempt:
                if attempt.num > 1:
                    self._stay_in_group()
                try:
                    holds = self._work(messages)
                except (Retry, RegistryUnavailable) as error:
                    self._trouble = str(error)
                    RETRIES.labels(self._group).inc()
                    log.warning("batch_retried", group=self._group, attempt=attempt.num, error=str(error))
                    raise
        self._trouble = None
        return holds

    def _stay_in_group(self) -> None:
        """Poll without taking messages, so that a long outage does not cost the group membership."""
        if self._stopping.is_set():
            raise Stopped
        self._turned = time.monotonic()
        self._silence(self._assigned)
        if (message := self._consumer.poll(0)) is not None:
            # Fetched before the pause took hold, or of a partition that has just come: read again after this batch.
            self._wanted(self._good([message]), taking=False)

    # Who may speak

    def _settle(self) -> None:
        """Let go of what has waited long enough, and bring the pauses to what they should be."""
        now = time.monotonic()
        for place in [place for place, (_, due) in self._held.items() if due <= now]:
            del self._held[place]
        self._silence(self._assigned if self._pausing.is_set() else set(self._held))
        HELD.labels(self._group).set(len(self._held))

    def _silence(self, wanted: set[Place]) -> None:
        quiet, loud = wanted - self._quiet, (self._quiet | self._fresh) - wanted
        if quiet:
            self._consumer.pause([TopicPartition(*place) for place in quiet])
        if loud := loud & self._assigned:
            self._consumer.resume([TopicPartition(*place) for place in loud])
        self._quiet = set(wanted)
        self._fresh.clear()

    def _wanted(self, messages: Sequence[Message], *, taking: bool = True) -> list[Message]:
        """Return those of partitions that may speak; the others are read again later."""
        if taking and not self._quiet:
            return list(messages)
        taken, back = [], dict[Place, int]()
        for message in messages:
            place, offset = place_of(message), offset_of(message)
            if taking and place not in self._quiet:
                taken.append(message)
            else:
                back.setdefault(place, offset)
        for place, offset in back.items():
            self._seek(place, self._held[place][0] if place in self._held else offset)
        return taken

    def _hold(self, hold: Hold) -> None:
        place = (hold.topic, hold.partition)
        if place not in self._assigned:
            return
        self._held[place] = hold.offset, time.monotonic() + hold.delay_s
        # Paused first: what had been fetched ahead is thrown away, and nothing comes before it is due.
        self._silence(self._quiet | {place})
        self._seek(place, hold.offset)

    def _seek(self, place: Place, offset: int) -> None:
        if place in self._assigned:
            self._consumer.seek(TopicPartition(*place, offset))

    def _patience(self) -> float:
        """Seconds until a held partition is due, at most those of a poll."""
        soonest = min((due for _, due in self._held.values()), default=None)
        return POLL_S if soonest is None else min(POLL_S, max(0.01, soonest - time.monotonic()))

    def _good(self, messages: Iterable[Message]) -> list[Message]:
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.fatal() or error.code() in NO_WAY_BACK:
                raise KafkaFailure(error)
            else:
                # The topic is not there yet, or all brokers are away: librdkafka goes on trying.
                if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._trouble = f"a topic does not exist ({error.str()}); {self._missing_topic}"
                log.warning("consumer_error", group=self._group, error=error.str())
        return good

    # How far

    def _commit(self, messages: Sequence[Message]) -> None:
        moved: dict[Place, int] = {}
        for message in messages:
            place, next_offset = place_of(message), offset_of(message) + 1
            if place not in self._assigned:
                continue  # whoever has it now goes on from what was committed, and the inbox skips what we did
            held = self._held.get(place)
            moved[place] = next_offset if held is None else min(next_offset, held[0])
        if moved:
            self._positions.update(moved)
            self._consumer.commit(offsets=_offsets(moved), asynchronous=True)

    def _commit_for_good(self) -> None:
        """At the end, so that whoever takes over need not skip much."""
        if not self._positions:
            return
        try:
            self._consumer.commit(offsets=_offsets(self._positions), asynchronous=False)
        except KafkaFailure as failure:
            log.warning("last_commit_failed", group=self._group, error=str(failure))

    def _measure_lag(self) -> None:
        if time.monotonic() - self._measured < LAG_EVERY_S:
            return
        self._measured = time.monotonic()
        try:
            for place in sorted(self._assigned):
                # What is not fetched has no fresh watermark in the cache.
                asked = place in self._quiet
                found = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=ASIDE_S, cached=not asked)
                if found is not None and found[1] >= 0:
                    position = self._positions.get(place, found[0])
                    LAG.labels(self._group, place[0], str(place[1])).set(max(0, found[1] - max(position, found[0])))
        except KafkaFailure as failure:
            log.warning("lag_unknown", group=self._group, error=str(failure))

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = {(partition.topic, partition.partition) for partition in partitions}
        found = take_up(consumer, partitions, self._start)
        self._positions.update({(one.topic, one.partition): one.offset for one in found if one.offset >= 0})
        self._assigned |= places
        self._fresh |= places
        self._quiet -= places
        self._trouble = None
        log.info("partitions_assigned", group=self._group, partitions=sorted(self._assigned))

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            place = (partition.topic, partition.partition)
            if place not in self._assigned:
                continue
            self._assigned.discard(place)
            self._fresh.discard(place)
            self._quiet.discard(place)
            self._held.pop(place, None)
            self._positions.pop(place, None)
            try:
                LAG.remove(self._group, place[0], str(place[1]))
            except KeyError:
                pass  # it was not measured yet
            self._released(place)
        log.info("partitions_revoked", group=self._group, partitions=sorted(self._assigned))

    # How it is

    def _live(self) -> list[str]:
        return hung({"the loop": time.monotonic() - self._turned})

    def _ready(self) -> list[str]:
        return [self._trouble] if self._trouble else []

    def _consumer_settings(self, start: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            **self._hearing.settings,
            "bootstrap.servers": self._settings.kafka_bootstrap_servers,
            "group.id": self._group,
            "client.id": f"{self._group}-{self._settings.instance or os.getpid()}",
            "enable.auto.commit": False,
            "auto.offset.reset": start,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": self._settings.session_timeout_ms,
            "heartbeat.interval.ms": max(1, self._settings.session_timeout_ms // 6),
            # The broker is asked again soon after it was away.
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
        }
        if self._settings.instance:
            settings["group.instance.id"] = f"{self._group}-{self._settings.instance}"
        return settings


def place_of(message: Message) -> Place:
    """The partition of a record that came without an error."""
    return message.topic() or "", message.partition() or 0


def offset_of(message: Message) -> int:
    """The offset of a record that came without an error."""
    return message.offset() or 0


def header(message: Message, name: str) -> str | None:
    """A header's text: printable ASCII or nothing, because it goes on into outbox rows, which hold no NUL."""
    # The stubs allow a mapping too; what was received is always a list of pairs.
    headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
    value = next((value for key, value in headers if key == name and value is not None), None)
    return value.decode("ascii") if value is not None and value.isascii() and value.decode().isprintable() else None


def _offsets(positions: dict[Place, int]) -> list[TopicPartition]:
    return [TopicPartition(*place, offset) for place, offset in positions.items()]
