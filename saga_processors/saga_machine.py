"""The saga machine: ``advance(saga, input, at) -> Decision``. Pure: standard library only, no clock, no I/O.

Everything that decides about a saga is in this module; the legal moves are the literal tables of
``saga_processors.saga``.

A saga's state is the fold of its inputs, so whoever folds them again comes to the same decisions (DESIGN section 1).
A duplicate or late input is IGNORED, an illegal one REJECTED with the reason; neither raises. An exception from
``advance`` is a bug in this module: the processor parks that one transaction.

The model is Garcia-Molina and Salem's saga (1987) with a pivot; steps form a directed acyclic graph. What was
executed is compensated in reverse order of dependency. Times are integer milliseconds of the log's clock.

A Kafka service has a barrier (``participant.barrier``) that orders a step's action and its compensation, whichever
comes first. An HTTP service has none, so the machine never asks it to undo a step while an attempt of the action may
still be made: the relay begins none after ``HttpCommand.expires_at``, which is the attempt's timeout here. Should a
second copy of a command run what its first could not reach, the step is undone if that answer comes before the saga's
end. After the end nothing is: the relay passes over second copies, as far as it can know them.
"""

from collections.abc import Sequence
from dataclasses import replace

from saga_processors.definition import SagaDefinition, StepKind
from saga_processors.machine import DeadlinePassed, Decision, Request, Verdict
from saga_processors.reference import MAX_PAYLOAD_BYTES, Unresolved, resolve
from saga_processors.saga import (
    SAGA_MOVES,
    STEP_MOVES,
    TERMINAL,
    Effect,
    EventType,
    Input,
    Operation,
    OperatorRequest,
    Outcome,
    PublishEvent,
    Saga,
    SagaDecision,
    SagaMove,
    SagaStarted,
    SagaState,
    SendCommand,
    StepMove,
    StepProgress,
    StepReplied,
    StepState,
)

#: Of payloads with references, what one input may send in all before the rest waits for the next one: a thousand
#: parallel steps that each refer to one large result must not become a gigabyte in one batch.
DISPATCH_BYTES = 4 * MAX_PAYLOAD_BYTES
#: Requests of operators that a saga remembers, so that a second copy of one does nothing.
MAX_REQUESTS = 64


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
    if isinstance(event, OperatorRequest) and event.request_id in saga.requests:
        return Decision(saga, (), Verdict.IGNORED, "this request was answered before")
    if saga.state in TERMINAL:
        # An operator is told that nothing came of it; to everybody else it does not matter.
        verdict = Verdict.REJECTED if isinstance(event, OperatorRequest) else Verdict.IGNORED
        return Decision(saga, (), verdict, f"the saga has ended: {saga.state}")
    run = _Run(saga, at)
    match event:
        case StepReplied():
            ignored = run.replied(event)
        case DeadlinePassed():
            ignored = run.deadline_passed(event.due_at)
        case OperatorRequest():
            if (refusal := run.requested(event)) is not None:
                # It is remembered all the same: whoever was refused must not have it granted by a second copy of the
                # record, when the saga has moved on.
                return Decision(replace(saga, requests=run.requests), (), Verdict.REJECTED, refusal)
            ignored = None
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


