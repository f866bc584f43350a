"""Taking part in a two-phase commit: what can be asked, what can be answered, and how both travel.

A participant is asked to prepare, and votes. After a yes it must be able to commit whatever happens, and may no
longer abort by itself; after a no nothing is held, and it never will be for this transaction. The two kinds of
participants (``participant.resources``, ``participant.prepared``) keep the same rules:

=========  ==================  =======================  ======================  ==========================
asked      nothing is known    PREPARED                 COMMITTED               ABORTED
=========  ==================  =======================  ======================  ==========================
prepare    tries: yes or no    yes, for the same work   yes, for the same work  no: it came too late
commit     UnknownTransaction  commits                  done already            TransactionEnded
abort      remembered          lets go                  TransactionEnded        done already
=========  ==================  =======================  ======================  ==========================
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from participant.command import ID_LIMIT, storable
from schemas import FluxoraError

COMMAND = "fluxora.ParticipantCommand"
REPLY = "fluxora.ParticipantReplied"
#: Characters of a transaction's id: the limit of an XA branch (psycopg ``Xid.gtrid``).
TRANSACTION_ID_LIMIT = 64

#: SQLSTATEs by which the database says that this work cannot be done: wrong data, a constraint, a view's check
#: option, a trigger's RAISE.
_REFUSALS = ("22", "23", "44", "P0001")
#: Somebody else holds a lock for longer than we wait, or waits for us in turn.
_CONTENTION = ("55P03", "40P01", "40001")


class TwoPhaseError(FluxoraError):
    """A call of a two-phase commit cannot be done here. Nothing was changed by it."""


class InvalidChange(TwoPhaseError):
    """The call breaks a rule; it would break it again. ``field`` names the place, ``rule`` says what belongs there."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


class UnknownTransaction(TwoPhaseError):
    """Commit of a transaction that was never prepared here, or so long ago that its end is pruned."""

    def __init__(self, transaction_id: str) -> None:
        super().__init__(f"the transaction {transaction_id} was never prepared here")


class TransactionEnded(TwoPhaseError):
    """The transaction ended the other way here, and that stands. ``state`` is COMMITTED or ABORTED."""

    def __init__(self, transaction_id: str, state: str, asked: str) -> None:
        super().__init__(f"the transaction {transaction_id} is {state} here and cannot {asked}")
        self.state = state


class StillBusy(TwoPhaseError):
    """Another call of the same transaction holds it for longer than we wait. Call again."""

    def __init__(self, transaction_id: str) -> None:
        super().__init__(f"another call of the transaction {transaction_id} is in progress here; call again")


class TwoPhaseOperation(StrEnum):
    #: promise that the work can be committed
    PREPARE = "PREPARE"
    #: make it so
    COMMIT = "COMMIT"
    #: let go of it
    ABORT = "ABORT"


class TwoPhaseOutcome(StrEnum):
    #: the vote is yes, or it is done
    DONE = "DONE"
    #: the vote is no, nothing is held
    REFUSED = "REFUSED"
    #: an error; nothing was done, another attempt may succeed
    FAILED = "FAILED"
    #: a commit of what is not known here
    NO_SUCH_TRANSACTION = "NO_SUCH_TRANSACTION"


class State(StrEnum):
    """What a participant knows of a transaction, as stored in ``fluxora.prepared``."""

    #: promised: only the coordinator may end it
    PREPARED = "PREPARED"
    COMMITTED = "COMMITTED"
    #: it was refused here, or the coordinator aborted it (perhaps before its prepare came)
    ABORTED = "ABORTED"


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer to prepare; true if it is yes. A no is an answer, not an error."""

    yes: bool
    #: why not, for people
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.yes


YES = Vote(True)


def no(reason: str) -> Vote:
    return Vote(False, storable(reason))


class Participant(Protocol):
    """What endpoints, worker and sweep need of a participant; both managers are one.

    With ``connection`` the call belongs to the transaction that is open on it, and that is never committed here. A
    participant whose work cannot be part of another transaction (PREPARE TRANSACTION) uses one of its own: its
    effect is then durable when the call returns.
    """

    @property
    def service(self) -> str:
        """The name under which its rows are kept; services that share a database differ in it."""

    def prepare_payload(
        self, transaction_id: str, payload: Mapping[str, Any], *, connection: Connection | None = None
    ) -> Vote:
        """Vote on the work that ``payload`` describes. Raises InvalidChange, StillBusy."""

    def commit(self, transaction_id: str, *, connection: Connection | None = None) -> None:
        """Make the prepared work visible. Raises UnknownTransaction, TransactionEnded, StillBusy."""

    def abort(self, transaction_id: str, *, connection: Connection | None = None) -> None:
        """Let go of the prepared work, or remember that none may come. Raises TransactionEnded, StillBusy."""

    def undecided(self, older_than_s: float, limit: int) -> Sequence["Undecided"]:
        """Transactions that are PREPARED for at least so long, in no particular order."""

    def forget(self, older_than_s: float, limit: int = 10_000) -> int:
        """Delete the memory of transactions that ended so long ago; returns of how many."""


@dataclass(frozen=True, slots=True)
class Undecided:
    transaction_id: str
    #: seconds since it was prepared, by the database's clock
    age_s: float


def checked_id(transaction_id: object) -> str:
    """Return the id as it is stored: a UUID in its canonical spelling, any other text as it is.

    Raises:
        InvalidChange: not text, empty, too long, or not printable ASCII.
    """
    if isinstance(transaction_id, uuid.UUID):
        return str(transaction_id)
    if not isinstance(transaction_id, str):
        raise InvalidChange("transaction_id", f"must be a string, and is {type(transaction_id).__name__}")
    if not 0 < len(transaction_id) <= TRANSACTION_ID_LIMIT or not (
        transaction_id.isascii() and transaction_id.isprintable()
    ):
        raise InvalidChange("transaction_id", f"must be 1 to {TRANSACTION_ID_LIMIT} printable ASCII characters")
    try:
        return str(uuid.UUID(transaction_id))
    except ValueError:
        return transaction_id


def refusal(error: DBAPIError) -> str | None:
    """Say in words why the database refuses this work; None if the error is something else."""
    state: str = getattr(error.orig, "sqlstate", None) or ""
    if state in _CONTENTION:
        return "another transaction is at work on the same rows"
    if not state.startswith(_REFUSALS):
        return None
    diagnosis = getattr(error.orig, "diag", None)
    told = [getattr(diagnosis, name, None) for name in ("message_primary", "message_detail")]
    return "; ".join(text for text in told if text) or str(error.orig)


def is_contention(error: DBAPIError) -> bool:
    """Tell whether somebody else's lock is the cause."""
    return getattr(error.orig, "sqlstate", None) in _CONTENTION


