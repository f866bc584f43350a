"""Inputs of any maker must not end the processor again and again: what is refused or answered can always be written."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException

from participant.command import REASON_LIMIT
from saga_processors import codec as codecs
from saga_processors.definition import InvalidDefinition, SagaDefinition
from saga_processors.log import Publisher
from saga_processors.reason import describe
from saga_processors.records import EVENTS_TOPIC, KafkaRecord
from saga_processors.reference import MAX_PAYLOAD_BYTES
from saga_processors.saga import Saga, SagaState
from saga_processors.transaction import ParticipantReplied
from tests.unit.saga_samples import Play, reply, step
from tests.unit.test_coordinator_submission import CODEC
from tests.unit.transaction_samples import participant

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def saga(*payloads: str) -> SagaDefinition:
    names = "ab"[: len(payloads)]
    steps = [replace(step(name, *names[max(0, i - 1) : i]), payload=payloads[i]) for i, name in enumerate(names)]
    return SagaDefinition("sample", tuple(steps))


@pytest.mark.parametrize(
    "payload",
    [r'{"\ud800": {"$from": "steps.a.result.x"}}', r'{"x": {"$from": "steps.a.result.\ud800\u0000"}}'],
    ids=["key", "path"],
)
def test_a_payload_that_cannot_be_made_has_a_reason_that_can_be_stored_and_sent(payload: str) -> None:
    definition = saga("{}", payload)
    definition.check(10)
    decision = Play(definition).put(reply("a", result="{}"))
    assert isinstance(decision.machine, Saga)
    assert decision.machine.state is SagaState.COMPENSATING
    for effect in decision.effects:
        orjson.dumps(codecs.effect_to_json(effect))
        codecs.effect_to_record(CODEC, ID, decision.machine, effect, 1)
    orjson.dumps(codecs.progress_to_json(decision.machine))


def test_what_is_wrong_with_poison_can_be_stored() -> None:
    with pytest.raises(InvalidDefinition) as told:
        saga(r'{"\ud800": {"$from": "nowhere"}}').check(10)
    assert "nowhere" in describe(told.value)
    for error in (told.value, ValueError("half a pair: \ud800, NUL: \0")):
        assert "\0" not in describe(error).encode().decode()


def test_a_payload_leaves_room_for_what_its_commands_carry_beside_it() -> None:
    saga(f'"{"x" * (MAX_PAYLOAD_BYTES - 2)}"').check(10)
    with pytest.raises(InvalidDefinition, match=r"steps\[0\].payload: is at most 1048576 bytes"):
        saga(f'"{"é" * (MAX_PAYLOAD_BYTES // 2)}"').check(10)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param('{"x": "' + "中" * 500_000 + '"}', id="escaped"),
        pytest.param('{"x": [' + ",".join(["1e15"] * 200_000) + "]}", id="numbers written out"),
    ],
)
def test_a_participants_payload_is_measured_as_its_calls_carry_it(payload: str) -> None:
    with pytest.raises(InvalidDefinition, match=r"participant.payload: is at most 1048576 bytes as it is sent"):
        participant("beta", payload=payload).check()


def test_how_deep_a_participants_payload_may_be_does_not_depend_on_the_stack() -> None:
    participant("beta", payload='{"x":' + "[" * 127 + "]" * 127 + "}").check()
    with pytest.raises(InvalidDefinition, match="nested more than 128 deep"):
        participant("beta", payload='{"x":' + "[" * 500 + "]" * 500 + "}").check()


def test_the_reason_of_a_participant_of_another_make_is_cut() -> None:
    given = {"participant": "beta", "operation": "PREPARE", "attempt": 1, "outcome": "REFUSED", "reason": "x" * 10**6}
    read = codecs.input_from_record("fluxora.ParticipantReplied", given)
    assert isinstance(read, ParticipantReplied)
    assert read.reason == "x" * REASON_LIMIT


class Brokers:
    """Stand where the admin client and the producer would be."""

    def __init__(self, refusal: int) -> None:
        self.refusal = refusal
        self.sent: list[str] = []
        self.topics = {EVENTS_TOPIC: None}

    def list_topics(self, timeout: float) -> "Brokers":
        return self

    def create_topics(self, topics: list[Any]) -> dict[str, Any]:
        return {topic.topic: self for topic in topics}

    def result(self, timeout: float) -> None:
        raise KafkaException(KafkaError(self.refusal))

    def produce(self, topic: str, *args: object, on_delivery: Callable[..., None], **kwargs: object) -> None:
        self.sent.append(topic)

    def flush(self, timeout: float) -> int:
        return 0


def publisher(brokers: Brokers) -> Publisher:
    made = Publisher("127.0.0.1:9", 1.0)
    made._admin = brokers  # type: ignore[assignment]
    made._producer = brokers  # type: ignore[assignment]
    return made


BATCH = [KafkaRecord("a_b.commands", b"", b"", []), KafkaRecord(EVENTS_TOPIC, b"", b"", [])]


def test_a_command_whose_topic_the_brokers_refuse_does_not_hold_up_the_others() -> None:
    brokers = Brokers(KafkaError.TOPIC_EXCEPTION)
    publisher(brokers)._publish(BATCH)
    assert brokers.sent == [EVENTS_TOPIC]


def test_brokers_that_cannot_make_a_topic_now_end_the_process() -> None:
    brokers = Brokers(KafkaError.INVALID_REPLICATION_FACTOR)
    with pytest.raises(KafkaException):
        publisher(brokers)._publish(BATCH)
    assert brokers.sent == []
