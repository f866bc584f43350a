"""HTTP steps: which endpoints may be named, what the relay is told, and the order without a barrier."""

import io
import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import fastavro
import pytest

from participant import sagas
from participant.command import REASON_LIMIT, RESULT_LIMIT
from saga_processors import codec as codecs
from saga_processors import endpoint, saga_codec
from saga_processors.definition import InvalidDefinition, SagaDefinition, StepKind
from saga_processors.machine import DeadlinePassed, Request, Verdict
from saga_processors.records import from_ms
from saga_processors.saga import OperatorRequest, Outcome, SendCommand, StepReplied
from schemas import UndecodableRecord
from schemas.registration import SCHEMAS
from tests.unit.saga_samples import RETRY, Play, http_step, reply, saga_of, step

ONCE = replace(RETRY, max_attempts=1)

ID = "01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e"


class LocalCodec:
    """Encodes with the schemas of this package, without a registry."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []

    def encode(self, name: str, record: dict[str, Any]) -> bytes:
        body = io.BytesIO()
        schema = fastavro.parse_schema(SCHEMAS[name], named_schemas={})
        fastavro.schemaless_writer(body, schema, record, strict=True)
        value = body.getvalue()
        self.records.append((name, fastavro.schemaless_reader(io.BytesIO(value), schema, None)))  # type: ignore[arg-type]
        return value


def commands(play: Play) -> list[dict[str, Any]]:
    """The records of the last input's commands; all must be for the relay."""
    codec = LocalCodec()
    assert play.saga is not None
    for effect in play.decision.effects:
        if isinstance(effect, SendCommand):
            record = saga_codec.effect_to_record(codec, ID, play.saga, effect, play.at)  # type: ignore[arg-type]
            assert record.topic == "fluxora.http.commands"
            assert record.key == ID.encode()
            assert ("ce_type", b"fluxora.HttpCommand") in record.headers
    assert {name for name, _ in codec.records} <= {"fluxora.HttpCommand"}
    return [record for _, record in codec.records]


def test_an_action_is_its_payload_for_the_relay() -> None:
    play = Play(saga_of(replace(http_step("a"), payload='{"n": 1}')))
    assert commands(play) == [
        {
            "command_id": f"{ID}:a:action:1",
            "transaction_id": ID,
            "subject": "a",
            "operation": "ACTION",
            "attempt": 1,
            "idempotency_key": f"{ID}:a:action",
            "service_name": "a-service",
            "service_url": None,
            "endpoint": "/a",
            "body": '{"n": 1}',
            "timeout_ms": 1_000,
            "expires_at": from_ms(1_000),
        }
    ]


def test_all_attempts_of_an_operation_share_their_idempotency_key() -> None:
    play = Play(saga_of(http_step("a")))
    play.put(reply("a", Outcome.FAILED))
    play.pass_time()
    [command] = commands(play)
    assert command["command_id"] == f"{ID}:a:action:2"
    assert command["idempotency_key"] == f"{ID}:a:action"
    assert command["expires_at"] == from_ms(play.at + 1_000)


@pytest.mark.parametrize("result", ['{"order": 7}', None])
def test_a_compensation_carries_the_step_the_payload_and_the_result(result: str | None) -> None:
    a = replace(http_step("a"), payload='{"customer": {"$from": "input.id"}}', compensation_endpoint="undo?x=1")
    play = Play(SagaDefinition("sample", (a, step("b", "a")), input='{"id": "é"}'))
    play.put(reply("a", result=result))
    play.put(reply("b", Outcome.REFUSED))
    [command] = commands(play)
    assert command["endpoint"] == "/undo?x=1"
    assert command["idempotency_key"] == f"{ID}:a:compensation"
    assert json.loads(command["body"]) == {
        "step_id": "a",
        "original_payload": {"customer": "é"},
        "saga_id": ID,
        "result": None if result is None else {"order": 7},
    }


