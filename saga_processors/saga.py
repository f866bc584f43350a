"""The saga machine: ``advance(saga, input, at) -> Decision``. Pure: standard library only, no clock, no I/O.

Everything that decides about a saga is in this module, and the legal moves are the literal tables below; the
diagrams in docs/machines.md are generated from them and ``make check`` fails when they differ.

A saga's state is the fold of its inputs, so whoever folds them again comes to the same decisions (DESIGN section 1).
A duplicate or late input is IGNORED, an illegal one REJECTED with the reason; neither raises. An exception from
``advance`` is a bug in this module: the processor parks that one transaction.

The model is Garcia-Molina and Salem's saga (1987) with a pivot; steps form a directed acyclic graph. What was
executed is compensated in reverse order of dependency. Times are integer milliseconds of the log's clock.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from saga_processors.definition import SagaDefinition, StepKind
from saga_processors.machine import DeadlinePassed, Decision, Verdict


class SagaState(StrEnum):
    #: Accepted; its first input is not folded yet.
    STARTED = "STARTED"
    #: Steps run.
    EXECUTING = "EXECUTING"
    #: It cannot complete; what was executed is being undone. Never goes back.
    COMPENSATING = "COMPENSATING"
    #: Every step was executed. Terminal.
    COMPLETED = "COMPLETED"
    #: Every executed step is compensated. Terminal.
    FAILED = "FAILED"


class StepState(StrEnum):
    #: Not begun; stays so if the saga fails before its turn.
    PENDING = "PENDING"
    #: Its action was asked for and no answer has settled it.
    EXECUTING = "EXECUTING"
    #: Its action ran.
    EXECUTED = "EXECUTED"
    #: Its compensation was asked for and is not acknowledged.
    COMPENSATING = "COMPENSATING"
    #: Its compensation is acknowledged.
    COMPENSATED = "COMPENSATED"
    #: Its action did not run and will not.
    FAILED = "FAILED"


class Operation(StrEnum):
    ACTION = "ACTION"
    COMPENSATION = "COMPENSATION"


class Outcome(StrEnum):
    """What one attempt came to."""

    #: It ran.
    DONE = "DONE"
    #: The business says no; nothing was done.
    REFUSED = "REFUSED"
    #: An error; nothing was done.
    FAILED = "FAILED"
    #: It may have run.
    UNKNOWN = "UNKNOWN"


class SagaMove(StrEnum):
    BEGIN = "begin"
    ALL_EXECUTED = "all steps executed"
    GIVE_UP = "give up"
    ALL_UNDONE = "all undone"


class StepMove(StrEnum):
    DISPATCH = "dispatch"
    TRY_AGAIN = "try again"
    DONE = "done"
    NOT_DONE = "not done"
    UNDO = "undo"
    UNDO_IN_DOUBT = "undo, may have run"
    UNDONE = "undone"


SAGA_MOVES: dict[SagaState, dict[SagaMove, SagaState]] = {
    SagaState.STARTED: {SagaMove.BEGIN: SagaState.EXECUTING},
    SagaState.EXECUTING: {
        SagaMove.ALL_EXECUTED: SagaState.COMPLETED,
        SagaMove.GIVE_UP: SagaState.COMPENSATING,
    },
    SagaState.COMPENSATING: {SagaMove.ALL_UNDONE: SagaState.FAILED},
    SagaState.COMPLETED: {},
    SagaState.FAILED: {},
}

STEP_MOVES: dict[StepState, dict[StepMove, StepState]] = {
    StepState.PENDING: {StepMove.DISPATCH: StepState.EXECUTING},
    StepState.EXECUTING: {
        StepMove.TRY_AGAIN: StepState.EXECUTING,
        StepMove.DONE: StepState.EXECUTED,
        StepMove.NOT_DONE: StepState.FAILED,
        StepMove.UNDO_IN_DOUBT: StepState.COMPENSATING,
    },
    StepState.EXECUTED: {StepMove.UNDO: StepState.COMPENSATING},
    StepState.COMPENSATING: {
        StepMove.TRY_AGAIN: StepState.COMPENSATING,
        StepMove.UNDONE: StepState.COMPENSATED,
    },
    StepState.COMPENSATED: {},
    StepState.FAILED: {},
}

TERMINAL = frozenset(state for state, moves in SAGA_MOVES.items() if not moves)


# ── Inputs ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SagaStarted:
    definition: SagaDefinition


@dataclass(frozen=True, slots=True)
class StepReplied:
    step: str
    operation: Operation
    attempt: int
    outcome: Outcome
    #: JSON text, with DONE.
    result: str | None = None
    reason: str | None = None


Input = SagaStarted | StepReplied | DeadlinePassed


# ── Effects: data; performed in one place only (saga_processors.log.Publisher) ─────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Ask a step's service to act. What the command carries is found in the definition and the step's result."""

    #: Position of the step.
    step: int
    operation: Operation
    attempt: int
    #: No attempt follows.
    final: bool


