"""What operators may ask a saga for, what comes of it, and when it is refused."""

import pytest

from saga_processors.definition import StepKind
from saga_processors.machine import DeadlinePassed, Request, Verdict
from saga_processors.saga import OperatorRequest, Outcome
from saga_processors.saga_machine import MAX_REQUESTS, advance
from tests.unit.saga_samples import Play, http_step, reply, saga_of, sequence, step

PIVOT, RETRIABLE = StepKind.PIVOT, StepKind.RETRIABLE


def refused(play: Play, request: str, step: str | None = None) -> str:
    """Ask; it must be refused and change nothing but that the request is remembered. Returns the reason."""
    before = play.states
    decision = play.ask(request, step)
    assert decision.verdict is Verdict.REJECTED
    assert decision.effects == ()
    assert play.states == before
    return str(decision.reason)


def test_a_cancelled_saga_is_undone_and_says_by_whom_and_why() -> None:
    play = Play(sequence("a", "b"))
    play.put(reply("a"))
    play.put(reply("b", Outcome.FAILED))
    assert play.ask("CANCEL").verdict is Verdict.APPLIED
    assert play.sent == ["undo a"]
    assert play.states == "COMPENSATING: a=COMPENSATING b=FAILED"
    assert play.saga is not None
    assert play.saga.reason == "cancelled by ann: the service is gone"


def test_a_cancelled_saga_lets_running_steps_report_at_most_until_their_timeouts() -> None:
    play = Play(saga_of(step("a"), step("b"), step("c")))
    play.put(reply("a"))
    play.ask("CANCEL")
    assert play.sent == []
    assert play.states == "COMPENSATING: a=EXECUTED b=EXECUTING c=EXECUTING"
    play.put(reply("b"))
    assert play.sent == []
    play.pass_time()
    assert play.sent == ["undo c", "undo b", "undo a"]


def test_past_the_pivot_or_with_it_under_way_nothing_is_cancelled() -> None:
    play = Play(saga_of(step("a"), step("b", "a", kind=PIVOT), step("c", "b", kind=RETRIABLE)))
    play.put(reply("a"))
    assert "pivot 'b' is under way" in refused(play, "CANCEL")
    play.put(reply("b", Outcome.UNKNOWN))
    assert "pivot 'b' is under way" in refused(play, "CANCEL")
    play.pass_time()
    play.put(reply("b", attempt=2))
    assert "'b' (pivot) is EXECUTED" in refused(play, "CANCEL")


def test_a_pivot_that_failed_for_certain_and_waits_can_be_cancelled() -> None:
    play = Play(saga_of(step("a"), step("b", "a", kind=PIVOT)))
    play.put(reply("a"))
    play.put(reply("b", Outcome.FAILED))
    play.ask("CANCEL")
    assert play.states == "COMPENSATING: a=COMPENSATING b=FAILED"


def test_a_saga_that_is_being_undone_is_not_cancelled_again() -> None:
    play = Play(sequence("a", "b"))
    play.put(reply("a"))
    play.put(reply("b", Outcome.REFUSED))
    assert "the saga is COMPENSATING" in refused(play, "CANCEL")


def test_retry_sends_what_waits_without_its_wait() -> None:
    play = Play(saga_of(step("a"), step("b"), step("c")))
    play.put(reply("a", Outcome.FAILED))
    play.put(reply("b", Outcome.FAILED))
    assert play.ask("RETRY").verdict is Verdict.APPLIED
    assert play.sent == ["do a 2", "do b 2"]
    assert play.put(DeadlinePassed(100)).verdict is Verdict.IGNORED
    assert refused(play, "RETRY") == "no step waits for its next attempt; the saga is EXECUTING"


def test_retry_of_one_step_leaves_the_others_waiting() -> None:
    play = Play(saga_of(step("a"), step("b"), step("c")))
    play.put(reply("a", Outcome.FAILED))
    play.put(reply("b", Outcome.FAILED))
    play.ask("RETRY", "b")
    assert play.sent == ["do b 2"]
    assert "'b' is EXECUTING and does not wait for its next attempt: one is under way" in refused(play, "RETRY", "b")
    assert "no step 'z'" in refused(play, "RETRY", "z")
    play.put(reply("b", attempt=2))
    assert refused(play, "RETRY", "b") == "'b' is EXECUTED and does not wait for its next attempt"


