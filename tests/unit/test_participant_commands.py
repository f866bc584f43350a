"""Commands, results and registrations: what is let in and what is not."""

import subprocess
import sys
import uuid
from typing import Any

import pytest

from participant import Command, InvalidService, Operation, Outcome, Refused, Service, outbox
from participant.command import (
    REASON_LIMIT,
    RESULT_LIMIT,
    InvalidResult,
    command_from,
    reply_from,
    storable,
)
from schemas import WrongShape

ACTION = Command("c", uuid.UUID(int=1), "order", "bill", "bill", Operation.ACTION)
COMPENSATION = Command("c", uuid.UUID(int=1), "order", "bill", "bill", Operation.COMPENSATION)
RECORD: dict[str, Any] = {
    "command_id": "c",
    "transaction_id": str(uuid.UUID(int=1)),
    "saga_name": "order",
    "step": "bill",
    "command": "bill",
    "operation": "COMPENSATION",
    "attempt": 2,
    "final": True,
    "payload": '{"kwh": 12.5}',
    "result": '{"bill": 7}',
}


def test_a_record_becomes_a_command_with_its_json_parsed() -> None:
    command = command_from(RECORD, "00-ab-cd-01")
    assert command.payload == {"kwh": 12.5}
    assert command.result == {"bill": 7}
    assert (command.attempt, command.final, command.operation) == (2, True, Operation.COMPENSATION)
    assert command.traceparent == "00-ab-cd-01"


@pytest.mark.parametrize(
    "wrong",
    [
        {"transaction_id": "7"},
        {"payload": "{"},
        {"result": "nope"},
        {"command_id": ""},
        {"command_id": "a\x00b"},
        {"step": "a\x00b"},
    ],
)
def test_a_record_that_would_poison_the_batch_is_not_a_command(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        command_from({**RECORD, **wrong})


def test_what_handlers_return_becomes_a_reply() -> None:
    assert reply_from(ACTION, None).outcome is Outcome.DONE
    assert reply_from(ACTION, {"a": 1}).result == '{"a":1}'
    refused = reply_from(ACTION, Refused("no\x00credit"))
    assert (refused.outcome, refused.reason) == (Outcome.REFUSED, "no\\0credit")


@pytest.mark.parametrize("returned", [True, 7, "done", [1], {"a": object()}, {"a": "x" * RESULT_LIMIT}, {1: 2}])
def test_what_cannot_be_a_result_is_the_handlers_fault(returned: object) -> None:
    with pytest.raises(InvalidResult):
        reply_from(ACTION, returned)


def test_a_compensation_cannot_refuse() -> None:
    with pytest.raises(InvalidResult, match="must undo or raise"):
        reply_from(COMPENSATION, Refused("no"))


def test_a_reason_can_be_stored_whatever_it_is() -> None:
    reason = storable("\x00 \ud800 " + "x" * 10_000)
    assert len(reason) == REASON_LIMIT
    assert "\x00" not in reason
    reason.encode()


def test_a_service_does_not_start_with_handlers_that_do_not_fit() -> None:
    service = Service("billing")

    @service.action("bill")
    def bill(connection: object, command: Command) -> None: ...

    @service.compensation("send")
    def unsend(connection: object, command: Command) -> None: ...

    with pytest.raises(InvalidService) as told:
        service.run()
    assert "'bill' has no compensation" in str(told.value)
    assert "'send' belongs to no action" in str(told.value)
    with pytest.raises(InvalidService, match="two handlers"):
        service.action("bill")(bill)


def test_a_service_without_actions_does_not_start() -> None:
    with pytest.raises(InvalidService, match="there is no action"):
        Service("billing").run()


class NoDatabase:
    def execute(self, *args: object) -> None:
        raise AssertionError("nothing may be written")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"topic": "bad topic"}, "no Kafka topic name"),
        ({"topic": ".."}, "no Kafka topic name"),
        ({"key": ""}, "the key is empty"),
        ({"event": b"x" * (outbox.PAYLOAD_LIMIT + 1)}, "983041 bytes"),
        ({"source": "a\x00b"}, "holds a NUL"),
        ({"event": 7}, "a mapping, a dataclass or bytes"),
    ],
)
def test_what_would_stop_the_connector_never_reaches_the_outbox(wrong: dict[str, Any], told: str) -> None:
    arguments: dict[str, Any] = {"event": b"x", "topic": "events", "key": "k", "type": "t", **wrong}
    event = arguments.pop("event")
    with pytest.raises(WrongShape, match=told):
        outbox.publish(NoDatabase(), event, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("variable", "code"), [("here", 137), ("here:2", 137), ("here:3", 0), ("there", 0), ("", 0)])
def test_a_crash_point_kills_at_its_visit_only(variable: str, code: int) -> None:
    program = "from participant.crashpoint import crash_at\nfor _ in range(2): crash_at('here')"
    ended = subprocess.run([sys.executable, "-c", program], env={"FLUXORA_CRASH_AT": variable}, check=False)
    assert ended.returncode == code
