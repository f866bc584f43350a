"""A member that would be deaf ends, and one that only waits does not."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, Consumer, KafkaError, TopicPartition
from confluent_kafka import KafkaException as KafkaFailure

from participant import membership
from participant.membership import DEAF_AFTER_S, JOINED_WITHIN_S, Deaf, Hearing, sound, take_up

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


def report(at: float, *states: str, broker: str = "UP", leader: int = 1, join: str = "steady") -> str:
    partitions = {str(p): {"fetch_state": state, "leader": leader} for p, state in enumerate(states)}
    return json.dumps(
        {
            "ts": at * 1e6,
            "brokers": {"1": {"nodeid": 1, "state": broker}},
            "topics": {TOPIC: {"partitions": partitions}},
            "cgrp": {"join_state": join},
        }
    )


def told(hearing: Hearing, *reports: str, places: Sequence[tuple[str, int]] = PLACES) -> None:
    for text in reports:
        hearing.settings["stats_cb"](text)
        hearing.check(places)


def test_a_partition_that_is_assigned_and_never_fetched_ends_the_process() -> None:
    hearing = Hearing()
    told(hearing, report(0, "active", "none"), report(DEAF_AFTER_S - 1, "active", "none"))
    with pytest.raises(Deaf, match=r"billing\.commands\[1\] .* has not been fetched"):
        told(hearing, report(DEAF_AFTER_S, "active", "none"))


@pytest.mark.parametrize(
    "between",
    [
        report(DEAF_AFTER_S, "active", "active"),
        report(DEAF_AFTER_S, "active", "offset-query", broker="DOWN"),
        report(DEAF_AFTER_S, "active", "offset-query", leader=-1),
        report(DEAF_AFTER_S, "active", "offset-query", leader=2),
    ],
    ids=["fetched once", "no broker is there", "no leader", "its leader is away"],
)
def test_what_is_fetched_or_has_nobody_to_be_fetched_from_is_not_deaf(between: str) -> None:
    told(Hearing(), report(0, "active", "none"), between, report(DEAF_AFTER_S + 1, "active", "none"))


def test_time_passes_by_the_reports_and_not_by_when_they_are_looked_at() -> None:
    hearing = Hearing()
    told(hearing, report(0, "active", "none"))
    for _ in range(1_000):
        hearing.check(PLACES)
    told(hearing, report(1, "active", "none"))


def test_a_revoked_partition_does_not_count() -> None:
    hearing = Hearing()
    told(hearing, report(0, "active", "none"))
    told(hearing, report(DEAF_AFTER_S, "active", "none"), places=PLACES[:1])


def test_a_member_that_never_comes_into_its_group_ends_and_one_that_waits_for_a_topic_does_not() -> None:
    hearing = Hearing()
    told(hearing, report(0, join="wait-join"), report(JOINED_WITHIN_S - 1, join="wait-sync"), places=())
    with pytest.raises(Deaf, match=r"not in the group for 330 s \(state wait-join\)"):
        told(hearing, report(JOINED_WITHIN_S, join="wait-join"), places=())
    told(Hearing(), report(0, join="wait-metadata"), report(JOINED_WITHIN_S, join="wait-metadata"), places=())
