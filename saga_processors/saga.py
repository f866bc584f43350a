"""What a saga is: its states, the tables of its legal moves, its inputs, effects and data. Pure: standard library only.

How an input moves it is in ``saga_processors.saga_machine``. The diagrams in docs/machines.md are generated from the
tables, and ``make check`` fails when they differ. Times are integer milliseconds of the log's clock.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from saga_processors.definition import SagaDefinition
from saga_processors.machine import DeadlinePassed, Decision, Request


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
    #: Its action did not run and will not; over HTTP, as far as is known.
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
    CANCEL = "cancel"
    ALL_UNDONE = "all undone"


class StepMove(StrEnum):
    DISPATCH = "dispatch"
    UNRESOLVED = "payload cannot be made"
    TRY_AGAIN = "try again"
    DONE = "done"
    NOT_DONE = "not done"
    UNDO = "undo"
    UNDO_IN_DOUBT = "undo, may have run"
    UNDO_LATE = "undo, ran late"
    UNDONE = "undone"
    SKIP = "skip"
    SKIP_UNDO = "skip undoing"


SAGA_MOVES: dict[SagaState, dict[SagaMove, SagaState]] = {
    SagaState.STARTED: {SagaMove.BEGIN: SagaState.EXECUTING},
    SagaState.EXECUTING: {
        SagaMove.ALL_EXECUTED: SagaState.COMPLETED,
        SagaMove.GIVE_UP: SagaState.COMPENSATING,
        SagaMove.CANCEL: SagaState.COMPENSATING,
    },
    SagaState.COMPENSATING: {SagaMove.ALL_UNDONE: SagaState.FAILED},
    SagaState.COMPLETED: {},
    SagaState.FAILED: {},
}

STEP_MOVES: dict[StepState, dict[StepMove, StepState]] = {
    StepState.PENDING: {
        StepMove.DISPATCH: StepState.EXECUTING,
        StepMove.UNRESOLVED: StepState.FAILED,
    },
    StepState.EXECUTING: {
        StepMove.TRY_AGAIN: StepState.EXECUTING,
        StepMove.DONE: StepState.EXECUTED,
        StepMove.SKIP: StepState.EXECUTED,
        StepMove.NOT_DONE: StepState.FAILED,
        StepMove.UNDO_IN_DOUBT: StepState.COMPENSATING,
    },
    StepState.EXECUTED: {StepMove.UNDO: StepState.COMPENSATING},
    StepState.COMPENSATING: {
        StepMove.TRY_AGAIN: StepState.COMPENSATING,
        StepMove.UNDONE: StepState.COMPENSATED,
        StepMove.SKIP_UNDO: StepState.COMPENSATED,
    },
    StepState.COMPENSATED: {},
    StepState.FAILED: {StepMove.UNDO_LATE: StepState.COMPENSATING},
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


@dataclass(frozen=True, slots=True)
class OperatorRequest:
    """Somebody asks for CANCEL, RETRY or SKIP. What cannot be granted is REJECTED; the reason is the answer."""

    #: A second record with the same id is a copy of the first.
    request_id: str
    request: Request
    #: With SKIP the step; with RETRY one step, or ``None`` for all that wait.
    step: str | None = None
    who: str | None = None
    why: str | None = None


Input = SagaStarted | StepReplied | DeadlinePassed | OperatorRequest


# ── Effects: data; performed in one place only (saga_processors.log.Publisher) ─────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Ask a step's service to act. What the command carries follows from the definition and the steps' results."""

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


class StepProgress(NamedTuple):
    """A tuple, because one is made for every move of a step: several times quicker than a frozen dataclass."""

    state: StepState = StepState.PENDING
    #: The latest attempt of the operation under way, or of the last one.
    attempt: int = 0
    #: An attempt of the action ended without a definite answer: it may have run.
    in_doubt: bool = False
    #: An operator took the operation under way, or the last one, for done.
    skipped: bool = False
    #: The attempt under way counts as unanswered from then on, ms. An action over HTTP that was skipped, or has
    #: succeeded by an earlier attempt, keeps it until the attempt is over: before that it is not undone.
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
    #: Ids of the latest requests that were answered, refused ones too.
    requests: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in TERMINAL

    @property
    def next_deadline(self) -> int | None:
        """The earliest of its timers, ms; ``None`` when it waits for nothing but answers, or has ended."""
        if self.state in TERMINAL:
            return None
        timers = [t for step in self.steps for t in (step.timeout_at, step.retry_at) if t is not None]
        if self.timeout_at is not None:
            timers.append(self.timeout_at)
        return min(timers, default=None)


SagaDecision = Decision[Saga, Effect]