def payload_of(definition: SagaDefinition, steps: Sequence[StepProgress], step: int) -> str:
    """Return the payload of a step's commands: JSON text, references replaced.

    The same at any time after the step was dispatched, since the results it refers to no longer change.

    Raises:
        Unresolved: a value is missing, or it grows too large; never for a step whose command was sent.
    """
    template = definition.templates[step]
    if template is None:
        return definition.steps[step].payload
    return resolve(template, definition.input, lambda i: steps[i].result)


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
        self.requests = saga.requests
        self.effects: list[Effect] = []

    def decision(self) -> SagaDecision:
        saga = Saga(
            definition=self.definition,
            state=self.state,
            steps=tuple(self.steps),
            created_at=self.before.created_at,
            updated_at=self.at,
            timeout_at=self.timeout_at,
            reason=self.reason,
            needs_attention=self.needs_attention and any(map(self.out_of_patience, range(len(self.steps)))),
            events=self.events,
            requests=self.requests,
        )
        return Decision(saga, tuple(self.effects), Verdict.APPLIED)

    # Moves: the only places where a state changes; an illegal one is a KeyError, that is a bug here.

    def move(self, move: SagaMove) -> None:
        self.state = SAGA_MOVES[self.state][move]

    def move_step(self, i: int, move: StepMove, **changes: object) -> None:
        step = self.steps[i]
        self.steps[i] = step._replace(state=STEP_MOVES[step.state][move], **changes)  # type: ignore[arg-type]

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
        if (
            step.state is StepState.EXECUTED
            and step.timeout_at is not None
            and reply.operation is Operation.ACTION
            and reply.attempt == step.attempt
        ):
            # Of an action that is settled already: its last attempt is over too, so it may be undone.
            self.steps[i] = step._replace(timeout_at=None)
            return None
        if self.ran_late(i, reply):
            # What it rests on may be undone already: that order cannot be kept any more.
            self.steps[i] = step._replace(result=reply.result)
            why = "it ran" if reply.outcome is Outcome.DONE else "it may have run"
            self.undo(i, StepMove.UNDO_LATE, f"the action was settled as not executed, and a late answer says {why}")
            return None
        if step.state is not expected:
            return Verdict.IGNORED, f"{reply.step!r} is {step.state}: its {reply.operation} is settled"
        # An answer that settles the operation counts from whichever attempt it comes, since the participant's
        # barrier lets the action run once; without a barrier a refusal does not, while a later attempt may yet
        # succeed. One that only ends its attempt counts for the attempt under way.
        under_way = reply.attempt == step.attempt and step.retry_at is None
        definition = self.definition.steps[i]
        settles = not definition.over_http or reply.attempt == step.attempt or step.retry_at is not None
        if reply.operation is Operation.COMPENSATION:
            if reply.outcome is Outcome.DONE:
                self.undone(i)
            elif under_way:
                self.try_again(i, reply.reason or f"the compensation answered {reply.outcome}")
            else:
                return Verdict.IGNORED, f"attempt {reply.attempt} is over"
        elif reply.outcome is Outcome.DONE:
            # Without a barrier a later attempt, if one is under way, must not come after the undoing.
            overtaken = definition.over_http and definition.kind is StepKind.COMPENSATABLE and not under_way
            self.executed(i, reply.result, step.timeout_at if overtaken else None)
        elif reply.outcome is Outcome.REFUSED and definition.kind is not StepKind.RETRIABLE and settles:
            self.not_executed(i, reply.reason or "refused")
        elif under_way:
            self.attempt_failed(i, reply.reason or f"the action answered {reply.outcome}", reply.outcome)
        elif reply.outcome is Outcome.UNKNOWN and definition.over_http and not step.in_doubt:
            # A second copy of a command whose first could not be called: this one may have run.
            self.steps[i] = step._replace(in_doubt=True)
        else:
            return Verdict.IGNORED, f"attempt {reply.attempt} is over"
        return None

    def ran_late(self, i: int, reply: StepReplied) -> bool:
        """Whether an action without a barrier ran, or may have, after it was settled as not executed.

        Two copies of its command were called, by two relays: the first was not reached, the second was.
        """
        step, definition = self.steps[i], self.definition.steps[i]
        return (
            step.state is StepState.FAILED
            and self.state is SagaState.COMPENSATING
            and definition.over_http
            and definition.kind is StepKind.COMPENSATABLE
            and reply.operation is Operation.ACTION
            and reply.outcome in (Outcome.DONE, Outcome.UNKNOWN)
            and 1 <= reply.attempt <= step.attempt
        )

    def deadline_passed(self, due_at: int) -> _Ignored | None:
        """Fire every timer up to ``due_at``. The clock may ask early (store): then nothing is due."""
        self.at = max(self.at, due_at)
        fired = False
        if self.timeout_at is not None and self.timeout_at <= due_at:
            fired = True
            self.timeout_at = None
            if self.state is SagaState.EXECUTING and self.no_way_back() is None:
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
                elif step.state is StepState.EXECUTED:
                    self.steps[i] = step._replace(timeout_at=None)
                else:
                    self.try_again(i, reason)
        return None if fired else (Verdict.IGNORED, "nothing is due")

    def requested(self, request: OperatorRequest) -> str | None:
        """Grant what an operator asks for, or return why not."""
        self.requests = (*self.requests, request.request_id)[-MAX_REQUESTS:]
        by = ("" if request.who is None else f" by {request.who}") + ("" if request.why is None else f": {request.why}")
        i = None if request.step is None else self.definition.index.get(request.step)
        if request.step is not None and i is None:
            return f"the saga has no step {request.step[:120]!r}"
        match request.request:
            case Request.CANCEL:
                return self.cancel(f"cancelled{by}")
            case Request.RETRY:
                return self.retry(i)
            case Request.SKIP if i is not None:
                return self.skip(i, f"skipped{by}")
            case Request.SKIP:
                return "name the step to skip"
        return f"a saga cannot do {request.request}: it knows CANCEL, RETRY and SKIP"

    def cancel(self, reason: str) -> str | None:
        if self.state is not SagaState.EXECUTING:
            return f"the saga is {self.state}: only one that is EXECUTING can be cancelled"
        if (obstacle := self.no_way_back()) is not None:
            return obstacle
        self.give_up(reason, SagaMove.CANCEL)
        return None

    def retry(self, only: int | None) -> str | None:
        asked = range(len(self.steps)) if only is None else (only,)
        waiting = [i for i in asked if self.steps[i].retry_at is not None]
        for i in waiting:
            self.send(i, self.steps[i].attempt + 1)
        if waiting:
            return None
        if only is None:
            return f"no step waits for its next attempt; the saga is {self.state}"
        name, state = self.definition.steps[only].name, self.steps[only].state
        under_way = state in (StepState.EXECUTING, StepState.COMPENSATING)
        return f"{name!r} is {state} and does not wait for its next attempt" + (": one is under way" * under_way)

    def skip(self, i: int, reason: str) -> str | None:
        """Take what a step is doing for done. Its action may have run, so it is undone if the saga fails."""
        step = self.steps[i]
        if step.state is StepState.EXECUTING:
            # An attempt that may still be made over HTTP must not come after the undoing.
            until = step.timeout_at if self.definition.steps[i].over_http else None
            self.settle(i, StepMove.SKIP, reason, skipped=True, in_doubt=True, timeout_at=until)
            self.publish(EventType.STEP_EXECUTED, i, reason)
        elif step.state is StepState.COMPENSATING:
            self.settle(i, StepMove.SKIP_UNDO, reason, skipped=True)
            self.publish(EventType.STEP_COMPENSATED, i, reason)
        else:
            name = self.definition.steps[i].name
            return f"{name!r} is {step.state}: only a step that is EXECUTING or COMPENSATING can be skipped"
        return None

    # What an answer, or its absence, means for a step

    def executed(self, i: int, result: str | None, until: int | None) -> None:
        """``until``: when an attempt that is still under way is over, ms."""
        self.settle(i, StepMove.DONE, None, result=result, timeout_at=until)
        self.publish(EventType.STEP_EXECUTED, i)

    def not_executed(self, i: int, reason: str) -> None:
        """The action answered no, or no attempt is left: this step is the reason why the saga fails.

        An earlier attempt that ended without an answer may have run all the same, where the service has no
        barrier; then it is undone. A service with a barrier answers that there is nothing to undo.
        """
        if self.steps[i].in_doubt and self.definition.steps[i].kind is StepKind.COMPENSATABLE:
            self.undo(i, StepMove.UNDO_IN_DOUBT, reason)
        else:
            # One that was never dispatched has not even a payload.
            pending = self.steps[i].state is StepState.PENDING
            self.settle(i, StepMove.UNRESOLVED if pending else StepMove.NOT_DONE, reason)
            self.publish(EventType.STEP_FAILED, i, reason)
        if self.state is SagaState.EXECUTING:
            self.give_up(f"{self.definition.steps[i].name}: {reason}")

    def attempt_failed(self, i: int, reason: str, outcome: Outcome) -> None:
        step = self.steps[i]
        if outcome is Outcome.UNKNOWN and not step.in_doubt:
            self.steps[i] = step = step._replace(in_doubt=True)
        attempts_left = step.attempt < self.definition.steps[i].retry.max_attempts
        if self.must_go_on(i) or (attempts_left and self.state is SagaState.EXECUTING):
            self.try_again(i, reason)
        else:
            self.not_executed(i, reason)

    def undone(self, i: int) -> None:
        self.settle(i, StepMove.UNDONE, None)
        self.publish(EventType.STEP_COMPENSATED, i)

    def settle(self, i: int, move: StepMove, reason: str | None, timeout_at: int | None = None, **rest: object) -> None:
        self.move_step(i, move, timeout_at=timeout_at, retry_at=None, reason=reason, ended_at=self.at, **rest)

    def try_again(self, i: int, reason: str) -> None:
        step, retry = self.steps[i], self.definition.steps[i].retry
        patience = self.patience(i)
        seed = f"{self.before.created_at}:{self.definition.steps[i].name}:{step.state}"
        self.move_step(
            i,
            StepMove.TRY_AGAIN,
            timeout_at=None,
            retry_at=self.at + retry.delay_ms(step.attempt, seed, patience),
            reason=reason,
        )
        if patience is not None and step.attempt >= patience and not self.needs_attention:
            self.needs_attention = True
            self.publish(EventType.SAGA_NEEDS_ATTENTION, i, reason)

    def patience(self, i: int) -> int | None:
        """Attempts after which a step calls for attention; ``None`` while its attempts come to an end."""
        retry = self.definition.steps[i].retry
        if self.steps[i].state is StepState.COMPENSATING:
            return retry.attention_after
        return max(retry.attention_after, retry.max_attempts) if self.must_go_on(i) else None

    def out_of_patience(self, i: int) -> bool:
        """Whether a step is what the saga needs attention for."""
        step, patience = self.steps[i], self.patience(i)
        failed = step.attempt if step.retry_at is not None else step.attempt - 1
        tried = step.state in (StepState.EXECUTING, StepState.COMPENSATING)
        return tried and patience is not None and failed >= patience

    # What follows from it

    def must_go_on(self, i: int) -> bool:
        """Whether there is no way but forward for a step; a pivot in doubt may be past the point of no return."""
        kind = self.definition.steps[i].kind
        return kind is StepKind.RETRIABLE or (kind is StepKind.PIVOT and self.steps[i].in_doubt)

    def no_way_back(self) -> str | None:
        """Return what has run, or may have run, and cannot be undone; ``None`` if the saga may turn round."""
        for step, definition in zip(self.steps, self.definition.steps, strict=True):
            if definition.kind is StepKind.COMPENSATABLE or step.state is StepState.PENDING:
                continue
            if definition.kind is StepKind.RETRIABLE or step.state is StepState.EXECUTED:
                return f"the saga only goes forward: {definition.name!r} ({definition.kind.lower()}) is {step.state}"
            if step.state is StepState.EXECUTING and (step.in_doubt or step.retry_at is None):
                return f"the saga cannot turn round now: its pivot {definition.name!r} is under way and may have run"
        return None

    def give_up(self, reason: str, move: SagaMove = SagaMove.GIVE_UP, *, wait_for_answers: bool = True) -> None:
        """Turn round. Steps that wait for their next attempt are settled at once.

        Those under way may still report before anything is undone, unless the time of the whole saga is over:
        then they are undone in doubt. Over HTTP they report in any case, at the latest by their timeout.
        """
        self.move(move)
        self.reason = reason
        self.timeout_at = None
        self.publish(EventType.SAGA_COMPENSATING, reason=reason)
        for i, step in enumerate(self.steps):
            if step.state is not StepState.EXECUTING:
                continue
            if step.retry_at is not None:
                self.not_executed(i, step.reason or reason)
            elif not wait_for_answers and not self.definition.steps[i].over_http:
                self.steps[i] = step._replace(in_doubt=True)
                self.not_executed(i, reason)

    def progress(self) -> None:
        """Start whatever may start now, and end the saga when nothing is left to do."""
        if self.state is SagaState.EXECUTING:
            self.dispatch()
            if all(step.state is StepState.EXECUTED for step in self.steps):
                self.move(SagaMove.ALL_EXECUTED)
                self.timeout_at = None
                # Of attempts that nothing waits for any more.
                self.steps = [s if s.timeout_at is None else s._replace(timeout_at=None) for s in self.steps]
                self.publish(EventType.SAGA_COMPLETED)
        if self.state is SagaState.COMPENSATING and not self.any_in(StepState.EXECUTING):
            while self.undo_what_may_be():
                pass
            if not self.any_in(StepState.COMPENSATING, StepState.EXECUTED):
                self.move(SagaMove.ALL_UNDONE)
                self.publish(EventType.SAGA_FAILED, reason=self.reason)

    def dispatch(self) -> None:
        """Send the actions of all steps whose turn it is."""
        room = DISPATCH_BYTES
        for i, needed in enumerate(self.definition.depends_on):
            if self.steps[i].state is not StepState.PENDING or not all(
                self.steps[j].state is StepState.EXECUTED for j in needed
            ):
                continue
            if self.definition.templates[i] is not None:
                if room <= 0:
                    # What has been sent is answered, or times out: then it goes on.
                    continue
                try:
                    room -= len(payload_of(self.definition, self.steps, i))
                except Unresolved as error:
                    if self.definition.steps[i].kind is not StepKind.RETRIABLE:
                        self.not_executed(i, str(error))
                        return
            self.move_step(i, StepMove.DISPATCH, started_at=self.at)
            self.send(i, 1)

    def undo_what_may_be(self) -> bool:
        """Undo what no later step rests on; return whether one was settled at once, so that more may be undone."""
        settled = False
        for i in reversed(range(len(self.steps))):
            step = self.steps[i]
            if (
                step.state is StepState.EXECUTED
                and step.timeout_at is None
                and all(
                    self.steps[j].state in (StepState.PENDING, StepState.FAILED, StepState.COMPENSATED)
                    for j in self.definition.dependents[i]
                )
            ):
                self.undo(i, StepMove.UNDO)
                settled = settled or self.steps[i].state is StepState.COMPENSATED
        return settled

    def any_in(self, *states: StepState) -> bool:
        return any(step.state in states for step in self.steps)

    def undo(self, i: int, move: StepMove, reason: str | None = None) -> None:
        self.move_step(i, move, reason=reason, attempt=0, skipped=False, ended_at=None)
        self.publish(EventType.STEP_COMPENSATING, i, reason)
        definition = self.definition.steps[i]
        if definition.over_http and definition.compensation_endpoint is None:
            # There is nothing to undo, says the definition.
            self.undone(i)
        else:
            self.send(i, 1)

    def send(self, i: int, attempt: int) -> None:
        """The one place where a command leaves; with it a timer is set, so no state is without an exit."""
        definition = self.definition.steps[i]
        operation = Operation.ACTION if self.steps[i].state is StepState.EXECUTING else Operation.COMPENSATION
        if definition.kind is StepKind.RETRIABLE and self.definition.templates[i] is not None:
            try:
                payload_of(self.definition, self.steps, i)
            except Unresolved as error:
                # It may not fail: an operator is called, and can skip it.
                self.steps[i] = self.steps[i]._replace(attempt=attempt, retry_at=None)
                self.try_again(i, str(error))
                return
        self.steps[i] = self.steps[i]._replace(
            attempt=attempt, timeout_at=self.at + definition.timeout_ms, retry_at=None
        )
        final = operation is Operation.ACTION and not self.must_go_on(i) and attempt >= definition.retry.max_attempts
        self.effects.append(SendCommand(i, operation, attempt, final))
