"""A member of a consumer group that hears, or ends: what librdkafka alone does not promise.

A broker that was away or frozen and comes back may answer for a moment that it does not coordinate the group.
librdkafka asks for the committed offsets of new partitions once; after such an answer they stay assigned and are never
fetched (its source says so: "will not be added back to .pending"; seen with 2.16 after a broker was frozen for 14 s).
The process lives on, deaf, and the group waits for it. So:

- ``take_up`` looks the offsets up itself, again while it gets no answer, and assigns the partitions with them;
- ``Hearing`` reads in librdkafka's own statistics whether every partition is being fetched, and ends a process where
  one is not, whatever the reason;
- after the errors in ``NO_WAY_BACK`` a member is none any more.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure

log = structlog.get_logger(__name__)

#: After these librdkafka never consumes again, though the binding does not call them fatal: a broker that was away
#: for longer than the session timeout fences the static member that comes back. The process must start anew.
NO_WAY_BACK = (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)

#: Seconds between two reports of librdkafka about itself.
REPORT_EVERY_S = 5.0
#: Seconds that a partition may be assigned and not be fetched while a broker is there.
DEAF_AFTER_S = 30.0
#: Seconds for the committed offsets of partitions that have just come; then the process starts anew.
_OFFSETS_WITHIN_S = 20.0
_ASK_S = 2.0
_PAUSE_S = 0.2


class Deaf(Exception):
    """A partition is assigned and is not fetched; only a new process will."""


def take_up(consumer: Consumer, partitions: Sequence[TopicPartition], start: int) -> list[TopicPartition]:
    """Assign what ``on_assign`` was told of, each partition from its committed offset.

    Args:
        consumer: with ``cooperative-sticky`` assignment.
        start: where a partition without one begins, ``OFFSET_BEGINNING`` or ``OFFSET_END``.

    Returns:
        The committed offsets; negative where there is none.

    Raises:
        KafkaFailure: they could not be learned.
    """
    if not partitions:
        return []
    found = _committed(consumer, partitions)
    consumer.incremental_assign(
        [TopicPartition(one.topic, one.partition, one.offset if one.offset >= 0 else start) for one in found]
    )
    return found


def _committed(consumer: Consumer, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
    give_up = time.monotonic() + _OFFSETS_WITHIN_S
    while True:
        try:
            return sound(consumer.committed(list(partitions), timeout=_ASK_S))
        except KafkaFailure as failure:
            if time.monotonic() > give_up:
                raise
            log.warning("committed_offsets_unknown", error=str(failure))
            time.sleep(_PAUSE_S)


def sound(found: Sequence[TopicPartition], *, known: bool = False) -> list[TopicPartition]:
    """Return ``found``, the answer to a question about offsets.

    Args:
        known: whether every partition must have one. Without it, a missing offset means that nothing was committed.

    Raises:
        KafkaFailure: there is none for a partition, which must not pass for "nothing is there".
    """
    for one in found:
        if one.error is not None:
            raise KafkaFailure(one.error)
        if known and one.offset == OFFSET_INVALID:
            raise KafkaFailure(
                KafkaError(KafkaError._NO_OFFSET, f"the brokers know no offset of {one.topic}[{one.partition}]")
            )
    return list(found)


class Hearing:
    """Whether a consumer's partitions are being fetched, by the statistics that it is made with ``settings`` for."""

    def __init__(self) -> None:
        #: Partitions that are not fetched, and since when.
        self._silent: dict[tuple[str, int], float] = {}
        self._report: Mapping[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Of the consumer, beside the others."""
        return {"statistics.interval.ms": round(REPORT_EVERY_S * 1000), "stats_cb": self._told}

    def _told(self, report: str) -> None:
        # Called from within poll, which an exception would not leave.
        self._report = json.loads(report)

    def check(self, assigned: Iterable[tuple[str, int]], now: float | None = None) -> None:
        """Look at the newest report; cheap where there is none since the last look.

        Raises:
            Deaf: one of ``assigned`` has not been fetched for ``DEAF_AFTER_S`` while a broker was there.
        """
        if not self._report:
            return
        now = time.monotonic() if now is None else now
        report, self._report = self._report, {}
        if not any(broker["state"] == "UP" for broker in report.get("brokers", {}).values()):
            self._silent.clear()
            return
        topics = report.get("topics", {})
        states = {
            (topic, partition): topics.get(topic, {}).get("partitions", {}).get(str(partition), {}).get("fetch_state")
            for topic, partition in assigned
        }
        self._silent = {place: self._silent.get(place, now) for place, state in states.items() if state != "active"}
        for (topic, partition), since in self._silent.items():
            if now - since >= DEAF_AFTER_S:
                raise Deaf(
                    f"{topic}[{partition}] is assigned to this process and has not been fetched for "
                    f"{now - since:.0f} s (state {states[topic, partition]})"
                )
