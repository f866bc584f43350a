"""A member that would be deaf ends, and one that only waits does not."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, Consumer, KafkaError, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure

from participant import membership
from participant.membership import DEAF_AFTER_S, Deaf, Hearing, sound, take_up

TOPIC = "billing.commands"
PLACES = [(TOPIC, 0), (TOPIC, 1)]


class Asked:
    """Answers ``committed`` with what it is given, one after the other, and keeps what is assigned."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.assigned: list[tuple[int, int]] = []

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        answer = self.answers.pop(0)
        if isinstance(answer, KafkaError):
            raise KafkaFailure(answer)
        return [TopicPartition(TOPIC, p, offset) for p, offset in answer.items()]

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned += [(one.partition, one.offset) for one in partitions]


def taken_up(consumer: Asked, start: int = OFFSET_BEGINNING) -> list[int]:
    asked = [TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)]
    return [one.offset for one in take_up(cast(Consumer, consumer), asked, start)]


@pytest.mark.parametrize("code", [KafkaError.NOT_COORDINATOR, KafkaError._TIMED_OUT, KafkaError._TRANSPORT])
def test_offsets_are_asked_for_again_after_a_coordinator_that_is_none_yet(code: int) -> None:
    consumer = Asked(KafkaError(code), KafkaError(code), {0: 7, 1: 9})
    assert taken_up(consumer) == [7, 9]
    assert consumer.assigned == [(0, 7), (1, 9)]


@pytest.mark.parametrize("start", [OFFSET_BEGINNING, OFFSET_END])
def test_a_partition_without_a_committed_offset_begins_where_it_is_told(start: int) -> None:
    consumer = Asked({0: OFFSET_INVALID, 1: 9})
    assert taken_up(consumer, start) == [OFFSET_INVALID, 9]
    assert consumer.assigned == [(0, start), (1, 9)]


def test_offsets_that_stay_unknown_end_the_process_and_nothing_is_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_OFFSETS_WITHIN_S", 0.0)
    consumer = Asked(KafkaError(KafkaError.NOT_COORDINATOR), KafkaError(KafkaError.NOT_COORDINATOR))
    with pytest.raises(KafkaFailure):
        taken_up(consumer)
    assert consumer.assigned == []


def test_an_error_about_one_partition_does_not_pass_for_nothing_committed() -> None:
    broken = SimpleNamespace(topic=TOPIC, partition=0, offset=OFFSET_INVALID, error=KafkaError(KafkaError._TIMED_OUT))
    with pytest.raises(KafkaFailure):
        sound(cast(list[TopicPartition], [broken]))


def test_an_offset_that_is_not_there_does_not_pass_for_one_where_there_must_be_one() -> None:
    none = [TopicPartition(TOPIC, 0, OFFSET_INVALID)]
    assert sound(none) == none
    with pytest.raises(KafkaFailure, match="no offset"):
        sound(none, known=True)


def report(*states: str, broker: str = "UP") -> str:
    partitions = {str(p): {"fetch_state": state} for p, state in enumerate(states)}
    return json.dumps({"brokers": {"1": {"state": broker}}, "topics": {TOPIC: {"partitions": partitions}}})


def told(hearing: Hearing, text: str) -> None:
    hearing.settings["stats_cb"](text)


def test_a_partition_that_is_assigned_and_never_fetched_ends_the_process() -> None:
    hearing = Hearing()
    told(hearing, report("active", "none"))
    hearing.check(PLACES, now=0.0)
    told(hearing, report("active", "none"))
    with pytest.raises(Deaf, match=r"billing\.commands\[1\] .* has not been fetched"):
        hearing.check(PLACES, now=DEAF_AFTER_S)


@pytest.mark.parametrize(
    "between",
    [report("active", "active"), report("active", "none", broker="DOWN")],
    ids=["fetched once", "no broker was there"],
)
def test_what_is_fetched_or_has_no_broker_is_not_deaf(between: str) -> None:
    hearing = Hearing()
    for now, text in (
        (0.0, report("active", "none")),
        (DEAF_AFTER_S, between),
        (DEAF_AFTER_S + 1, report("active", "none")),
    ):
        told(hearing, text)
        hearing.check(PLACES, now=now)


def test_an_old_report_is_not_counted_twice_and_a_revoked_partition_not_at_all() -> None:
    hearing = Hearing()
    told(hearing, report("active", "none"))
    hearing.check(PLACES, now=0.0)
    hearing.check(PLACES, now=10 * DEAF_AFTER_S)
    told(hearing, report("active", "none"))
    hearing.check(PLACES[:1], now=11 * DEAF_AFTER_S)
