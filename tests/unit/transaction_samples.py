"""Two-phase commits for tests: short to write, with defaults where a test does not care."""

from saga_processors.machine import Decision, Request
from saga_processors.transaction import (
    AskParticipant,
    Input,
    Operation,
    Outcome,
    ParticipantAddRequested,
    ParticipantReplied,
    PublishEvent,
    Transaction,
    TransactionStarted,
    VerbRequested,
    advance,
)
from saga_processors.transaction_definition import ParticipantDefinition, Policy, TransactionDefinition, Transport

POLICY = Policy(attempt_timeout_ms=1_000, initial_delay_ms=100, max_delay_ms=400, jitter=0.0, attention_after=3)


def participant(name: str, transport: Transport = Transport.HTTP, payload: str = "{}") -> ParticipantDefinition:
    return ParticipantDefinition(name, transport, "/prepare", "/commit", "/abort", payload)


def transaction_of(
    *participants: str | ParticipantDefinition,
    auto_commit: bool = False,
    timeout_ms: int = 30_000,
    policy: Policy = POLICY,
) -> TransactionDefinition:
    definitions = tuple(participant(p) if isinstance(p, str) else p for p in participants)
    return TransactionDefinition(timeout_ms, auto_commit, None, definitions, None, policy)


def verb(request: Request) -> VerbRequested:
    return VerbRequested(request)


def add(new: str | ParticipantDefinition) -> ParticipantAddRequested:
    return ParticipantAddRequested(participant(new) if isinstance(new, str) else new)


def answer(name: str, operation: Operation, outcome: Outcome = Outcome.DONE, attempt: int = 1) -> ParticipantReplied:
    return ParticipantReplied(
        name, operation, attempt, outcome, None if outcome is Outcome.DONE else outcome.value.lower()
    )


class Play:
    """Plays a two-phase commit: what goes in, what comes out. Time stands at ``at`` until a test moves it."""

    def __init__(self, definition: TransactionDefinition) -> None:
        definition.check()
        self.at = 0
        self.transaction: Transaction | None = None
        self.decision = self.put(TransactionStarted(definition))

    def put(self, event: Input) -> Decision[Transaction, AskParticipant | PublishEvent]:
        self.decision = advance(self.transaction, event, self.at)
        self.transaction = self.decision.machine
        return self.decision

    def prepare(self) -> None:
        self.put(verb(Request.PREPARE))

    def commit(self) -> None:
        self.put(verb(Request.COMMIT))

    def abort(self) -> None:
        self.put(verb(Request.ABORT))

    def vote(self, name: str, outcome: Outcome = Outcome.DONE) -> None:
        self.put(answer(name, Operation.PREPARE, outcome))

    @property
    def now(self) -> Transaction:
        assert self.transaction is not None
        return self.transaction

    @property
    def sent(self) -> list[str]:
        """Commands of the last input, as ``prepare a``, with the attempt if it is not the first."""
        return [
            f"{e.operation.lower()} {self.now.participants[e.participant].definition.service_name}"
            + (f" {e.attempt}" if e.attempt > 1 else "")
            for e in self.decision.effects
            if isinstance(e, AskParticipant)
        ]

    @property
    def events(self) -> list[str]:
        """Lifecycle events of the last input, without the words that all of them begin with."""
        return [str(e.type).removeprefix("Transaction") for e in self.decision.effects if isinstance(e, PublishEvent)]

    @property
    def states(self) -> str:
        """As ``PREPARING: a=PREPARED b=PREPARING``."""
        each = [f"{p.definition.service_name}={p.state}" for p in self.now.participants]
        return f"{self.now.state}: " + " ".join(each)
