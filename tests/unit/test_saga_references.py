"""References in payloads: what is found on arrival, and what goes into the commands."""

import json
from dataclasses import replace

import pytest

from saga_processors import reference
from saga_processors.definition import InvalidDefinition, SagaDefinition, StepKind
from saga_processors.saga import Outcome, StepState
from saga_processors.saga_machine import DISPATCH_BYTES, payload_of
from tests.unit.saga_samples import Play, reply, saga_of, step


def given(*payloads: object, input: object = None, kinds: dict[int, StepKind] | None = None) -> SagaDefinition:
    """A saga of steps a, b, c … one after the other with these payloads."""
    names = "abcdefgh"[: len(payloads)]
    steps = tuple(
        replace(
            step(name, *names[max(0, i - 1) : i], kind=(kinds or {}).get(i, StepKind.COMPENSATABLE)),
            payload=payloads[i] if isinstance(payloads[i], str) else json.dumps(payloads[i]),
        )
        for i, name in enumerate(names)
    )
    return SagaDefinition("sample", steps, input=None if input is None else json.dumps(input))


def payload(play: Play, name: str) -> object:
    assert play.saga is not None
    definition = play.saga.definition
    return json.loads(payload_of(definition, play.saga.steps, definition.index[name]))


def test_values_come_from_the_input_and_from_results() -> None:
    play = Play(
        given(
            {"customer": {"$from": "input.customer.id"}, "first": {"$from": "input.items.0"}},
            {
                "order": {"$from": "steps.a.result.order_id"},
                "all": [{"$from": "steps.a.result"}, 1.50, "text", None, {}, []],
                "note": {"$from": "input.note", "default": {"$from": "is taken literally"}},
            },
            input={"customer": {"id": 7}, "items": ["x", "y"]},
        )
    )
    assert payload(play, "a") == {"customer": 7, "first": "x"}
    play.put(reply("a", result='{"order_id": "o-1", "total": 12.5}'))
    assert play.sent == ["do b"]
    assert payload(play, "b") == {
        "order": "o-1",
        "all": [{"order_id": "o-1", "total": 12.5}, 1.50, "text", None, {}, []],
        "note": {"$from": "is taken literally"},
    }


def test_a_payload_may_be_one_reference_and_the_key_may_be_written_with_escapes() -> None:
    play = Play(given({}, '{"\\u0024from": "steps.a.result"}'))
    play.put(reply("a", result='[1, "\\ud800", 123456789012345678901234567890]'))
    assert payload(play, "b") == [1, "\ud800", 123456789012345678901234567890]
    assert play.saga is not None
    assert payload_of(play.saga.definition, play.saga.steps, 1).encode(), "can be written to a record"


def test_values_that_are_put_in_are_not_looked_through_for_references() -> None:
    play = Play(given({}, {"x": {"$from": "steps.a.result"}}, input={"secret": 1}))
    play.put(reply("a", result='{"$from": "input.secret"}'))
    assert payload(play, "b") == {"x": {"$from": "input.secret"}}


def test_a_payload_without_references_is_sent_as_it_was_written() -> None:
    text = '{ "amount": 1.10, "of": "\\u00e9", "$fromage": 1 }'
    play = Play(given(text))
    assert play.saga is not None
    assert payload_of(play.saga.definition, play.saga.steps, 0) == text


@pytest.mark.parametrize("result", ['{"other": 1}', "[1]", "null", '"text"', None, "not JSON", "[" * 10_000])
def test_a_missing_value_without_default_fails_its_step_before_it_is_sent(result: str | None) -> None:
    play = Play(given({}, {"order": {"$from": "steps.a.result.order_id"}}))
    play.put(reply("a", result=result))
    assert play.sent == ["undo a"]
    assert play.events == ["StepExecuted", "StepFailed", "SagaCompensating", "StepCompensating"]
    assert play.states == "COMPENSATING: a=COMPENSATING b=FAILED"
    assert play.saga is not None
    assert play.saga.reason == "b: payload.order: there is no steps.a.result.order_id, and no default"


def test_a_step_that_answered_nothing_has_the_result_null() -> None:
    play = Play(given({}, {"x": {"$from": "steps.a.result", "default": 1}}))
    play.put(reply("a"))
    assert payload(play, "b") == {"x": None}


def test_steps_sent_beside_one_whose_payload_cannot_be_made_report_before_anything_is_undone() -> None:
    b = replace(step("b", "a"), payload="{}")
    c = replace(step("c", "a"), payload='{"$from": "steps.a.result.x"}')
    play = Play(saga_of(step("a"), b, c))
    play.put(reply("a"))
    assert play.sent == ["do b"]
    assert play.states == "COMPENSATING: a=EXECUTED b=EXECUTING c=FAILED"
    play.put(reply("b"))
    assert play.sent == ["undo b"]


def test_a_payload_that_grows_too_large_fails_its_step_and_names_the_reference() -> None:
    play = Play(given({}, [{"$from": "steps.a.result"}, {"$from": "steps.a.result"}, {"$from": "steps.a.result"}]))
    play.put(reply("a", result=json.dumps("x" * 500_000)))
    assert play.saga is not None
    assert play.saga.steps[1].state is StepState.FAILED
    assert "1048576 bytes at steps.a.result" in str(play.saga.steps[1].reason)


def test_a_retriable_step_whose_payload_grows_too_large_waits_for_an_operator() -> None:
    large = {"$from": "steps.a.result", "default": None}
    play = Play(given({}, {}, [large, large, large], kinds={1: StepKind.PIVOT, 2: StepKind.RETRIABLE}))
    play.put(reply("a", result=json.dumps("x" * 500_000)))
    play.put(reply("b"))
    assert play.saga is not None
    for _ in range(5):
        assert play.sent == []
        assert play.states == "EXECUTING: a=EXECUTED b=EXECUTED c=EXECUTING"
        play.pass_time()
    assert play.saga.needs_attention
    play.ask("SKIP", "c")
    assert play.states == "COMPLETED: a=EXECUTED b=EXECUTED c=EXECUTED"


