"""Sagas for tests: short to write, with defaults where a test does not care."""

from dataclasses import replace

from saga_processors.definition import RetryPolicy, SagaDefinition, StepDefinition, StepKind
from saga_processors.machine import DeadlinePassed, Decision, Request
from saga_processors.saga import (
    TERMINAL,
    Input,
    Operation,
    OperatorRequest,
    Outcome,
    PublishEvent,
    Saga,
    SagaStarted,
    SagaState,
    SendCommand,
    StepReplied,
    StepState,
)
from saga_processors.saga_machine import advance

RETRY = RetryPolicy(
    max_attempts=2, initial_delay_ms=100, max_delay_ms=1_000, multiplier=2.0, jitter=0.0, attention_after=3
)


def step(
    name: str,
    *depends_on: str,
    kind: StepKind = StepKind.COMPENSATABLE,
    retry: RetryPolicy = RETRY,
    timeout_ms: int = 1_000,
) -> StepDefinition:
    return StepDefinition(name, f"{name}-service", name, "{}", depends_on, kind, retry, timeout_ms)


def http_step(name: str, *depends_on: str, undo: str | None = "/undo", timeout_ms: int = 1_000) -> StepDefinition:
    """A step at an HTTP service; ``undo`` is its compensation_endpoint."""
    return replace(
        step(name, *depends_on, timeout_ms=timeout_ms), action_endpoint=f"/{name}", compensation_endpoint=undo
    )


def sequence(*names: str, timeout_ms: int | None = None) -> SagaDefinition:
    """A saga whose steps run one after the other."""
    steps = tuple(step(name, *names[max(0, i - 1) : i]) for i, name in enumerate(names))
    return SagaDefinition("sample", steps, timeout_ms)


def saga_of(*steps: StepDefinition, timeout_ms: int | None = None) -> SagaDefinition:
    return SagaDefinition("sample", steps, timeout_ms)


def reply(
    name: str, outcome: Outcome = Outcome.DONE, *, undo: bool = False, attempt: int = 1, result: str | None = None
) -> StepReplied:
    operation = Operation.COMPENSATION if undo else Operation.ACTION
    return StepReplied(name, operation, attempt, outcome, result, None if outcome is Outcome.DONE else str(outcome))


def check_state(saga: Saga) -> None:
    """Invariants of a single state."""
    states = [step.state for step in saga.steps]
    if saga.state in TERMINAL:
        assert saga.next_deadline is None
        assert not saga.needs_attention
    else:
        # No state is without an exit: while a saga has not ended, a timer runs, whoever stays silent.
        assert saga.next_deadline is not None
    if saga.state is SagaState.COMPLETED:
        assert set(states) == {StepState.EXECUTED}
    if saga.state is SagaState.FAILED:
        assert set(states) <= {StepState.PENDING, StepState.FAILED, StepState.COMPENSATED}
    for i, step in enumerate(saga.steps):
        kind = saga.definition.steps[i].kind
        waits = (step.timeout_at is not None) + (step.retry_at is not None)
        if step.state is StepState.EXECUTED and step.timeout_at is not None:
            assert saga.definition.steps[i].over_http, "an attempt that may come after its undoing"
            assert step.retry_at is None
            assert step.skipped or (step.attempt > 1 and kind is StepKind.COMPENSATABLE)
        else:
            assert waits == (step.state in (StepState.EXECUTING, StepState.COMPENSATING))
        if kind is not StepKind.COMPENSATABLE:
            assert step.state not in (StepState.COMPENSATING, StepState.COMPENSATED)
            if step.state is StepState.EXECUTED:
                assert saga.state in (SagaState.EXECUTING, SagaState.COMPLETED)
        for j in saga.definition.depends_on[i]:
            if step.state is not StepState.PENDING:
                assert states[j] is not StepState.PENDING
            if step.state in (StepState.EXECUTING, StepState.EXECUTED):
                assert states[j] is StepState.EXECUTED


class Play:
    """Plays a saga: what goes in, what comes out. Time stands at ``at`` until a test moves it."""

    def __init__(self, definition: SagaDefinition) -> None:
        definition.check(100)
        self.at = 0
        self.saga: Saga | None = None
        self.requests = 0
        self.decision = self.put(SagaStarted(definition))

    def put(self, event: Input) -> Decision:
        self.decision = advance(self.saga, event, self.at)
        self.saga = self.decision.machine
        return self.decision

    def ask(self, request: str, step: str | None = None, id: str | None = None) -> Decision:
        """An operator asks, each time with another id unless it is given."""
        self.requests += 1
        return self.put(
            OperatorRequest(id or f"request-{self.requests}", Request(request), step, "ann", "the service is gone")
        )

    def pass_time(self) -> None:
        """Wait for the next timer."""
        assert self.saga is not None
        assert self.saga.next_deadline is not None
        self.at = max(self.at, self.saga.next_deadline)
        self.put(DeadlinePassed(self.saga.next_deadline))

    @property
    def sent(self) -> list[str]:
        """Commands of the last input, as ``do a``, ``undo a``, with the attempt if it is not the first."""
        assert self.saga is not None
        return [
            f"{'do' if e.operation is Operation.ACTION else 'undo'} {self.saga.definition.steps[e.step].name}"
            + (f" {e.attempt}" if e.attempt > 1 else "")
            for e in self.decision.effects
            if isinstance(e, SendCommand)
        ]

    @property
    def events(self) -> list[str]:
        """Lifecycle events of the last input."""
        return [str(e.type) for e in self.decision.effects if isinstance(e, PublishEvent)]

    @property
    def states(self) -> str:
        """The saga's state and those of its steps, as ``EXECUTING: a=EXECUTED b=EXECUTING``."""
        assert self.saga is not None
        steps = zip(self.saga.definition.steps, self.saga.steps, strict=True)
        return f"{self.saga.state}: " + " ".join(f"{d.name}={s.state}" for d, s in steps)


def definition_to_json(definition: SagaDefinition) -> dict[str, object]:
    """The column ``transactions.definition`` of a saga."""
    return {
        "name": definition.name,
        "version": definition.version,
        "input": definition.input,
        "timeout_ms": definition.timeout_ms,
        "traceparent": definition.traceparent,
        "steps": [
            {
                **{f: getattr(step, f) for f in step.__slots__},
                "retry": {f: getattr(step.retry, f) for f in step.retry.__slots__},
            }
            for step in definition.steps
        ],
    }
