"""The explorer finds nothing in the real machine, and finds what is planted in a broken one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from participant import barrier
from saga_processors import saga_machine
from saga_processors.definition import SagaDefinition, StepKind
from saga_processors.explorer import Advance, Report, Rule, explore
from saga_processors.findings import findings
from saga_processors.machine import DeadlinePassed, Decision, Verdict
from saga_processors.saga import (
    Effect,
    Input,
    Operation,
    Outcome,
    Saga,
    SagaStarted,
    SagaState,
    SendCommand,
    StepReplied,
    StepState,
)
from tests.unit.saga_samples import saga_of, sequence, step

PIVOT, RETRIABLE = StepKind.PIVOT, StepKind.RETRIABLE


def over_http(definition: SagaDefinition) -> SagaDefinition:
    return replace(
        definition,
        steps=tuple(
            replace(
                s,
                action_endpoint="/do",
                compensation_endpoint="/undo" if s.kind is StepKind.COMPENSATABLE else None,
            )
            for s in definition.steps
        ),
    )


def diamond_with_pivot() -> SagaDefinition:
    return saga_of(
        step("a"),
        step("b", "a"),
        step("c", "a"),
        step("pay", "b", "c", kind=PIVOT),
        step("ship", "pay", kind=RETRIABLE),
    )


def rules(report: Report) -> set[Rule]:
    return {found.rule for found in report.violations}


def breaking(change: Callable[[Decision[Saga, Effect]], Decision[Saga, Effect]]) -> Advance:
    """The real machine, with what it decides changed."""
    return lambda saga, event, at: change(saga_machine.advance(saga, event, at))


# The real machine


@pytest.mark.parametrize(
    ("definition", "attempts"),
    [
        (sequence("a", "b", "c", timeout_ms=5_000), 2),
        (saga_of(step("a"), step("pay", "a", kind=PIVOT), step("ship", "pay", kind=RETRIABLE), timeout_ms=9_000), 2),
        (diamond_with_pivot(), 1),
        (over_http(sequence("a", "b", timeout_ms=5_000)), 2),
        (over_http(saga_of(step("a"), step("pay", "a", kind=PIVOT), step("ship", "pay", kind=RETRIABLE))), 2),
    ],
    ids=["sequence", "pivot", "diamond", "http", "http with pivot"],
)
def test_every_way_through_the_real_machine_ends_whole_or_undone(definition: SagaDefinition, attempts: int) -> None:
    definition.check(10)
    report = explore(definition, attempts=attempts)
    assert report.violations == ()
    assert report.complete
    assert "COMPLETED" in report.ends
    assert report.states > 50


def test_the_ends_of_a_sequence_are_every_prefix_undone() -> None:
    assert set(explore(sequence("a", "b")).ends) == {
        "COMPLETED",
        "FAILED, nothing had run",
        "FAILED, undone: a",
        "FAILED, undone: a, b",
    }


def test_after_the_pivot_no_end_is_undone() -> None:
    ends = explore(saga_of(step("pay", kind=PIVOT), step("ship", "pay", kind=RETRIABLE))).ends
    assert set(ends) == {"COMPLETED", "FAILED, nothing had run"}


def test_what_is_left_out_of_the_walk_changes_no_end() -> None:
    for definition, attempts in ((sequence("a", "b"), 1), (over_http(sequence("a")), 1), (over_http(sequence("a")), 2)):
        short = explore(definition, attempts=attempts)
        long = explore(definition, attempts=attempts, reduce=False)
        assert short.complete and long.complete
        assert set(short.ends) == set(long.ends)
        assert short.violations == long.violations == ()
        assert short.states < long.states / 2


def test_a_bound_that_is_hit_is_reported_not_hidden() -> None:
    report = explore(sequence("a", "b", "c"), max_states=40)
    assert report.ok
    assert not report.complete
    assert report.unexplored > 0
    assert 0 < report.complete_to < report.depth + 1


def test_a_result_that_lacks_what_a_later_payload_needs_is_one_of_the_ways() -> None:
    second = replace(step("b", "a"), payload='{"id": {"$from": "steps.a.result.order.id"}}')
    definition = saga_of(step("a"), second)
    definition.check(10)
    report = explore(definition)
    assert report.ok
    assert "FAILED, undone: a" in report.ends


def test_progress_is_told_while_it_walks() -> None:
    told: list[int] = []
    explore(diamond_with_pivot(), max_states=2_050, progress=lambda states, *_: told.append(states))
    assert told == [1_000, 2_000]


def test_a_second_copy_of_a_call_that_was_not_reached_is_undone_with_the_rest() -> None:
    definition = over_http(sequence("a", "b"))
    report = explore(definition, copies=True)
    assert report.violations == ()
    assert report.complete
    assert report.states > explore(definition).states, "the copies are walked"


# Broken machines


def test_a_machine_that_leaves_what_ran_late_is_found() -> None:
    def deaf(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        if saga is not None and isinstance(event, StepReplied):
            step = saga.steps[saga.definition.index[event.step]]
            if event.operation is Operation.ACTION and step.state is StepState.FAILED:
                return Decision(saga, (), Verdict.IGNORED, "it is settled")
        return saga_machine.advance(saga, event, at)

    report = explore(over_http(sequence("a", "b")), copies=True, advance=deaf)
    assert Rule.HALF_DONE in rules(report)


def test_a_machine_that_forgets_doubt_leaves_half_of_it_done() -> None:
    def forgetful(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        decision = saga_machine.advance(saga, event, at)
        if decision.machine is None or decision.verdict is not Verdict.APPLIED:
            return decision
        steps = tuple(s._replace(in_doubt=False) for s in decision.machine.steps)
        return replace(decision, machine=replace(decision.machine, steps=steps))

    report = explore(sequence("a"), advance=forgetful)
    found = next(v for v in report.violations if v.rule is Rule.HALF_DONE)
    assert "this stands: a" in found.message
    assert found.trace[0] == "the saga begins"
    assert any("no answer from a in time" in line for line in found.trace)
    assert any("action" in line and "runs" in line for line in found.trace)


def test_a_machine_that_waits_without_a_timer_is_a_deadlock() -> None:
    def silent(decision: Decision[Saga, Effect]) -> Decision[Saga, Effect]:
        if decision.machine is None:
            return decision
        steps = tuple(
            s._replace(timeout_at=None) if s.state is StepState.COMPENSATING else s for s in decision.machine.steps
        )
        return replace(decision, machine=replace(decision.machine, steps=steps))

    report = explore(sequence("a", "b"), attempts=1, advance=breaking(silent))
    found = next(v for v in report.violations if v.rule is Rule.DEADLOCK)
    assert "COMPENSATING" in found.message
    assert len(found.trace) > 1


def test_a_machine_that_does_not_know_the_pivot_compensates_past_it() -> None:
    def ignorant(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        if isinstance(event, SagaStarted):
            steps = tuple(replace(s, kind=StepKind.COMPENSATABLE) for s in event.definition.steps)
            event = SagaStarted(replace(event.definition, steps=steps))
        return saga_machine.advance(saga, event, at)

    definition = saga_of(step("a"), step("pay", "a", kind=PIVOT), step("ship", "pay", kind=RETRIABLE))
    assert Rule.PAST_PIVOT in rules(explore(definition, attempts=1, advance=ignorant))


def test_an_end_that_turns_into_another_one_is_two_outcomes() -> None:
    def fickle(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        late = isinstance(event, StepReplied) and event.outcome is Outcome.DONE
        if saga is not None and saga.state is SagaState.FAILED and late:
            return Decision(replace(saga, state=SagaState.COMPLETED), (), Verdict.APPLIED)
        return saga_machine.advance(saga, event, at)

    report = explore(sequence("a"), attempts=1, advance=fickle)
    found = next(v for v in report.violations if v.rule is Rule.TWO_OUTCOMES)
    assert "had ended as FAILED" in found.message and "COMPLETED" in found.message


def test_a_machine_that_begins_every_step_at_once_breaks_the_order() -> None:
    def hasty(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        if isinstance(event, SagaStarted):
            steps = tuple(replace(s, depends_on=()) for s in event.definition.steps)
            event = SagaStarted(replace(event.definition, steps=steps))
        return saga_machine.advance(saga, event, at)

    report = explore(sequence("a", "b"), attempts=1, advance=hasty)
    assert report.violations[0].rule is Rule.ORDER
    assert report.violations[0].trace == ("the saga begins",)


def test_a_machine_that_raises_is_found_with_what_made_it_raise() -> None:
    def fragile(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        if isinstance(event, DeadlinePassed):
            raise KeyError("no such move")
        return saga_machine.advance(saga, event, at)

    report = explore(sequence("a"), attempts=1, advance=fragile)
    found = report.violations[0]
    assert found.rule is Rule.MACHINE and "KeyError" in found.message
    assert found.trace[0] == "the saga begins"


def test_a_machine_that_decides_otherwise_after_a_crash_is_found() -> None:
    folds = 0

    def moody(saga: Saga | None, event: Input, at: int) -> Decision[Saga, Effect]:
        nonlocal folds
        decision = saga_machine.advance(saga, event, at)
        if isinstance(event, StepReplied) and decision.machine is not None and decision.verdict is Verdict.APPLIED:
            folds += 1
            steps = tuple(replace(s, result=str(folds)) for s in decision.machine.steps)
            return replace(decision, machine=replace(decision.machine, steps=steps))
        return decision

    assert Rule.MACHINE in rules(explore(sequence("a"), attempts=1, max_states=200, advance=moody))


def test_a_machine_that_undoes_what_it_never_asked_for_is_found() -> None:
    def eager(decision: Decision[Saga, Effect]) -> Decision[Saga, Effect]:
        saga = decision.machine
        if saga is None or saga.state is not SagaState.COMPENSATING:
            return decision
        pending = [i for i, s in enumerate(saga.steps) if s.state is StepState.PENDING]
        extra = tuple(SendCommand(i, Operation.COMPENSATION, 1, False) for i in pending)
        return replace(decision, effects=decision.effects + extra)

    assert Rule.NEVER_RAN in rules(explore(sequence("a", "b", "c"), attempts=1, advance=breaking(eager)))


# Broken services


def test_a_barrier_that_runs_every_compensation_is_found() -> None:
    def open_barrier(row: barrier.Step, operation: barrier.Operation) -> barrier.Decision:
        if operation is barrier.Operation.COMPENSATION and not row.compensated:
            return barrier.Decision.RUN
        return barrier.decide(row, operation)

    report = explore(sequence("a"), attempts=1, decide=open_barrier)
    assert Rule.NEVER_RAN in rules(report)


def test_a_barrier_that_lets_a_late_action_run_leaves_it_standing() -> None:
    def late(row: barrier.Step, operation: barrier.Operation) -> barrier.Decision:
        decided = barrier.decide(row, operation)
        return barrier.Decision.RUN if decided is barrier.Decision.TOO_LATE else decided

    report = explore(sequence("a"), attempts=1, decide=late)
    assert Rule.HALF_DONE in rules(report)


def test_a_pivot_over_http_without_idempotency_keys_can_be_compensated_past() -> None:
    definition = over_http(saga_of(step("a"), step("pay", "a", kind=PIVOT)))
    assert explore(definition).ok
    report = explore(definition, honours_key=False)
    found = next(v for v in report.violations if v.rule is Rule.PAST_PIVOT)
    assert "pay: action 1 runs, and the answer is lost" in found.trace
    assert "pay: action 2 refuses" in found.trace


# Hints


def test_hints_name_the_step_and_what_may_be_done() -> None:
    definition = replace(
        saga_of(
            replace(step("a"), action_endpoint="/do"),
            replace(step("pay", "a", kind=PIVOT, timeout_ms=2_000), action_endpoint="/pay"),
            timeout_ms=2_500,
        ),
        input='{"unused": 1}',
    )
    told = "\n".join(findings(definition))
    assert "a: a compensatable HTTP step without a compensation endpoint" in told
    assert "pay: a pivot over HTTP" in told
    assert "the saga's timeout of 2.5 s is shorter" in told
    assert "unused" in told
    assert findings(sequence("a", "b", timeout_ms=5_000)) == ()