def test_retry_sends_compensations_too() -> None:
    play = Play(sequence("a", "b"))
    play.put(reply("a"))
    play.put(reply("b", Outcome.REFUSED))
    play.put(reply("a", Outcome.FAILED, undo=True))
    play.ask("RETRY")
    assert play.sent == ["undo a 2"]


def test_a_skipped_step_counts_as_executed_without_a_result() -> None:
    play = Play(sequence("a", "b"))
    play.ask("SKIP", "a")
    assert play.sent == ["do b"]
    assert play.events == ["StepExecuted"]
    assert play.saga is not None
    skipped = play.saga.steps[0]
    assert (skipped.skipped, skipped.in_doubt, skipped.result) == (True, True, None)
    assert skipped.reason == "skipped by ann: the service is gone"
    assert play.put(reply("a", result="1")).verdict is Verdict.IGNORED
    play.put(reply("b"))
    assert play.states == "COMPLETED: a=EXECUTED b=EXECUTED"


def test_a_skipped_step_may_have_run_so_it_is_undone_with_the_rest() -> None:
    play = Play(sequence("a", "b"))
    play.ask("SKIP", "a")
    play.put(reply("b", Outcome.REFUSED))
    assert play.sent == ["undo a"]
    assert play.saga is not None
    assert not play.saga.steps[0].skipped, "its compensation was not"


def test_a_skipped_compensation_counts_as_done() -> None:
    play = Play(sequence("a", "b", "c"))
    play.put(reply("a"))
    play.put(reply("b"))
    play.put(reply("c", Outcome.REFUSED))
    play.ask("SKIP", "b")
    assert play.sent == ["undo a"]
    assert play.events == ["StepCompensated", "StepCompensating"]
    assert play.saga is not None
    assert play.saga.steps[1].skipped
    assert "'b' is COMPENSATED" in refused(play, "SKIP", "b")
    assert "'c' is FAILED" in refused(play, "SKIP", "c")


def test_a_skipped_pivot_is_past_the_point_of_no_return() -> None:
    play = Play(saga_of(step("a", kind=PIVOT), step("b", "a", kind=RETRIABLE)))
    play.ask("SKIP", "a")
    assert play.sent == ["do b"]
    assert "'a' (pivot) is EXECUTED" in refused(play, "CANCEL")


def test_skip_needs_a_step_that_is_at_work() -> None:
    play = Play(sequence("a", "b"))
    assert refused(play, "SKIP") == "name the step to skip"
    assert "no step 'z'" in refused(play, "SKIP", "z")
    assert "'b' is PENDING" in refused(play, "SKIP", "b")
    play.put(reply("a"))
    assert "'a' is EXECUTED" in refused(play, "SKIP", "a")


def test_a_running_step_skipped_while_the_saga_turns_round_is_undone() -> None:
    play = Play(saga_of(step("a"), step("b")))
    play.put(reply("a", Outcome.REFUSED))
    play.ask("SKIP", "b")
    assert play.sent == ["undo b"]


def test_a_skipped_http_step_is_not_undone_while_its_call_may_be_made() -> None:
    play = Play(saga_of(http_step("a"), step("b", "a")))
    play.ask("SKIP", "a")
    play.put(reply("b", Outcome.REFUSED))
    assert play.sent == []
    assert play.states == "COMPENSATING: a=EXECUTED b=FAILED"
    play.pass_time()
    assert play.at == 1_000
    assert play.sent == ["undo a"]


def test_the_answer_to_a_skipped_http_step_ends_the_wait_for_it() -> None:
    play = Play(saga_of(http_step("a"), step("b", "a")))
    play.ask("SKIP", "a")
    play.put(reply("b", Outcome.REFUSED))
    assert play.put(reply("a", Outcome.UNKNOWN)).verdict is Verdict.APPLIED
    assert play.sent == ["undo a"]