def test_an_absolute_endpoint_is_split_into_the_service_and_its_path() -> None:
    play = Play(saga_of(replace(http_step("a"), action_endpoint="https://pay.example:8443/v1/charge?x=1")))
    [command] = commands(play)
    assert (command["service_url"], command["endpoint"]) == ("https://pay.example:8443", "/v1/charge?x=1")


@pytest.mark.parametrize(
    ("written", "origin", "path"),
    [
        ("/reserve", None, "/reserve"),
        ("reserve", None, "/reserve"),
        ("orders/7/reserve?dry=1&x[]=2", None, "/orders/7/reserve?dry=1&x[]=2"),
        ("http://a", "http://a", "/"),
        ("HTTP://a:80?x=1", "HTTP://a:80", "/?x=1"),
        ("http://[::1]:8000/x", "http://[::1]:8000", "/x"),
        ("http://a/b@c:d", "http://a", "/b@c:d"),
        ("/caf%C3%A9", None, "/caf%C3%A9"),
    ],
)
def test_endpoints_that_may_be_named(written: str, origin: str | None, path: str) -> None:
    assert endpoint.broken_rule(written) is None
    assert endpoint.split(written) == (origin, path)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "//evil.example/x",
        "ftp://a/b",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "http://user:secret@a/b",
        "http://user@a/b",
        "http:///b",
        "http://a:0/",
        "http://a:65536/",
        "http://a:x/",
        "http://a b/",
        "http://a\\@b/",
        "/a#part",
        "/a b",
        "/a\nHost: b",
        "/a\x00",
        "/café",
        "/100%",
        "/orders/{id}",
        "/" + "x" * 2_000,
    ],
)
def test_endpoints_that_are_refused(written: str) -> None:
    assert endpoint.broken_rule(written)
    with pytest.raises(InvalidDefinition, match=r"^steps\[0\].action_endpoint: "):
        saga_of(replace(http_step("a"), action_endpoint=written)).check(10)
    with pytest.raises(InvalidDefinition, match=r"^steps\[0\].compensation_endpoint: "):
        saga_of(replace(http_step("a"), compensation_endpoint=written)).check(10)


def test_a_compensation_endpoint_comes_with_an_action_endpoint() -> None:
    with pytest.raises(InvalidDefinition, match=r"steps\[0\].compensation_endpoint: comes with an action_endpoint"):
        saga_of(replace(step("a"), compensation_endpoint="/undo")).check(10)


def test_a_step_without_compensation_endpoint_is_settled_without_a_call() -> None:
    # b, in the middle, is listed last: what comes before it may be undone in the same fold.
    play = Play(saga_of(step("a"), step("c", "b"), http_step("b", "a", undo=None)))
    play.put(reply("a"))
    play.put(reply("b"))
    play.put(reply("c", Outcome.REFUSED))
    assert play.sent == ["undo a"]
    assert play.events == [
        "StepFailed",
        "SagaCompensating",
        "StepCompensating",
        "StepCompensated",
        "StepCompensating",
    ]
    assert play.states == "COMPENSATING: a=COMPENSATING c=FAILED b=COMPENSATED"


def test_a_saga_with_nothing_to_undo_fails_at_once() -> None:
    play = Play(saga_of(http_step("a", undo=None), http_step("b", "a", undo=None)))
    play.put(reply("a"))
    play.put(reply("b", Outcome.REFUSED))
    assert play.states == "FAILED: a=COMPENSATED b=FAILED"


def test_an_http_step_under_way_is_not_undone_at_the_sagas_timeout_but_when_its_call_is_over() -> None:
    play = Play(saga_of(http_step("a", timeout_ms=2_000), step("b"), timeout_ms=500))
    play.pass_time()
    assert play.at == 500
    assert play.sent == ["undo b"], "its barrier refuses the action if that comes later"
    assert play.states == "COMPENSATING: a=EXECUTING b=COMPENSATING"
    play.put(reply("b", undo=True))
    play.put(DeadlinePassed(2_000))
    assert play.sent == ["undo a"]


