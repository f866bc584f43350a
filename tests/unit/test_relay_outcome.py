"""What every answer means, for every kind of operation."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_relay.outcome import REASON_LIMIT, Answer, Called, Lost, NotSent, Operation, Outcome, judge, printable
from participant.command import RESULT_LIMIT

ACTION, COMPENSATION, PREPARE, COMMIT, ABORT = Operation
DONE, REFUSED, FAILED, UNKNOWN, NO_SUCH = Outcome

#: Kind of answer -> the outcome for ACTION, COMPENSATION, PREPARE, COMMIT, ABORT.
TABLE: dict[str, tuple[Outcome, Outcome, Outcome, Outcome, Outcome]] = {
    "200": (DONE, DONE, DONE, DONE, DONE),
    "201": (UNKNOWN, DONE, UNKNOWN, DONE, DONE),
    "204": (UNKNOWN, DONE, UNKNOWN, DONE, DONE),
    "404": (FAILED, FAILED, REFUSED, NO_SUCH, NO_SUCH),
    "408": (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
    "409": (REFUSED, FAILED, REFUSED, FAILED, FAILED),
    "422": (REFUSED, FAILED, REFUSED, FAILED, FAILED),
    "other 4xx": (FAILED, FAILED, REFUSED, FAILED, FAILED),
    "anything else": (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
}


def kind(status: int) -> str:
    if str(status) in TABLE:
        return str(status)
    return "other 4xx" if 400 <= status < 500 else "anything else"


@pytest.mark.parametrize("operation", Operation)
def test_every_status_has_its_outcome(operation: Operation) -> None:
    for status in range(100, 1000):
        verdict = judge(operation, Answer(status, b'{"detail": "so"}'))
        assert verdict.outcome == TABLE[kind(status)][list(Operation).index(operation)], (operation, status)
        if verdict.outcome is DONE:
            assert verdict.reason is None
        else:
            assert verdict.reason == f"HTTP {status}: so"
        assert (verdict.result is not None) == (verdict.outcome is DONE and operation is ACTION)


@pytest.mark.parametrize("operation", Operation)
def test_what_was_not_sent_did_nothing(operation: Operation) -> None:
    verdict = judge(operation, NotSent("no connection: Connection refused"))
    assert verdict.outcome is (REFUSED if operation is PREPARE else FAILED)
    assert verdict.reason == "not called: no connection: Connection refused"


@pytest.mark.parametrize("operation", Operation)
def test_what_got_no_whole_answer_may_have_been_done(operation: Operation) -> None:
    assert judge(operation, Lost("it broke off")).outcome is UNKNOWN
    assert judge(operation, Lost("it broke off")).reason == "it broke off"


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (b"", "null"),
        (b" \r\n", "null"),
        (b"null", "null"),
        (b"7", "7"),
        (b'{"order": 123456789012345678901234567890}', '{"order": 123456789012345678901234567890}'),
        ('{"ü": "\\u0000"}'.encode(), '{"ü": "\\u0000"}'),
        (b"[" * 190 + b"]" * 190, "[" * 190 + "]" * 190),
        (b'"' + b"x" * (RESULT_LIMIT - 2) + b'"', '"' + "x" * (RESULT_LIMIT - 2) + '"'),
    ],
)
def test_an_actions_json_is_its_result_as_it_was_written(body: bytes, result: str) -> None:
    verdict = judge(ACTION, Answer(200, body))
    assert (verdict.outcome, verdict.result, verdict.reason) == (DONE, result, None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(200, b"OK"), "not JSON"),
        (Answer(200, b"<html>"), "not JSON"),
        (Answer(200, b"{'a': 1}"), "not JSON"),
        (Answer(200, b'{"a": NaN}'), "not JSON"),
        (Answer(200, b'{"a": 1} x'), "not JSON"),
        (Answer(200, b'{"a": "\xff"}'), "not JSON"),
        (Answer(200, b'"\\ud800"'), "not JSON"),
        (Answer(200, b"[" * 230 + b"]" * 230), "nested deeper"),
        (Answer(200, b"[" * 5000 + b"]" * 5000), "not JSON"),
        (Answer(200, b'"' + b"x" * RESULT_LIMIT + b'"'), "524290 bytes; 524288 may be"),
        (Answer(200, problem="its body is over 5 bytes"), "HTTP 200, but its body is over 5 bytes"),
    ],
)
def test_an_action_whose_result_cannot_be_kept_has_run_all_the_same(answer: Answer, reason: str) -> None:
    verdict = judge(ACTION, answer)
    assert verdict.outcome is UNKNOWN
    assert verdict.result is None
    assert reason in (verdict.reason or "")


@pytest.mark.parametrize("operation", [COMPENSATION, PREPARE, COMMIT, ABORT])
@pytest.mark.parametrize("answer", [Answer(200, b"OK"), Answer(200, problem="its body is over 5 bytes"), Answer(200)])
def test_only_an_actions_body_matters(operation: Operation, answer: Answer) -> None:
    assert judge(operation, answer).outcome is DONE


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"detail": "sold out", "title": "Conflict"}', "HTTP 409: sold out"),
        (b'{"title": "Conflict"}', "HTTP 409: Conflict"),
        (b'{"detail": ["sold", "out"], "title": 7}', 'HTTP 409: {"detail": ["sold", "out"], "title": 7}'),
        (b'{"detail": ""}', 'HTTP 409: {"detail": ""}'),
        (b"sold\r\nout", "HTTP 409: sold out"),
        (b"\x1b[31mred\x00", "HTTP 409: \N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (b"\xff", "HTTP 409: \N{REPLACEMENT CHARACTER}"),
        (b"", "HTTP 409"),
        (b"  ", "HTTP 409"),
    ],
)
def test_a_refusal_says_what_the_service_said(body: bytes, reason: str) -> None:
    assert judge(ACTION, Answer(409, body)).reason == reason


def test_a_refusal_whose_body_could_not_be_taken_is_one_all_the_same() -> None:
    verdict = judge(ACTION, Answer(409, problem="its body is over 5 bytes"))
    assert (verdict.outcome, verdict.reason) == (REFUSED, "HTTP 409: (its body is over 5 bytes)")


called = st.one_of(
    st.builds(NotSent, st.text()),
    st.builds(Lost, st.text()),
    st.builds(Answer, st.integers(100, 599), st.binary() | st.text().map(str.encode), st.none() | st.text()),
)


@given(st.sampled_from(Operation), called)
def test_whatever_is_said_can_be_stored_and_shown(operation: Operation, called: Called) -> None:
    verdict = judge(operation, called)
    assert (verdict.reason is None) == (verdict.outcome is DONE)
    if verdict.reason is not None:
        assert verdict.reason.isprintable()
        assert len(verdict.reason) <= REASON_LIMIT + 1
        verdict.reason.encode()
    if verdict.result is not None:
        orjson.loads(verdict.result)
        json.loads(verdict.result)


@given(st.sampled_from(Operation), called)
def test_after_a_call_whose_answer_is_lost_nobody_says_that_nothing_was_done(
    operation: Operation, called: Called
) -> None:
    first, again = judge(operation, called), judge(operation, called, again=True)
    if operation in (Operation.ACTION, Operation.PREPARE) and first.outcome in (REFUSED, FAILED):
        assert again.outcome is UNKNOWN
        assert again.reason == f"{first.reason} (a relay before this one may have called)"
    else:
        assert again == first


def test_a_long_reason_is_cut() -> None:
    assert printable("x" * 5000) == "x" * REASON_LIMIT + "…"
