"""What other relays have answered already: the log says it.

After a takeover commands come again whose answers the relay before may have put into the log without committing their
offsets. They are not called a second time: if the first answer was "not called" the machine has gone on from there, and
what a second call did would be undone by nobody.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure

from outbox_relay.command import REPLY_ID_END, SOURCE
from participant.command import TRANSACTIONS_TOPIC
from participant.membership import sound

_TIMEOUT_S = 10.0
_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class Answered:
    """Commands answered from some time on."""

    #: s since the epoch, by the brokers.
    since: float
    command_ids: frozenset[str]
    #: Why others may have been answered too; None when these are all.
    gap: str | None = None


def read_answered(bootstrap_servers: str, since: float, limit: int, seconds: float) -> Answered:
    """Read the replies of relays from ``since`` to the log's end as it is now.

    Args:
        limit: records that are read, of whatever kind; what is over it is a gap.
        seconds: for reading; the same.

    Raises:
        KafkaFailure: the brokers do not answer.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            # Never subscribed and never committed: the group's name only has to be there.
            "group.id": "fluxora.http-relay.reader",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        ranges = _ranges(consumer, since)
        total = sum(end - start for start, end in ranges.values())
        if total > limit:
            return Answered(since, frozenset(), f"the log has {total} records since then, and {limit} may be read")
        return _read(consumer, ranges, since, seconds)
    finally:
        consumer.close()


def _ranges(consumer: Consumer, since: float) -> dict[int, tuple[int, int]]:
    """Of each partition that has any, the offsets ``[start, end)`` of records from ``since`` on."""
    topic = consumer.list_topics(TRANSACTIONS_TOPIC, timeout=_TIMEOUT_S).topics[TRANSACTIONS_TOPIC]
    if not (partitions := topic.partitions):
        raise KafkaFailure(topic.error or KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
    asked = [TopicPartition(TRANSACTIONS_TOPIC, partition, max(0, round(since * 1000))) for partition in partitions]
    found = {}
    for start in sound(consumer.offsets_for_times(asked, timeout=_TIMEOUT_S), known=True):
        _, end = consumer.get_watermark_offsets(start, timeout=_TIMEOUT_S)
        if end < 0:
            raise KafkaFailure(KafkaError(KafkaError._NO_OFFSET, f"{TRANSACTIONS_TOPIC}[{start.partition}] has no end"))
        # A negative offset: no record is that late.
        if 0 <= start.offset < end:
            found[start.partition] = (start.offset, end)
    return found


def _read(consumer: Consumer, ranges: dict[int, tuple[int, int]], since: float, seconds: float) -> Answered:
    consumer.assign([TopicPartition(TRANSACTIONS_TOPIC, partition, start) for partition, (start, _) in ranges.items()])
    ends = {partition: end for partition, (_, end) in ranges.items()}
    found: set[str] = set()
    give_up = time.monotonic() + seconds
    while ends:
        if time.monotonic() > give_up:
            return Answered(since, frozenset(found), f"the log could not be read within {seconds:g} s")
        for message in consumer.consume(_BATCH, timeout=0.5):
            partition, offset, error = message.partition() or 0, message.offset(), message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    ends.pop(partition, None)
                elif error.fatal():
                    raise KafkaFailure(error)
                continue
            assert offset is not None
            if (command_id := _answers(cast("list[tuple[str, bytes | None]]", message.headers() or []))) is not None:
                found.add(command_id)
            # Transactional producers leave holes, so the last offset itself may never come.
            if offset >= ends.get(partition, 0) - 1:
                ends.pop(partition, None)
    return Answered(since, frozenset(found))


def _answers(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """The command that a record answers, by the headers that each relay gives its replies."""
    found = dict(headers)
    if found.get("ce_source") != SOURCE.encode():
        return None
    id = (found.get("ce_id") or b"").decode("utf-8", "replace")
    return id.removesuffix(REPLY_ID_END) if id.endswith(REPLY_ID_END) else None
