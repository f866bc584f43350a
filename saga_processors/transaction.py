"""The two-phase commit machine: ``advance(transaction, input, at) -> Decision``. Pure: no clock, no I/O.

Everything that decides about a two-phase commit is in this module, and the legal moves are the literal tables below;
the diagrams in docs/machines.md are generated from them and ``make check`` fails when they differ.

It is presumed abort (Mohan, Lindsay and Obermarck, 1986) with a coordinator whose log is the journal: the decision to
commit is the move PREPARED -> COMMITTING, and it is durable before the first COMMIT leaves, because effects leave
after the commit of the batch that decided them (saga_processors.processor). From there no input leads anywhere but to
COMMITTED, and from ABORTING none but to ABORTED. An undecided transaction aborts when its time is over, so nobody
holds anything for longer because of a client that went away.

As with the saga, a state is the fold of its inputs; a duplicate or late input is IGNORED, an illegal one REJECTED with
the reason; neither raises. Times are integer milliseconds of the log's clock.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from saga_processors.machine import DeadlinePassed, Decision, Request, Verdict
from saga_processors.transaction_definition import ParticipantDefinition, TransactionDefinition, Transport


class TransactionState(StrEnum):
    #: Participants may be added; nobody has been asked anything.
    STARTED = "STARTED"
    #: Everybody has been asked to vote; not all have.
    PREPARING = "PREPARING"
    #: Everybody has voted yes; nothing is decided.
    PREPARED = "PREPARED"
    #: Decided: commit. Participants are told until every one has acknowledged.
    COMMITTING = "COMMITTING"
    #: Every participant has committed. Terminal.
    COMMITTED = "COMMITTED"
    #: Decided: abort. Participants that may hold something are told until every one has acknowledged.
    ABORTING = "ABORTING"
    #: No participant holds anything. Terminal.
    ABORTED = "ABORTED"


class ParticipantState(StrEnum):
    #: Has not voted; perhaps it has not been asked yet.
    PREPARING = "PREPARING"
    #: Voted yes.
    PREPARED = "PREPARED"
    #: Has acknowledged the commit.
    COMMITTED = "COMMITTED"
    #: Has acknowledged the abort, or was never asked.
    ABORTED = "ABORTED"
    #: Voted no, or gave no vote that counts. It is told to abort all the same, unless it is sure to hold nothing.
    FAILED = "FAILED"


class Operation(StrEnum):
    PREPARE = "PREPARE"
    COMMIT = "COMMIT"
    ABORT = "ABORT"


class Outcome(StrEnum):
    """What one call to a participant came to."""

    #: The vote is yes; it is committed; it is aborted.
    DONE = "DONE"
    #: The vote is no, and nothing is held.
    REFUSED = "REFUSED"
    #: An error; nothing was done.
    FAILED = "FAILED"
    #: It may have been done.
    UNKNOWN = "UNKNOWN"
    #: The participant does not know the transaction.
    NO_SUCH_TRANSACTION = "NO_SUCH_TRANSACTION"


class TransactionMove(StrEnum):
    PREPARE = "prepare"
    ALL_YES = "all voted yes"
    COMMIT = "commit"
    ABORT = "abort"
    ALL_COMMITTED = "all committed"
    NOTHING_HELD = "nothing held"


class ParticipantMove(StrEnum):
    YES = "voted yes"
    NO = "no vote, or no"
    COMMITTED = "committed"
    ABORTED = "aborted"


TRANSACTION_MOVES: dict[TransactionState, dict[TransactionMove, TransactionState]] = {
    TransactionState.STARTED: {
        TransactionMove.PREPARE: TransactionState.PREPARING,
        TransactionMove.ABORT: TransactionState.ABORTING,
    },
    TransactionState.PREPARING: {
        TransactionMove.ALL_YES: TransactionState.PREPARED,
        TransactionMove.ABORT: TransactionState.ABORTING,
    },
    TransactionState.PREPARED: {
        TransactionMove.COMMIT: TransactionState.COMMITTING,
        TransactionMove.ABORT: TransactionState.ABORTING,
    },
    TransactionState.COMMITTING: {TransactionMove.ALL_COMMITTED: TransactionState.COMMITTED},
    TransactionState.COMMITTED: {},
    TransactionState.ABORTING: {TransactionMove.NOTHING_HELD: TransactionState.ABORTED},
    TransactionState.ABORTED: {},
}

PARTICIPANT_MOVES: dict[ParticipantState, dict[ParticipantMove, ParticipantState]] = {
    ParticipantState.PREPARING: {
        ParticipantMove.YES: ParticipantState.PREPARED,
        ParticipantMove.NO: ParticipantState.FAILED,
        ParticipantMove.ABORTED: ParticipantState.ABORTED,
    },
    ParticipantState.PREPARED: {
        ParticipantMove.COMMITTED: ParticipantState.COMMITTED,
        ParticipantMove.ABORTED: ParticipantState.ABORTED,
    },
    ParticipantState.COMMITTED: {},
    ParticipantState.ABORTED: {},
    ParticipantState.FAILED: {},
}

#: Where what is asked for is the case already: nothing happens, and that is no error.
_ALREADY: dict[Request, frozenset[TransactionState]] = {
    Request.PREPARE: frozenset({TransactionState.PREPARING, TransactionState.PREPARED}),
    Request.COMMIT: frozenset({TransactionState.COMMITTING, TransactionState.COMMITTED}),
    Request.ABORT: frozenset({TransactionState.ABORTING, TransactionState.ABORTED}),
}

TERMINAL = frozenset(state for state, moves in TRANSACTION_MOVES.items() if not moves)
#: Its time still runs.
UNDECIDED = frozenset({TransactionState.STARTED, TransactionState.PREPARING, TransactionState.PREPARED})
#: What participants are being asked for.
_UNDER_WAY = {
    TransactionState.PREPARING: Operation.PREPARE,
    TransactionState.COMMITTING: Operation.COMMIT,
    TransactionState.ABORTING: Operation.ABORT,
}


# ── Inputs ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TransactionStarted:
    definition: TransactionDefinition


@dataclass(frozen=True, slots=True)
class ParticipantAddRequested:
    participant: ParticipantDefinition


@dataclass(frozen=True, slots=True)
class VerbRequested:
    #: PREPARE, COMMIT or ABORT.
    verb: Request


@dataclass(frozen=True, slots=True)
class ParticipantReplied:
    participant: str
    operation: Operation
    attempt: int
    outcome: Outcome
    reason: str | None = None


Input = TransactionStarted | ParticipantAddRequested | VerbRequested | ParticipantReplied | DeadlinePassed


# ── Effects: data; performed in one place only (saga_processors.log.Publisher) ─────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AskParticipant:
    """Call a participant. What goes with the call is found in its definition."""

    #: Position of the participant.
    participant: int
    operation: Operation
    attempt: int


class EventType(StrEnum):
    TRANSACTION_STARTED = "TransactionStarted"
    TRANSACTION_PREPARING = "TransactionPreparing"
    TRANSACTION_PREPARED = "TransactionPrepared"
    TRANSACTION_COMMITTING = "TransactionCommitting"
    TRANSACTION_COMMITTED = "TransactionCommitted"
    TRANSACTION_ABORTING = "TransactionAborting"
    TRANSACTION_ABORTED = "TransactionAborted"
    PARTICIPANT_PREPARED = "ParticipantPrepared"
    PARTICIPANT_FAILED = "ParticipantFailed"
    PARTICIPANT_COMMITTED = "ParticipantCommitted"
    PARTICIPANT_ABORTED = "ParticipantAborted"
    TRANSACTION_NEEDS_ATTENTION = "TransactionNeedsAttention"


@dataclass(frozen=True, slots=True)
class PublishEvent:
    #: From 1, without gaps within a transaction.
    sequence: int
    type: EventType
    state: TransactionState
    participant: int | None = None
    reason: str | None = None


Effect = AskParticipant | PublishEvent


# ── State ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Participant:
    definition: ParticipantDefinition
    state: ParticipantState = ParticipantState.PREPARING
    #: It was asked to prepare, and nothing it has said since proves that it holds nothing.
    may_hold: bool = False
    #: The latest attempt of the operation under way, or of the last one.
    attempt: int = 0
    #: The attempt under way counts as unanswered from then on, ms.
    timeout_at: int | None = None
    #: The next attempt leaves then, ms. At most one of the two is set.
    retry_at: int | None = None
    #: It keeps the transaction from ending, and people should look.
    needs_attention: bool = False
    #: Why it voted no, or why the last attempt did not succeed.
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    definition: TransactionDefinition
    state: TransactionState
    #: Those it began with, then those that were added; never reordered.
    participants: tuple[Participant, ...]
    created_at: int
    updated_at: int
    #: It aborts then unless it is decided, ms; ``None`` from the decision on.
    timeout_at: int | None
    #: Why it aborts.
    reason: str | None = None
    #: Lifecycle events published so far.
    events: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in TERMINAL

    @property
    def needs_attention(self) -> bool:
        """Whether it cannot end without a participant that does not do what was decided."""
        return any(participant.needs_attention for participant in self.participants)

    @property
    def next_deadline(self) -> int | None:
        """The earliest of its timers, ms; ``None`` when it has ended."""
        timers = [t for p in self.participants for t in (p.timeout_at, p.retry_at) if t is not None]
        if self.timeout_at is not None:
            timers.append(self.timeout_at)
        return min(timers, default=None)

    @property
    def vote_by(self) -> int:
        """When it aborts, or would have, without a decision, ms; never changes."""
        return self.created_at + self.definition.timeout_ms


TransactionDecision = Decision["Transaction", "Effect"]


def advance(transaction: Transaction | None, event: Input, at: int) -> TransactionDecision:
    """Fold one input.

    Args:
        transaction: ``None`` when nothing has been folded yet.
        at: the log's time of the input, ms.

    Definitions in inputs have been checked by the caller.
    """
    if isinstance(event, TransactionStarted):
        if transaction is not None:
            return Decision(transaction, (), Verdict.IGNORED, "the transaction has begun already")
        return _begin(event.definition, at)
    if transaction is None:
        return Decision(None, (), Verdict.REJECTED, "no such transaction")
    run = _Run(transaction, at)
    match event:
        case ParticipantAddRequested():
            unchanged = run.add(event.participant)
        case VerbRequested():
            unchanged = run.requested(event.verb)
        case ParticipantReplied():
            unchanged = run.replied(event)
        case DeadlinePassed():
            unchanged = run.deadline_passed(event.due_at)
    if unchanged is not None:
        return Decision(transaction, (), *unchanged)
    run.progress()
    return run.decision()


def timeout_ms(transaction: Transaction, operation: Operation, at: int) -> int:
    """How long a call to an HTTP participant that leaves at ``at`` may take, ms."""
    limit = transaction.definition.policy.attempt_timeout_ms
    return max(1, min(limit, transaction.vote_by - at)) if operation is Operation.PREPARE else limit


def _begin(definition: TransactionDefinition, at: int) -> TransactionDecision:
    transaction = Transaction(
        definition=definition,
        state=TransactionState.STARTED,
        participants=tuple(Participant(participant) for participant in definition.participants),
        created_at=at,
        updated_at=at,
        timeout_at=at + definition.timeout_ms,
    )
    run = _Run(transaction, at)
    run.publish(EventType.TRANSACTION_STARTED)
    return run.decision()


_Unchanged = tuple[Verdict, str]


class _Run:
    """One fold at work: the transaction taken apart, so that several moves need no copies in between."""

    def __init__(self, transaction: Transaction, at: int) -> None:
        self.before = transaction
        self.policy = transaction.definition.policy
        self.at = at
        self.state = transaction.state
        self.participants = list(transaction.participants)
        self.timeout_at = transaction.timeout_at
        self.reason = transaction.reason
        self.events = transaction.events
        self.effects: list[Effect] = []

    def decision(self) -> TransactionDecision:
        transaction = Transaction(
            definition=self.before.definition,
            state=self.state,
            participants=tuple(self.participants),
            created_at=self.before.created_at,
            updated_at=self.at,
            timeout_at=self.timeout_at,
            reason=self.reason,
            events=self.events,
        )
        return Decision(transaction, tuple(self.effects), Verdict.APPLIED)

    # Moves: the only places where a state changes; an illegal one is a KeyError, that is a bug here.

    def move(self, move: TransactionMove) -> None:
        self.state = TRANSACTION_MOVES[self.state][move]

    def move_participant(self, i: int, move: ParticipantMove, **changes: object) -> None:
        participant = self.participants[i]
        state = PARTICIPANT_MOVES[participant.state][move]
        self.participants[i] = replace(participant, state=state, **changes)  # type: ignore[arg-type]

    def publish(self, type: EventType, participant: int | None = None, reason: str | None = None) -> None:
        self.events += 1
        self.effects.append(PublishEvent(self.events, type, self.state, participant, reason))

    # Inputs

    def add(self, new: ParticipantDefinition) -> _Unchanged | None:
        if self.state is not TransactionState.STARTED:
            return Verdict.REJECTED, f"participants are added while the transaction is STARTED; it is {self.state}"
        for participant in self.participants:
            if participant.definition == new:
                return Verdict.IGNORED, f"{new.service_name!r} is a participant already, with the same content"
            if participant.definition.service_name == new.service_name:
                return Verdict.REJECTED, f"{new.service_name!r} is a participant already, with other content"
        if len(self.participants) >= self.policy.max_participants:
            most = self.policy.max_participants
            return Verdict.REJECTED, f"a transaction has at most {most} participants (FLUXORA_MAX_PARTICIPANTS)"
        if sum(p.definition.size for p in self.participants) + new.size > self.policy.max_size:
            return Verdict.REJECTED, (
                f"the participants of a transaction are at most {self.policy.max_size} characters together "
                "(FLUXORA_MAX_PARTICIPANTS_SIZE); put a reference to large data into the payload"
            )
        self.participants.append(Participant(new))
        return None

    def requested(self, verb: Request) -> _Unchanged | None:
        if self.state in _ALREADY.get(verb, ()):
            return Verdict.IGNORED, f"the transaction is {self.state} already"
        match verb:
            case Request.PREPARE if self.state is TransactionState.STARTED:
                self.prepare()
            case Request.COMMIT if self.state is TransactionState.PREPARED:
                self.commit()
            case Request.ABORT if self.state in UNDECIDED:
                self.abort("requested")
            case _:
                return Verdict.REJECTED, f"{verb} is not possible: the transaction is {self.state}"
        return None

    def replied(self, reply: ParticipantReplied) -> _Unchanged | None:
        found = (i for i, p in enumerate(self.participants) if p.definition.service_name == reply.participant)
        if (i := next(found, None)) is None:
            return Verdict.REJECTED, f"the transaction has no participant {reply.participant!r}"
        participant = self.participants[i]
        if not self.asked(participant, reply.operation, reply.attempt):
            return (
                Verdict.REJECTED,
                f"{reply.operation} {reply.attempt} was never asked of {reply.participant!r}: {self.state}",
            )
        if not participant.may_hold or self.state in TERMINAL:
            return Verdict.IGNORED, f"{reply.participant!r} is {participant.state}: nothing is open with it"
        match reply.operation:
            case Operation.PREPARE:
                return self.voted(i, reply)
            case Operation.COMMIT:
                return self.commit_answered(i, reply)
            case Operation.ABORT:
                return self.abort_answered(i, reply)

    def asked(self, participant: Participant, operation: Operation, attempt: int) -> bool:
        """Whether such an attempt was ever made, as far as the state tells."""
        if operation is Operation.PREPARE:
            # There is one attempt to prepare; attempts at what was decided stand in its place later.
            return participant.attempt > 0 and attempt == 1
        if operation is Operation.COMMIT:
            decided = self.state in (TransactionState.COMMITTING, TransactionState.COMMITTED)
        else:
            decided = self.state in (TransactionState.ABORTING, TransactionState.ABORTED)
        return decided and 1 <= attempt <= participant.attempt

    def voted(self, i: int, reply: ParticipantReplied) -> _Unchanged | None:
        participant = self.participants[i]
        if self.state is TransactionState.PREPARING and participant.state is ParticipantState.PREPARING:
            if reply.outcome is Outcome.DONE:
                self.move_participant(i, ParticipantMove.YES, timeout_at=None)
                self.publish(EventType.PARTICIPANT_PREPARED, i)
            else:
                holds_nothing = reply.outcome is Outcome.REFUSED
                self.voted_no(i, reply.reason or f"prepare answered {reply.outcome}", holds_nothing=holds_nothing)
            return None
        if (
            self.state is TransactionState.ABORTING
            and reply.outcome is Outcome.REFUSED
            and participant.state in (ParticipantState.PREPARING, ParticipantState.FAILED)
        ):
            # The abort is on its way, but this one says that it never held anything: no need to wait for its answer.
            self.settled(i)
            if participant.state is ParticipantState.PREPARING:
                reason = reply.reason or "refused"
                self.move_participant(i, ParticipantMove.NO, reason=reason)
                self.publish(EventType.PARTICIPANT_FAILED, i, reason)
            return None
        if self.state is TransactionState.ABORTING:
            return Verdict.IGNORED, f"too late: the transaction is {self.state}, the abort is on its way"
        return Verdict.IGNORED, f"{reply.participant!r} is {participant.state}: its vote is known"

    def commit_answered(self, i: int, reply: ParticipantReplied) -> _Unchanged | None:
        participant = self.participants[i]
        if reply.outcome is Outcome.DONE:
            self.settled(i)
            self.move_participant(i, ParticipantMove.COMMITTED, reason=None)
            self.publish(EventType.PARTICIPANT_COMMITTED, i)
            return None
        reason = reply.reason or f"commit answered {reply.outcome}"
        # It voted yes, and now it does not know the transaction, or says no: its promise is broken or its data lost.
        # What it did cannot be guessed; it is asked on, because a restored participant may know again.
        in_doubt = reply.outcome in (Outcome.NO_SUCH_TRANSACTION, Outcome.REFUSED)
        if self.under_way(participant, reply.attempt):
            self.try_again(i, reason, in_doubt=in_doubt)
        elif in_doubt and not participant.needs_attention:
            self.call_for_attention(i, reason)
        else:
            return Verdict.IGNORED, f"attempt {reply.attempt} is over"
        return None

    def abort_answered(self, i: int, reply: ParticipantReplied) -> _Unchanged | None:
        participant = self.participants[i]
        # Presumed abort: a participant that does not know the transaction holds nothing of it.
        if reply.outcome in (Outcome.DONE, Outcome.NO_SUCH_TRANSACTION):
            self.settled(i)
            if participant.state is not ParticipantState.FAILED:
                self.move_participant(i, ParticipantMove.ABORTED, reason=None)
            self.publish(EventType.PARTICIPANT_ABORTED, i)
        elif self.under_way(participant, reply.attempt):
            self.try_again(i, reply.reason or f"abort answered {reply.outcome}")
        else:
            return Verdict.IGNORED, f"attempt {reply.attempt} is over"
        return None

    def deadline_passed(self, due_at: int) -> _Unchanged | None:
        """Fire every timer up to ``due_at``. The clock may ask early (store): then nothing is due."""
        if self.state in TERMINAL:
            return Verdict.IGNORED, f"the transaction has ended: {self.state}"
        self.at = max(self.at, due_at)
        fired = False
        if self.timeout_at is not None and self.timeout_at <= due_at:
            fired = True
            self.abort(f"not decided within its timeout of {self.before.definition.timeout_ms} ms")
        for i in range(len(self.participants)):
            participant = self.participants[i]
            if participant.retry_at is not None and participant.retry_at <= due_at:
                fired = True
                self.ask(i, _UNDER_WAY[self.state], participant.attempt + 1)
            elif participant.timeout_at is not None and participant.timeout_at <= due_at:
                fired = True
                reason = f"no answer to {_UNDER_WAY[self.state]} {participant.attempt} in time"
                if self.state is TransactionState.PREPARING:
                    self.voted_no(i, reason, holds_nothing=False)
                else:
                    self.try_again(i, reason)
        return None if fired else (Verdict.IGNORED, "nothing is due")

    # What is done

    def prepare(self) -> None:
        self.move(TransactionMove.PREPARE)
        self.publish(EventType.TRANSACTION_PREPARING)
        for i in range(len(self.participants)):
            self.ask(i, Operation.PREPARE, 1)

    def commit(self) -> None:
        """The decision. The processor makes it durable before any of these commands leaves."""
        self.move(TransactionMove.COMMIT)
        self.timeout_at = None
        self.publish(EventType.TRANSACTION_COMMITTING)
        for i in range(len(self.participants)):
            self.ask(i, Operation.COMMIT, 1)

    def abort(self, reason: str) -> None:
        self.move(TransactionMove.ABORT)
        self.timeout_at = None
        self.reason = reason
        self.publish(EventType.TRANSACTION_ABORTING, reason=reason)
        for i, participant in enumerate(self.participants):
            if participant.may_hold:
                self.ask(i, Operation.ABORT, 1)
            elif participant.state is ParticipantState.PREPARING:
                # It never heard of the transaction, so nothing happened there that an event could tell of.
                self.move_participant(i, ParticipantMove.ABORTED)

    def voted_no(self, i: int, reason: str, *, holds_nothing: bool) -> None:
        """One no is enough: the others are told at once."""
        if holds_nothing:
            self.settled(i)
        self.move_participant(i, ParticipantMove.NO, reason=reason)
        self.publish(EventType.PARTICIPANT_FAILED, i, reason)
        self.abort(f"{self.participants[i].definition.service_name}: {reason}")

    def settled(self, i: int) -> None:
        """Nothing of the transaction is held there any more."""
        self.participants[i] = replace(
            self.participants[i], may_hold=False, timeout_at=None, retry_at=None, needs_attention=False
        )

    def under_way(self, participant: Participant, attempt: int) -> bool:
        """Whether ``attempt`` is the one whose answer is awaited: a failure of an earlier one says nothing new."""
        return attempt == participant.attempt and participant.retry_at is None

    def try_again(self, i: int, reason: str, *, in_doubt: bool = False) -> None:
        participant = self.participants[i]
        seed = f"{self.before.created_at}:{participant.definition.service_name}:{self.state}"
        retry_at = self.at + self.policy.delay_ms(participant.attempt, seed)
        self.participants[i] = replace(participant, timeout_at=None, retry_at=retry_at, reason=reason)
        if (in_doubt or participant.attempt >= self.policy.attention_after) and not participant.needs_attention:
            self.call_for_attention(i, reason)

    def call_for_attention(self, i: int, reason: str) -> None:
        self.participants[i] = replace(self.participants[i], needs_attention=True, reason=reason)
        self.publish(EventType.TRANSACTION_NEEDS_ATTENTION, i, reason)

    def ask(self, i: int, operation: Operation, attempt: int) -> None:
        """The one place where a command leaves.

        With it a timer is set, so no state is without an exit; a Kafka participant's vote has the transaction's.
        """
        participant = self.participants[i]
        timeout_at: int | None = self.at + timeout_ms(self.before, operation, self.at)
        if operation is Operation.PREPARE and participant.definition.transport is Transport.KAFKA:
            timeout_at = None
        self.participants[i] = replace(
            participant, may_hold=True, attempt=attempt, timeout_at=timeout_at, retry_at=None
        )
        self.effects.append(AskParticipant(i, operation, attempt))

    # What follows from it

    def progress(self) -> None:
        """Go on as far as the answers allow."""
        if self.state is TransactionState.PREPARING and all(
            participant.state is ParticipantState.PREPARED for participant in self.participants
        ):
            self.move(TransactionMove.ALL_YES)
            self.publish(EventType.TRANSACTION_PREPARED)
            if self.before.definition.auto_commit:
                self.commit()
        if any(participant.may_hold for participant in self.participants):
            return
        if self.state is TransactionState.COMMITTING:
            self.move(TransactionMove.ALL_COMMITTED)
            self.publish(EventType.TRANSACTION_COMMITTED)
        elif self.state is TransactionState.ABORTING:
            self.move(TransactionMove.NOTHING_HELD)
            self.publish(EventType.TRANSACTION_ABORTED, reason=self.reason)
