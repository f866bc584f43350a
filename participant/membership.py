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
#: Seconds that a partition may be assigned and not be fetched while its leader is there.
DEAF_AFTER_S = 30.0
#: Seconds that joining the group may take: longer than the slowest other member may (max.poll.interval.ms).
JOINED_WITHIN_S = 330.0
#: States in which a member waits for the group's coordinator or for itself, and not for a topic to be made.
_JOINING = ("wait-join", "wait-sync", "wait-unassign-to-complete", "wait-incr-unassign-to-complete")
#: Seconds for the committed offsets of partitions that have just come; then the process starts anew.
_OFFSETS_WITHIN_S = 20.0
_ASK_S = 2.0
_PAUSE_S = 0.2


class Deaf(Exception):
    """A partition is assigned and is not fetched, or the group is not joined; only a new process will."""


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
        #: Partitions that are not fetched, and since when, by librdkafka's clock; None: the group is not joined.
        self._silent: dict[tuple[str, int] | None, float] = {}
        self._report: Mapping[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Of the consumer, beside the others."""
        return {"statistics.interval.ms": round(REPORT_EVERY_S * 1000), "stats_cb": self._told}

    def _told(self, report: str) -> None:
        # Called from within poll, which an exception would not leave.
        self._report = json.loads(report)

    def check(self, assigned: Iterable[tuple[str, int]]) -> None:
        """Look at the newest report; cheap where there is none since the last look.

        Raises:
            Deaf: one of ``assigned`` was not fetched for ``DEAF_AFTER_S`` while its leader was there, or the group was
                not joined for ``JOINED_WITHIN_S`` while a broker was.
        """
        if not self._report:
            return
        report, self._report = self._report, {}
        now = report["ts"] / 1e6
        # By id: the brokers that are connected.
        up = {broker["nodeid"] for broker in report.get("brokers", {}).values() if broker["state"] == "UP"}
        silent: dict[tuple[str, int] | None, str] = {
            place: state for place in assigned if (state := _not_fetched(report, up, *place)) is not None
        }
        join_state = report.get("cgrp", {}).get("join_state", "")
        if join_state in _JOINING and up:
            silent[None] = join_state
        self._silent = {place: self._silent.get(place, now) for place in silent}
        for place, since in self._silent.items():
            if now - since >= (DEAF_AFTER_S if place else JOINED_WITHIN_S):
                what = f"{place[0]}[{place[1]}] is assigned and has not been fetched" if place else "not in the group"
                raise Deaf(f"{what} for {now - since:.0f} s (state {silent[place]}); the process starts anew")


def _not_fetched(report: Mapping[str, Any], up: set[int], topic: str, partition: int) -> str | None:
    """The state of a partition that its leader, which is there, is not asked for."""
    found = report.get("topics", {}).get(topic, {}).get("partitions", {}).get(str(partition), {})
    state = str(found.get("fetch_state", "none"))
    return state if state != "active" and found.get("leader") in up else None