def test_a_late_refusal_does_not_settle_an_http_step_while_a_later_attempt_may_succeed() -> None:
    play = Play(saga_of(http_step("a")))
    play.pass_time()
    play.pass_time()
    assert play.sent == ["do a 2"]
    assert play.put(reply("a", Outcome.REFUSED)).verdict is Verdict.IGNORED
    play.put(reply("a", attempt=2))
    assert play.states == "COMPLETED: a=EXECUTED"


def test_a_late_refusal_settles_an_http_step_that_waits_for_its_next_attempt() -> None:
    play = Play(saga_of(http_step("a")))
    play.pass_time()
    play.put(reply("a", Outcome.REFUSED))
    assert play.sent == ["undo a"], "it may have run"


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "by its timeout"])
def test_a_late_success_goes_on_but_is_not_undone_while_a_later_attempt_is_under_way(answered: bool) -> None:
    play = Play(saga_of(http_step("a", timeout_ms=1_000), step("b", "a")))
    play.pass_time()
    play.pass_time()
    assert play.sent == ["do a 2"]
    play.put(reply("a", attempt=1))
    assert play.sent == ["do b"]
    play.put(reply("b", Outcome.REFUSED))
    assert play.states == "COMPENSATING: a=EXECUTED b=FAILED"
    assert play.sent == [], "the second call of the action may come after that of its compensation"
    assert play.put(reply("a", attempt=2, undo=True)).verdict is not Verdict.APPLIED, "nobody has asked for that"
    if answered:
        play.put(reply("a", attempt=2))
    else:
        play.pass_time()
    assert play.sent == ["undo a"]


def test_a_saga_that_completes_waits_for_no_attempt() -> None:
    play = Play(saga_of(http_step("a")))
    play.pass_time()
    play.pass_time()
    assert play.sent == ["do a 2"]
    play.put(reply("a", attempt=1))
    assert play.states == "COMPLETED: a=EXECUTED"
    assert play.saga is not None and play.saga.steps[0].timeout_at is None


@pytest.mark.parametrize("late", [Outcome.DONE, Outcome.UNKNOWN])
def test_a_call_that_was_not_reached_and_ran_by_a_second_copy_is_undone_while_the_saga_is(late: Outcome) -> None:
    play = Play(saga_of(http_step("a"), replace(http_step("b", "a"), retry=ONCE)))
    play.put(reply("a", result='{"id": 1}'))
    play.put(reply("b", Outcome.FAILED))
    assert play.sent == ["undo a"]
    assert play.put(reply("b", late, result='{"id": 2}' if late is Outcome.DONE else None)).verdict is Verdict.APPLIED
    assert play.sent == ["undo b"]
    [command] = commands(play)
    assert json.loads(command["body"])["result"] == ({"id": 2} if late is Outcome.DONE else None)
    assert play.put(reply("b", late)).verdict is Verdict.IGNORED, "once is enough"
    play.put(reply("a", undo=True))
    assert play.states == "COMPENSATING: a=COMPENSATED b=COMPENSATING"
    play.put(reply("b", undo=True))
    assert play.states == "FAILED: a=COMPENSATED b=COMPENSATED"


@pytest.mark.parametrize(
    "answer",
    [reply("b", attempt=2), reply("b", Outcome.REFUSED), reply("b", Outcome.FAILED), reply("c"), reply("k")],
    ids=["never asked for", "refused", "failed", "not begun", "over Kafka"],
)
def test_no_other_late_answer_moves_a_step_that_was_not_executed(answer: StepReplied) -> None:
    play = Play(saga_of(http_step("a"), step("k"), replace(http_step("b", "a", "k"), retry=ONCE), http_step("c", "b")))
    play.put(reply("a"))
    if answer.step == "k":
        play.put(reply("k", Outcome.REFUSED))
    else:
        play.put(reply("k"))
        play.put(reply("b", Outcome.FAILED))
    assert play.saga is not None and play.saga.state == "COMPENSATING"
    before = play.saga
    assert play.put(answer).verdict is not Verdict.APPLIED
    assert play.saga == before