@dataclass(frozen=True, slots=True)
class ParticipantCommand:
    """One attempt to have a Kafka participant prepare, commit or abort. A second copy has the same ``command_id``."""

    command_id: str
    transaction_id: uuid.UUID
    participant: str
    operation: TwoPhaseOperation
    #: from 1
    attempt: int
    #: what the participant was added with, parsed
    payload: Any
    #: W3C Trace Context of whoever sent it
    traceparent: str | None = None

    @property
    def final(self) -> bool:
        """There is no last attempt: a commit or abort is repeated until it succeeds."""
        return False

    @property
    def name(self) -> str:
        return self.participant


def command_from(record: Mapping[str, Any], traceparent: str | None = None) -> ParticipantCommand:
    """Build the command from its Avro record; ValueError or KeyError if it breaks a rule of ours."""
    command_id = record["command_id"]
    if not command_id or "\x00" in command_id or len(command_id) > ID_LIMIT:
        raise ValueError(f"command_id is empty, over {ID_LIMIT} characters, or holds a NUL: it cannot be a key")
    return ParticipantCommand(
        command_id=command_id,
        transaction_id=uuid.UUID(record["transaction_id"]),
        participant=record["participant"],
        operation=TwoPhaseOperation(record["operation"]),
        attempt=record["attempt"],
        payload=orjson.loads(record["payload"]),
        traceparent=traceparent,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What one command came to."""

    outcome: TwoPhaseOutcome
    reason: str | None = None


def reply_record(command: ParticipantCommand, answer: Answer) -> dict[str, Any]:
    """Return the Avro record of a reply."""
    return {
        "transaction_id": str(command.transaction_id),
        "command_id": command.command_id,
        "participant": command.participant,
        "operation": command.operation.value,
        "attempt": command.attempt,
        "outcome": answer.outcome.value,
        "reason": answer.reason,
    }


def perform(participant: Participant, connection: Connection, command: ParticipantCommand) -> Answer:
    """Do what the command asks, in the transaction that is open on ``connection``; return what it came to.

    Whatever else it raises is the participant's own failure: the caller rolls the transaction back.
    """
    transaction_id = str(command.transaction_id)
    try:
        match command.operation:
            case TwoPhaseOperation.PREPARE:
                vote = participant.prepare_payload(transaction_id, command.payload, connection=connection)
                return Answer(TwoPhaseOutcome.DONE if vote else TwoPhaseOutcome.REFUSED, vote.reason)
            case TwoPhaseOperation.COMMIT:
                participant.commit(transaction_id, connection=connection)
            case TwoPhaseOperation.ABORT:
                participant.abort(transaction_id, connection=connection)
    except UnknownTransaction as error:
        return Answer(TwoPhaseOutcome.NO_SUCH_TRANSACTION, storable(str(error)))
    except StillBusy as error:
        # Not a no: a copy of this prepare may be about to come to a yes.
        return Answer(TwoPhaseOutcome.FAILED, storable(str(error)))
    except TwoPhaseError as error:
        # A prepare that breaks a rule is a no; a commit or abort that cannot be done yet is asked for again.
        refused = command.operation is TwoPhaseOperation.PREPARE
        return Answer(TwoPhaseOutcome.REFUSED if refused else TwoPhaseOutcome.FAILED, storable(str(error)))
    return Answer(TwoPhaseOutcome.DONE)