def test_many_large_payloads_leave_over_several_inputs() -> None:
    names = [f"s{i}" for i in range(30)]
    wide = [replace(step(name, "a"), payload='{"$from": "steps.a.result"}') for name in names]
    play = Play(saga_of(step("a"), *wide))
    play.put(reply("a", result=json.dumps("x" * 500_000)))
    waiting = list(play.sent)
    most = DISPATCH_BYTES // 500_000 + 1
    assert len(waiting) == most
    done = 0
    while waiting:
        play.put(reply(waiting.pop(0).removeprefix("do ")))
        assert len(play.sent) <= most
        waiting += play.sent
        done += 1
    assert done == 30
    assert play.saga is not None
    assert play.saga.ended


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ({"c": {"$from": "input.nobody"}}, "steps[1].payload.c", "this saga's input has no such value"),
        ([{"x": {"$from": "input.list.2"}}], "steps[1].payload[0].x", "this saga's input has no such value"),
        ([{"x": {"$from": "input.list.-1"}}], "steps[1].payload[0].x", "this saga's input has no such value"),
        ({"$from": "steps.z.result"}, "steps[1].payload", "name of a step of this saga"),
        ({"$from": "steps.a"}, "steps[1].payload", "name of a step of this saga"),
        ({"$from": "steps.a.payload"}, "steps[1].payload", "name of a step of this saga"),
        ({"$from": "env.HOME"}, "steps[1].payload", "begins with"),
        ({"$from": "steps.b.result"}, "steps[1].payload", "'b' does not: add it to depends_on"),
        ({"$from": "steps.c.result"}, "steps[1].payload", "'c' does not: add it to depends_on"),
        ({"$from": "input..x"}, "steps[1].payload", "keys with dots"),
        ({"$from": ""}, "steps[1].payload", "keys with dots"),
        ({"$from": 7}, "steps[1].payload", "keys with dots"),
        ({"$from": "input." + "x" * 500}, "steps[1].payload", "up to 500 characters"),
        ({"x": {"$from": "input.list", "defualt": 1}}, "steps[1].payload.x", "nothing else; got 'defualt'"),
        ('{"$from": "input.none", "default": 1e999}', "steps[1].payload", "'default' that JSON can carry"),
        ('{"x": 1e999, "y": {"$from": "input"}}', "steps[1].payload.x", "number that JSON can carry"),
        ('{"x": NaN}', "steps[1].payload", "NaN is not JSON"),
        ("[" * 129 + "]" * 129, "steps[1].payload", "more than 128 deep"),
        ("[" * 100_000, "steps[1].payload", "more than 128 deep"),
        ("1" * 5_000, "steps[1].payload", "is JSON text"),
    ],
)
def test_a_bad_reference_is_refused_when_the_saga_arrives(wrong: object, field: str, words: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        given({}, wrong, {}, input={"list": [1, 2]}).check(10)
    assert caught.value.field == field
    assert words in caught.value.rule


def test_without_an_input_a_reference_to_it_needs_a_default() -> None:
    given({"$from": "input.x", "default": 1}).check(10)
    with pytest.raises(InvalidDefinition, match="the saga has no input"):
        given({"$from": "input"}).check(10)


def test_a_retriable_step_refers_to_results_with_a_default_only() -> None:
    kinds = {0: StepKind.PIVOT, 1: StepKind.RETRIABLE}
    given({}, {"$from": "input.x"}, input={"x": 1}, kinds=kinds).check(10)
    given({}, {"$from": "steps.a.result", "default": 1}, kinds=kinds).check(10)
    with pytest.raises(InvalidDefinition, match="has a default, because 'b' is retriable"):
        given({}, {"$from": "steps.a.result"}, kinds=kinds).check(10)


def test_an_ancestor_need_not_be_a_direct_one() -> None:
    given({}, {}, {"$from": "steps.a.result.x"}).check(10)


def test_names_of_steps_may_have_dots_unless_it_is_not_clear_which_is_meant() -> None:
    dotted, later = step("a.result"), replace(step("b", "a.result"), payload='{"$from": "steps.a.result.result.x"}')
    saga_of(dotted, later).check(10)
    play = Play(saga_of(dotted, later))
    play.put(reply("a.result", result='{"x": 1}'))
    assert payload(play, "b") == 1
    with pytest.raises(InvalidDefinition, match="can be read in 2 ways"):
        saga_of(dotted, step("a"), replace(later, depends_on=("a", "a.result"))).check(10)


def test_brackets_within_strings_do_not_count_as_depth() -> None:
    text = json.dumps({"[" * 500 + '\\"{': ["{" * 500]})
    assert reference.read(text) == json.loads(text)


def test_a_command_is_the_same_again_however_far_the_saga_has_come() -> None:
    play = Play(given({}, {"x": {"$from": "steps.a.result.x"}}, {}))
    play.put(reply("a", result='{"x": [1, {"y": "\\u00e9"}]}'))
    first = payload(play, "b")
    play.put(reply("b", result="2"))
    play.put(reply("c", Outcome.REFUSED))
    assert payload(play, "b") == first
    play.put(reply("b", undo=True))
    play.put(reply("a", undo=True))
    assert play.states == "FAILED: a=COMPENSATED b=COMPENSATED c=FAILED"
    assert payload(play, "b") == first == {"x": [1, {"y": "é"}]}
    assert play.saga is not None
    assert '[1,{"y":"é"}]' in payload_of(play.saga.definition, play.saga.steps, 1)