class EventType(StrEnum):
    SAGA_STARTED = "SagaStarted"
    STEP_EXECUTED = "StepExecuted"
    STEP_FAILED = "StepFailed"
    SAGA_COMPENSATING = "SagaCompensating"
    STEP_COMPENSATING = "StepCompensating"
    STEP_COMPENSATED = "StepCompensated"
    SAGA_COMPLETED = "SagaCompleted"
    SAGA_FAILED = "SagaFailed"
    SAGA_NEEDS_ATTENTION = "SagaNeedsAttention"


@dataclass(frozen=True, slots=True)
class PublishEvent:
    #: From 1, without gaps within a saga.
    sequence: int
    type: EventType
    state: SagaState
    step: int | None = None
    reason: str | None = None


Effect = SendCommand | PublishEvent


# ── State ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StepProgress:
    state: StepState = StepState.PENDING
    #: The latest attempt of the operation under way, or of the last one.
    attempt: int = 0
    #: An attempt of the action ended without a definite answer: it may have run.
    in_doubt: bool = False
    #: The attempt under way counts as unanswered from then on, ms.
    timeout_at: int | None = None
    #: The next attempt leaves then, ms. At most one of the two is set.
    retry_at: int | None = None
    #: JSON text.
    result: str | None = None
    #: Why the last attempt did not succeed.
    reason: str | None = None
    started_at: int | None = None
    ended_at: int | None = None


@dataclass(frozen=True, slots=True)
class Saga:
    definition: SagaDefinition
    state: SagaState
    steps: tuple[StepProgress, ...]
    created_at: int
    updated_at: int
    timeout_at: int | None = None
    #: Why it could not complete.
    reason: str | None = None
    needs_attention: bool = False
    #: Lifecycle events published so far.
    events: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in TERMINAL

    @property
    def next_deadline(self) -> int | None:
        """The earliest of its timers, ms; ``None`` when it waits for nothing but answers, or has ended."""
        timers = [t for step in self.steps for t in (step.timeout_at, step.retry_at) if t is not None]
        if self.timeout_at is not None:
            timers.append(self.timeout_at)
        return min(timers, default=None)


SagaDecision = Decision["Saga", "Effect"]


def advance(saga: Saga | None, event: Input, at: int) -> SagaDecision:
    """Fold one input.

    Args:
        saga: ``None`` for a transaction that has folded nothing yet (STARTED).
        at: the log's time of the input, ms.

    A definition in ``SagaStarted`` has been checked by the caller.
    """
    if isinstance(event, SagaStarted):
        if saga is not None:
            return Decision(saga, (), Verdict.IGNORED, "the saga has begun already")
        return _begin(event.definition, at)
    if saga is None:
        return Decision(None, (), Verdict.REJECTED, "no such transaction")
    if saga.state in TERMINAL:
        return Decision(saga, (), Verdict.IGNORED, f"the saga has ended: {saga.state}")
    run = _Run(saga, at)
    match event:
        case StepReplied():
            ignored = run.replied(event)
        case DeadlinePassed():
            ignored = run.deadline_passed(event.due_at)
    if ignored is not None:
        return Decision(saga, (), *ignored)
    run.progress()
    return run.decision()