def test_what_ran_late_after_the_end_is_left() -> None:
    play = Play(saga_of(replace(http_step("a"), retry=ONCE)))
    play.put(reply("a", Outcome.FAILED))
    assert play.states == "FAILED: a=FAILED"
    assert play.put(reply("a")).verdict is Verdict.IGNORED


def test_a_second_copy_that_may_have_run_leaves_the_step_in_doubt_while_it_waits() -> None:
    play = Play(saga_of(http_step("a")))
    play.put(reply("a", Outcome.FAILED))
    play.put(reply("a", Outcome.UNKNOWN))
    play.pass_time()
    play.put(reply("a", Outcome.FAILED, attempt=2))
    assert play.sent == ["undo a"]


def test_what_participants_start_is_what_the_machine_reads() -> None:
    steps = [
        sagas.Step("stock", {"x": {"$from": "input.x"}}, name="a", action_endpoint="/a", compensation_endpoint="/b"),
        sagas.Step("bill", {"y": {"$from": "steps.a.result"}}, name="b", kind="pivot", timeout_seconds=5),
    ]
    record = sagas.started(UUID(ID), "sample", steps, timeout_seconds=60, version="2.1", input={"x": [1]})
    codec = LocalCodec()
    codec.encode("fluxora.SagaStarted", record)
    read = codec.records[0][1]
    definition = saga_codec.definition_from_record(read)
    definition.check(10)
    assert (definition.version, definition.input) == ("2.1", '{"x":[1]}')
    assert (definition.steps[0].action_endpoint, definition.steps[0].compensation_endpoint) == ("/a", "/b")
    assert definition.steps[1].kind is StepKind.PIVOT
    stored = json.loads(json.dumps(codecs.definition_to_json(read)))
    assert saga_codec.definition_from_record(stored) == definition
    old = {key: value for key, value in stored.items() if key not in ("version", "input")}
    assert saga_codec.definition_from_record(old) == replace(definition, version=None, input=None)
    assert "input" not in codecs.input_to_json(read), "it is in the definition, and once is enough"


@pytest.mark.parametrize("version", ["", "a b", "x" * 101, "é"])
def test_a_version_is_a_short_word(version: str) -> None:
    with pytest.raises(InvalidDefinition, match="version"):
        replace(saga_of(step("a")), version=version).check(10)


def test_an_input_is_json() -> None:
    with pytest.raises(InvalidDefinition, match="input"):
        replace(saga_of(step("a")), input="{").check(10)


def request(**changes: Any) -> dict[str, Any]:
    return {
        "transaction_id": ID,
        "request_id": ID,
        "request": "SKIP",
        "step": "a",
        "participant": None,
        "who": None,
        "why": None,
    } | changes


def test_an_operators_request_is_read_with_its_texts_cut() -> None:
    read = codecs.input_from_record("fluxora.RequestMade", request(who="w" * 300, why="y" * 3_000))
    assert read == OperatorRequest(ID, Request.SKIP, "a", "w" * 200, "y" * REASON_LIMIT)
    with pytest.raises((UndecodableRecord, ValueError)):
        codecs.input_from_record("fluxora.RequestMade", request(request_id="x"))


def answer(**changes: Any) -> dict[str, Any]:
    answered = {"transaction_id": ID, "step": "a", "operation": "ACTION", "attempt": 1, "outcome": "DONE"}
    return answered | {"result": None, "reason": None} | changes


def test_a_result_that_fits_no_record_leaves_the_step_in_doubt() -> None:
    fits = saga_codec.reply_from_record(answer(result="é" * (RESULT_LIMIT // 2)))
    assert fits.outcome is Outcome.DONE
    large = saga_codec.reply_from_record(answer(result="é" * (RESULT_LIMIT // 2 + 1)))
    assert (large.outcome, large.result) == (Outcome.UNKNOWN, None)
    assert "524288 may be" in str(large.reason)


def test_a_reason_is_cut_before_it_goes_into_other_records() -> None:
    assert saga_codec.reply_from_record(answer(outcome="FAILED", reason="x" * 5_000)).reason == "x" * REASON_LIMIT
