"""What the machines share: the verdict on an input, the decision, and the inputs that every machine knows. Pure.

A machine is a frozen state and a function ``advance(state, input, at) -> Decision``; ``saga_processors.machines`` finds
the function for a state. Times are integer milliseconds of the log's clock.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

State = TypeVar("State", covariant=True)
Effect = TypeVar("Effect", covariant=True)


class Verdict(StrEnum):
    #: The transaction changed.
    APPLIED = "APPLIED"
    #: A duplicate, or too late to matter.
    IGNORED = "IGNORED"
    #: Illegal; the reason says why.
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class Decision(Generic[State, Effect]):
    """What one input led to."""

    #: The state after it; ``None`` when there is no such transaction.
    machine: State | None
    effects: tuple[Effect, ...]
    verdict: Verdict
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """Input: time has passed."""

    #: The deadline that passed, ms.
    due_at: int


@dataclass(frozen=True, slots=True)
class UnparkRequested:
    """Input: an operator asks that the inputs queued behind one that could not be folded be folded now.

    The processor does that, before this input comes to the machine, to which it says nothing: a fold of the log that
    never had to park the transaction comes to the same state.
    """


class Request(StrEnum):
    """What somebody may ask a transaction for (fluxora.RequestMade)."""

    #: Of a two-phase commit: take one more participant in.
    ADD_PARTICIPANT = "ADD_PARTICIPANT"
    #: Collect the votes.
    PREPARE = "PREPARE"
    COMMIT = "COMMIT"
    ABORT = "ABORT"
    #: Of a saga: turn round and undo.
    CANCEL = "CANCEL"
    #: Make the attempts that wait for their time now.
    RETRY = "RETRY"
    #: Take a step's action, or its compensation, for done.
    SKIP = "SKIP"
    #: Of either, when it is parked: fold its queued inputs.
    UNPARK = "UNPARK"