def _begin(definition: SagaDefinition, at: int) -> SagaDecision:
    saga = Saga(
        definition=definition,
        state=SagaState.STARTED,
        steps=(StepProgress(),) * len(definition.steps),
        created_at=at,
        updated_at=at,
        timeout_at=None if definition.timeout_ms is None else at + definition.timeout_ms,
    )
    run = _Run(saga, at)
    run.move(SagaMove.BEGIN)
    run.publish(EventType.SAGA_STARTED)
    run.progress()
    return run.decision()


_Ignored = tuple[Verdict, str]


class _Run:
    """One fold at work: the saga taken apart, so that several moves need no copies in between."""

    def __init__(self, saga: Saga, at: int) -> None:
        self.before = saga
        self.definition = saga.definition
        self.at = at
        self.state = saga.state
        self.steps = list(saga.steps)
        self.timeout_at = saga.timeout_at
        self.reason = saga.reason
        self.needs_attention = saga.needs_attention
        self.events = saga.events
        self.effects: list[Effect] = []

    def decision(self) -> SagaDecision:
        ended = self.state in TERMINAL
        saga = Saga(
            definition=self.definition,
            state=self.state,
            steps=tuple(self.steps),
            created_at=self.before.created_at,
            updated_at=self.at,
            timeout_at=self.timeout_at,
            reason=self.reason,
            needs_attention=self.needs_attention and not ended,
            events=self.events,
        )
        return Decision(saga, tuple(self.effects), Verdict.APPLIED)

    # Moves: the only places where a state changes; an illegal one is a KeyError, that is a bug here.

    def move(self, move: SagaMove) -> None:
        self.state = SAGA_MOVES[self.state][move]

    def move_step(self, i: int, move: StepMove, **changes: object) -> None:
        step = self.steps[i]
        self.steps[i] = replace(step, state=STEP_MOVES[step.state][move], **changes)  # type: ignore[arg-type]

    def publish(self, type: EventType, step: int | None = None, reason: str | None = None) -> None:
        self.events += 1
        self.effects.append(PublishEvent(self.events, type, self.state, step, reason))

    # Inputs

    def replied(self, reply: StepReplied) -> _Ignored | None:
        i = self.definition.index.get(reply.step)
        if i is None:
            return Verdict.REJECTED, f"the saga has no step {reply.step!r}"
        step = self.steps[i]
        expected = StepState.EXECUTING if reply.operation is Operation.ACTION else StepState.COMPENSATING
        if step.state is StepState.PENDING or (reply.attempt > step.attempt and step.state is expected):
            return Verdict.REJECTED, f"{reply.operation} {reply.attempt} of {reply.step!r} was never asked for"
        if step.state is not expected:
            return Verdict.IGNORED, f"{reply.step!r} is {step.state}: its {reply.operation} is settled"
        # An answer that settles the operation counts from whichever attempt it comes, since the participant's
        # barrier lets the action run once. One that only ends its attempt counts for the attempt under way.
        under_way = reply.attempt == step.attempt and step.retry_at is None
        if reply.operation is Operation.COMPENSATION:
            if reply.outcome is Outcome.DONE:
                self.undone(i)
            elif under_way:
                self.try_again(i, reply.reason or f"the compensation answered {reply.outcome}")
            else:
                return Verdict.IGNORED, f"attempt {reply.attempt} is over"
        elif reply.outcome is Outcome.DONE:
            self.executed(i, reply.result)
        elif reply.outcome is Outcome.REFUSED and self.definition.steps[i].kind is not StepKind.RETRIABLE:
            self.not_executed(i, reply.reason or "refused")
        elif under_way:
            self.attempt_failed(i, reply.reason or f"the action answered {reply.outcome}", reply.outcome)
        else:
            return Verdict.IGNORED, f"attempt {reply.attempt} is over"
        return None

    def deadline_passed(self, due_at: int) -> _Ignored | None:
        """Fire every timer up to ``due_at``. The clock may ask early (store): then nothing is due."""
        self.at = max(self.at, due_at)
        fired = False
        if self.timeout_at is not None and self.timeout_at <= due_at:
            fired = True
            self.timeout_at = None
            if self.state is SagaState.EXECUTING and self.can_turn_back():
                reason = f"the saga took longer than its timeout of {self.definition.timeout_ms} ms"
                self.give_up(reason, wait_for_answers=False)
        for i in range(len(self.steps)):
            step = self.steps[i]
            if step.retry_at is not None and step.retry_at <= due_at:
                fired = True
                self.send(i, step.attempt + 1)
            elif step.timeout_at is not None and step.timeout_at <= due_at:
                fired = True
                reason = f"no answer to attempt {step.attempt} within {self.definition.steps[i].timeout_ms} ms"
                if step.state is StepState.EXECUTING:
                    self.attempt_failed(i, reason, Outcome.UNKNOWN)
                else:
                    self.try_again(i, reason)
        return None if fired else (Verdict.IGNORED, "nothing is due")

    # What an answer, or its absence, means for a step

    def executed(self, i: int, result: str | None) -> None:
        self.move_step(i, StepMove.DONE, timeout_at=None, retry_at=None, result=result, reason=None, ended_at=self.at)
        self.publish(EventType.STEP_EXECUTED, i)

    def not_executed(self, i: int, reason: str) -> None:
        """The action answered no, or no attempt is left: this step is the reason why the saga fails.

        An earlier attempt that ended without an answer may have run all the same, where the service has no
        barrier; then it is undone. A service with a barrier answers that there is nothing to undo.
        """
        if self.steps[i].in_doubt and self.definition.steps[i].kind is StepKind.COMPENSATABLE:
            self.undo(i, StepMove.UNDO_IN_DOUBT, reason)
        else:
            self.move_step(i, StepMove.NOT_DONE, timeout_at=None, retry_at=None, reason=reason, ended_at=self.at)
            self.publish(EventType.STEP_FAILED, i, reason)
        if self.state is SagaState.EXECUTING:
            self.give_up(f"{self.definition.steps[i].name}: {reason}")

    def attempt_failed(self, i: int, reason: str, outcome: Outcome) -> None:
        step = self.steps[i]
        if outcome is Outcome.UNKNOWN and not step.in_doubt:
            self.steps[i] = step = replace(step, in_doubt=True)
        attempts_left = step.attempt < self.definition.steps[i].retry.max_attempts
        if self.must_go_on(i) or (attempts_left and self.state is SagaState.EXECUTING):
            self.try_again(i, reason)
        else:
            self.not_executed(i, reason)

    def undone(self, i: int) -> None:
        self.move_step(i, StepMove.UNDONE, timeout_at=None, retry_at=None, reason=None, ended_at=self.at)
        self.publish(EventType.STEP_COMPENSATED, i)

    def try_again(self, i: int, reason: str) -> None:
        step, retry = self.steps[i], self.definition.steps[i].retry
        seed = f"{self.before.created_at}:{self.definition.steps[i].name}:{step.state}"
        self.move_step(
            i,
            StepMove.TRY_AGAIN,
            timeout_at=None,
            retry_at=self.at + retry.delay_ms(step.attempt, seed),
            reason=reason,
        )
        unlimited = step.state is StepState.COMPENSATING or step.attempt >= retry.max_attempts
        if unlimited and step.attempt >= retry.attention_after and not self.needs_attention:
            self.needs_attention = True
            self.publish(EventType.SAGA_NEEDS_ATTENTION, i, reason)

    # What follows from it

    def must_go_on(self, i: int) -> bool:
        """Whether there is no way but forward for a step; a pivot in doubt may be past the point of no return."""
        kind = self.definition.steps[i].kind
        return kind is StepKind.RETRIABLE or (kind is StepKind.PIVOT and self.steps[i].in_doubt)

    def can_turn_back(self) -> bool:
        """Whether nothing has run, or may have run, that cannot be undone."""
        for step, definition in zip(self.steps, self.definition.steps, strict=True):
            if definition.kind is StepKind.PIVOT and (
                step.state is StepState.EXECUTED
                or (step.state is StepState.EXECUTING and (step.in_doubt or step.retry_at is None))
            ):
                return False
            if definition.kind is StepKind.RETRIABLE and step.state is not StepState.PENDING:
                return False
        return True

    def give_up(self, reason: str, *, wait_for_answers: bool = True) -> None:
        """Turn round. Steps that wait for their next attempt are settled at once.

        Those under way may still report before anything is undone, unless the time of the whole saga is over:
        then they are undone in doubt.
        """
        self.move(SagaMove.GIVE_UP)
        self.reason = reason
        self.timeout_at = None
        self.publish(EventType.SAGA_COMPENSATING, reason=reason)
        for i, step in enumerate(self.steps):
            if step.state is not StepState.EXECUTING:
                continue
            if step.retry_at is not None:
                self.not_executed(i, step.reason or reason)
            elif not wait_for_answers:
                self.steps[i] = replace(step, in_doubt=True)
                self.not_executed(i, reason)

    def progress(self) -> None:
        """Start whatever may start now, and end the saga when nothing is left to do."""
        if self.state is SagaState.EXECUTING:
            for i, needed in enumerate(self.definition.depends_on):
                if self.steps[i].state is StepState.PENDING and all(
                    self.steps[j].state is StepState.EXECUTED for j in needed
                ):
                    self.move_step(i, StepMove.DISPATCH, started_at=self.at)
                    self.send(i, 1)
            if all(step.state is StepState.EXECUTED for step in self.steps):
                self.move(SagaMove.ALL_EXECUTED)
                self.timeout_at = None
                self.publish(EventType.SAGA_COMPLETED)
        if self.state is SagaState.COMPENSATING and not self.any_in(StepState.EXECUTING):
            for i in reversed(range(len(self.steps))):
                if self.steps[i].state is StepState.EXECUTED and all(
                    self.steps[j].state in (StepState.PENDING, StepState.FAILED, StepState.COMPENSATED)
                    for j in self.definition.dependents[i]
                ):
                    self.undo(i, StepMove.UNDO)
            if not self.any_in(StepState.COMPENSATING, StepState.EXECUTED):
                self.move(SagaMove.ALL_UNDONE)
                self.publish(EventType.SAGA_FAILED, reason=self.reason)

    def any_in(self, *states: StepState) -> bool:
        return any(step.state in states for step in self.steps)

    def undo(self, i: int, move: StepMove, reason: str | None = None) -> None:
        self.move_step(i, move, reason=reason, attempt=0, ended_at=None)
        self.publish(EventType.STEP_COMPENSATING, i, reason)
        self.send(i, 1)

    def send(self, i: int, attempt: int) -> None:
        """The one place where a command leaves; with it a timer is set, so no state is without an exit."""
        definition = self.definition.steps[i]
        operation = Operation.ACTION if self.steps[i].state is StepState.EXECUTING else Operation.COMPENSATION
        self.steps[i] = replace(
            self.steps[i], attempt=attempt, timeout_at=self.at + definition.timeout_ms, retry_at=None
        )
        final = operation is Operation.ACTION and not self.must_go_on(i) and attempt >= definition.retry.max_attempts
        self.effects.append(SendCommand(i, operation, attempt, final))
