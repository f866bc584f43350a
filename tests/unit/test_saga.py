"""The saga machine, told as given / when / then. Names: what happens, then what follows."""

import pytest

from saga_processors.definition import StepKind
from saga_processors.machine import DeadlinePassed, Verdict
from saga_processors.saga import Outcome, SagaStarted
from saga_processors.saga_machine import advance
from tests.unit.saga_samples import Play, reply, saga_of, sequence, step


def test_steps_run_one_after_the_other_until_the_saga_completes() -> None:
    play = Play(sequence("a", "b"))
    assert play.sent == ["do a"]
    assert play.events == ["SagaStarted"]
    play.put(reply("a", result='{"n": 1}'))
    assert play.sent == ["do b"]
    play.put(reply("b"))
    assert play.sent == []
    assert play.events == ["StepExecuted", "SagaCompleted"]
    assert play.states == "COMPLETED: a=EXECUTED b=EXECUTED"
    assert play.saga is not None
    assert play.saga.steps[0].result == '{"n": 1}'
    assert play.saga.next_deadline is None


def test_a_refusal_undoes_what_ran_in_reverse_and_not_the_refused_step() -> None:
    play = Play(sequence("a", "b", "c"))
    play.put(reply("a"))
    play.put(reply("b"))
    play.put(reply("c", Outcome.REFUSED))
    assert play.sent == ["undo b"]
    assert play.events == ["StepFailed", "SagaCompensating", "StepCompensating"]
    play.put(reply("b", undo=True))
    assert play.sent == ["undo a"]
    play.put(reply("a", undo=True))
    assert play.states == "FAILED: a=COMPENSATED b=COMPENSATED c=FAILED"
    assert play.events == ["StepCompensated", "SagaFailed"]


def test_a_refusal_of_the_first_step_fails_the_saga_at_once() -> None:
    play = Play(sequence("a", "b"))
    play.put(reply("a", Outcome.REFUSED))
    assert play.sent == []
    assert play.states == "FAILED: a=FAILED b=PENDING"


def test_independent_steps_run_at_once_and_a_join_waits_for_all() -> None:
    play = Play(saga_of(step("a"), step("b"), step("c", "a", "b")))
    assert play.sent == ["do a", "do b"]
    play.put(reply("b"))
    assert play.sent == []
    play.put(reply("a"))
    assert play.sent == ["do c"]


def test_a_refusal_waits_for_running_steps_before_undoing() -> None:
    play = Play(saga_of(step("a"), step("b"), step("c")))
    play.put(reply("a"))
    play.put(reply("b", Outcome.REFUSED))
    assert play.sent == []
    assert play.states == "COMPENSATING: a=EXECUTED b=FAILED c=EXECUTING"
    play.put(reply("c"))
    assert play.sent == ["undo c", "undo a"]


