"""Sagas for tests: short to write, with defaults where a test does not care."""

from saga_processors.definition import RetryPolicy, SagaDefinition, StepDefinition, StepKind
from saga_processors.machine import Decision
from saga_processors.saga import (
    Input,
    Operation,
    Outcome,
    PublishEvent,
    Saga,
    SagaStarted,
    SendCommand,
    StepReplied,
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


class Play:
    """Plays a saga: what goes in, what comes out. Time stands at ``at`` until a test moves it."""

    def __init__(self, definition: SagaDefinition) -> None:
        definition.check(100)
        self.at = 0
        self.saga: Saga | None = None
        self.decision = self.put(SagaStarted(definition))

    def put(self, event: Input) -> Decision:
        self.decision = advance(self.saga, event, self.at)
        self.saga = self.decision.machine
        return self.decision

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