def test_a_completed_saga_has_no_timer_of_a_skipped_http_step() -> None:
    play = Play(saga_of(http_step("a"), step("b", "a")))
    play.ask("SKIP", "a")
    play.put(reply("b"))
    assert play.states == "COMPLETED: a=EXECUTED b=EXECUTED"
    assert play.saga is not None
    assert play.saga.next_deadline is None


@pytest.mark.parametrize("request_", ["CANCEL", "RETRY", "SKIP", "COMMIT"])
@pytest.mark.parametrize("end", ["COMPLETED", "FAILED"])
def test_an_ended_saga_refuses_and_names_its_state(end: str, request_: str) -> None:
    play = Play(sequence("a"))
    play.put(reply("a", Outcome.DONE if end == "COMPLETED" else Outcome.REFUSED))
    assert refused(play, request_, "a") == f"the saga has ended: {end}"


def test_a_request_of_another_kind_of_transaction_is_refused() -> None:
    assert "cannot do PREPARE" in refused(Play(sequence("a")), "PREPARE")


def test_a_request_to_a_transaction_that_never_began_is_refused() -> None:
    assert advance(None, OperatorRequest("1", Request.CANCEL), 0).verdict is Verdict.REJECTED


def test_a_second_copy_of_a_request_has_no_second_effect() -> None:
    play = Play(sequence("a", "b"))
    play.ask("SKIP", "a", id="same")
    play.put(reply("b", Outcome.REFUSED))
    assert play.states == "COMPENSATING: a=COMPENSATING b=FAILED"
    assert play.ask("SKIP", "a", id="same").verdict is Verdict.IGNORED
    assert play.states == "COMPENSATING: a=COMPENSATING b=FAILED", "the compensation is not skipped"


def test_a_request_that_was_refused_is_not_granted_to_a_second_copy_of_it() -> None:
    play = Play(sequence("a", "b"))
    assert play.ask("SKIP", "b", id="same").verdict is Verdict.REJECTED
    play.put(reply("a"))
    assert play.ask("SKIP", "b", id="same").verdict is Verdict.IGNORED
    assert play.ask("SKIP", "b", id="another").verdict is Verdict.APPLIED


def test_no_more_requests_are_remembered_than_the_limit() -> None:
    play = Play(sequence("a"))
    for _ in range(MAX_REQUESTS + 5):
        play.ask("RETRY")
    assert play.saga is not None
    assert len(play.saga.requests) == MAX_REQUESTS


def tried(play: Play, name: str, times: int) -> None:
    for attempt in range(1, times + 1):
        play.put(reply(name, Outcome.FAILED, undo=True, attempt=attempt))
        assert play.saga is not None
        retry_at = play.saga.steps[play.saga.definition.index[name]].retry_at
        assert retry_at is not None
        play.at = max(play.at, retry_at)
        play.put(DeadlinePassed(retry_at))


def test_attention_is_no_longer_needed_once_what_called_for_it_has_moved_on() -> None:
    play = Play(saga_of(step("a"), step("b"), step("c", "a", "b"), step("d", "c")))
    for name in "abc":
        play.put(reply(name))
    play.put(reply("d", Outcome.REFUSED))
    tried(play, "c", 3)
    assert play.saga is not None
    assert play.saga.needs_attention
    play.ask("SKIP", "c")
    assert play.sent == ["undo b", "undo a"]
    assert not play.saga.needs_attention
    play.put(reply("a", Outcome.FAILED, undo=True))
    for name in "ab":
        step_now = play.saga.steps[play.saga.definition.index[name]]
        for attempt in range(step_now.attempt + (step_now.retry_at is not None), 5):
            if (waiting := play.saga.steps[play.saga.definition.index[name]]).retry_at is not None:
                play.put(DeadlinePassed(waiting.retry_at))
            play.put(reply(name, Outcome.FAILED, undo=True, attempt=attempt))
    assert play.saga.needs_attention
    play.put(reply("a", undo=True, attempt=4))
    assert play.saga.needs_attention, "the other one still waits"
    play.put(reply("b", undo=True, attempt=4))
    assert play.states == "FAILED: a=COMPENSATED b=COMPENSATED c=COMPENSATED d=FAILED"
    assert not play.saga.needs_attention