def test_undoing_goes_in_reverse_order_of_dependency() -> None:
    play = Play(saga_of(step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")))
    for name in "abc":
        play.put(reply(name))
    play.put(reply("d", Outcome.REFUSED))
    assert play.sent == ["undo c", "undo b"]
    play.put(reply("c", undo=True))
    assert play.sent == []
    play.put(reply("b", undo=True))
    assert play.sent == ["undo a"]


def test_a_failed_attempt_is_made_again_after_its_delay() -> None:
    play = Play(sequence("a"))
    play.put(reply("a", Outcome.FAILED))
    assert play.sent == []
    assert play.saga is not None
    assert play.saga.next_deadline == 100
    play.put(DeadlinePassed(100))
    assert play.sent == ["do a 2"]
    play.put(reply("a", attempt=2))
    assert play.states == "COMPLETED: a=EXECUTED"


def test_the_last_attempt_is_marked_final() -> None:
    play = Play(sequence("a"))
    assert [e.final for e in play.decision.effects if hasattr(e, "final")] == [False]
    play.put(reply("a", Outcome.FAILED))
    play.put(DeadlinePassed(100))
    assert [e.final for e in play.decision.effects if hasattr(e, "final")] == [True]


def test_attempts_that_all_failed_without_doing_anything_need_no_undoing() -> None:
    play = Play(sequence("a", "b"))
    play.put(reply("a"))
    play.put(reply("b", Outcome.FAILED))
    play.put(DeadlinePassed(100))
    play.put(reply("b", Outcome.FAILED, attempt=2))
    assert play.sent == ["undo a"]
    assert play.states == "COMPENSATING: a=COMPENSATING b=FAILED"


def test_attempts_that_were_never_answered_may_have_run_and_are_undone() -> None:
    play = Play(sequence("a"))
    play.put(DeadlinePassed(1_000))
    play.put(DeadlinePassed(1_100))
    assert play.sent == ["do a 2"]
    play.put(DeadlinePassed(2_100))
    assert play.sent == ["undo a"]
    assert play.states == "COMPENSATING: a=COMPENSATING"


def test_a_refusal_after_an_unanswered_attempt_is_undone_too() -> None:
    play = Play(sequence("a"))
    play.put(reply("a", Outcome.UNKNOWN))
    play.put(DeadlinePassed(100))
    play.put(reply("a", Outcome.REFUSED, attempt=2))
    assert play.sent == ["undo a"]


def test_the_answer_to_an_earlier_attempt_settles_the_step() -> None:
    play = Play(sequence("a", "b"))
    play.put(DeadlinePassed(1_000))
    play.put(DeadlinePassed(1_100))
    assert play.sent == ["do a 2"]
    play.put(reply("a", attempt=1))
    assert play.sent == ["do b"]
    play.put(reply("a", attempt=2))
    assert play.decision.verdict is Verdict.IGNORED


def test_a_compensation_is_tried_until_it_succeeds_and_calls_for_attention() -> None:
    play = Play(sequence("a", "b"))
    play.put(reply("a"))
    play.put(reply("b", Outcome.REFUSED))
    for attempt in range(1, 30):
        play.put(reply("a", Outcome.FAILED, undo=True, attempt=attempt))
        assert play.saga is not None
        assert play.saga.needs_attention == (attempt >= 3)
        assert play.events == (["SagaNeedsAttention"] if attempt == 3 else [])
        due = play.saga.next_deadline
        assert due is not None
        # The policy's longest wait is a second; once it has called for attention it grows to five minutes.
        assert due - play.at == min([100, 200, 400][min(attempt, 3) - 1] * 2 ** max(0, attempt - 3), 300_000)
        play.at = due
        play.put(DeadlinePassed(due))
        assert play.sent == [f"undo a {attempt + 1}"]
    play.put(reply("a", undo=True, attempt=30))
    assert play.states == "FAILED: a=COMPENSATED b=FAILED"
    assert play.saga is not None
    assert not play.saga.needs_attention


def test_the_sagas_timeout_undoes_running_steps_in_doubt() -> None:
    play = Play(sequence("a", "b", timeout_ms=500))
    play.put(reply("a"))
    play.put(DeadlinePassed(500))
    assert play.sent == ["undo b"]
    play.put(reply("b"))
    assert play.decision.verdict is Verdict.IGNORED
    play.put(reply("b", undo=True))
    assert play.sent == ["undo a"]
    play.put(reply("a", undo=True))
    assert play.states == "FAILED: a=COMPENSATED b=COMPENSATED"


def test_past_the_pivot_no_timeout_turns_the_saga_round() -> None:
    pivot = step("b", "a", kind=StepKind.PIVOT)
    play = Play(saga_of(step("a"), pivot, step("c", "b", kind=StepKind.RETRIABLE), timeout_ms=500))
    play.put(reply("a"))
    play.put(reply("b"))
    play.put(DeadlinePassed(500))
    assert play.states == "EXECUTING: a=EXECUTED b=EXECUTED c=EXECUTING"
    for attempt in range(1, 6):
        play.put(reply("c", Outcome.REFUSED, attempt=attempt))
        assert play.saga is not None
        due = play.saga.next_deadline
        assert due is not None
        play.put(DeadlinePassed(due))
        assert play.sent == [f"do c {attempt + 1}"]
    assert play.saga is not None
    assert play.saga.needs_attention
    play.put(reply("c", attempt=6))
    assert play.states == "COMPLETED: a=EXECUTED b=EXECUTED c=EXECUTED"


def test_a_pivot_in_doubt_is_asked_until_it_answers() -> None:
    play = Play(saga_of(step("a", kind=StepKind.PIVOT)))
    for attempt in range(1, 6):
        play.put(reply("a", Outcome.UNKNOWN, attempt=attempt))
        assert play.saga is not None
        due = play.saga.next_deadline
        assert due is not None
        play.put(DeadlinePassed(due))
        assert play.sent == [f"do a {attempt + 1}"]
    play.put(reply("a", Outcome.REFUSED, attempt=6))
    assert play.states == "FAILED: a=FAILED"


@pytest.mark.parametrize(
    ("event", "verdict", "words"),
    [
        (reply("a"), Verdict.IGNORED, "settled"),
        (reply("nobody"), Verdict.REJECTED, "no step"),
        (reply("b", attempt=7), Verdict.REJECTED, "never asked for"),
        (reply("c"), Verdict.REJECTED, "never asked for"),
        (reply("a", undo=True), Verdict.IGNORED, "settled"),
        (DeadlinePassed(1), Verdict.IGNORED, "nothing is due"),
        (SagaStarted(sequence("x")), Verdict.IGNORED, "begun already"),
    ],
)
def test_what_does_not_fit_changes_nothing_and_says_why(event: object, verdict: Verdict, words: str) -> None:
    play = Play(sequence("a", "b", "c"))
    play.put(reply("a"))
    before = play.saga
    decision = play.put(event)  # type: ignore[arg-type]
    assert decision.verdict is verdict
    assert words in str(decision.reason)
    assert decision.effects == ()
    assert play.saga is before


def test_an_input_for_a_transaction_that_never_began_is_rejected() -> None:
    decision = advance(None, reply("a"), 0)
    assert decision.verdict is Verdict.REJECTED
    assert decision.machine is None
