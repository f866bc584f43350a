"""What is recorded while it runs: what clients wanted, what they asked and saw, and the faults. Pure; JSON lines.

Times are seconds since the epoch, of the one machine that all of it runs on. A *label* is the client's own name for one
piece of work: it is in the saga's name, in the transfer's payload, in the message, so that the work is found again also
when no answer ever named an id.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter


@dataclass(frozen=True, slots=True)
class PlannedStep:
    name: str
    service: str
    http: bool = False
    depends_on: tuple[str, ...] = ()
    #: The service is told to refuse it.
    refuses: bool = False
    #: The service never compensates what is past it.
    kind: Literal["compensatable", "pivot", "retriable"] = "compensatable"


@dataclass(frozen=True, slots=True)
class SagaIntent:
    """A saga that a client is about to start."""

    label: str
    at: float
    steps: tuple[PlannedStep, ...]
    #: ``rest``, or ``outbox``: with a row of a service, in its own database transaction.
    way: Literal["rest", "outbox"] = "rest"
    #: No fault strikes while it runs, so it must end as it is planned.
    calm: bool = False
    line: Literal["saga"] = "saga"


@dataclass(frozen=True, slots=True)
class TransferIntent:
    """Money from one vault to others, as a two-phase commit."""

    label: str
    at: float
    #: (vault, amount); what leaves is negative.
    moves: tuple[tuple[str, int], ...]
    #: The client decides against it.
    withdrawn: bool = False
    auto_commit: bool = False
    calm: bool = False
    line: Literal["transfer"] = "transfer"


@dataclass(frozen=True, slots=True)
class MessageIntent:
    """A message to the Outbox Service; those of one lane are posted one after the other, ``number`` counts them."""

    label: str
    at: float
    destination: str
    lane: str
    number: int
    calm: bool = False
    line: Literal["message"] = "message"


@dataclass(frozen=True, slots=True)
class EventIntent:
    """A domain event that leaves with a service's own row; those of one stream one after the other."""

    label: str
    at: float
    stream: str
    number: int
    calm: bool = False
    line: Literal["event"] = "event"


@dataclass(frozen=True, slots=True)
class Answer:
    """One call, and what its client saw of it."""

    label: str
    #: ``create``, ``read``, or a verb: prepare, commit, abort, cancel.
    what: str
    asked: float
    #: When it was answered, or given up.
    answered: float
    #: Of HTTP; 201 for a database transaction that committed; none: no answer came, it may have been done.
    status: int | None = None
    #: Which the answer named.
    id: str | None = None
    #: The state in the answer, unless it tells of the moment of creation.
    state: str | None = None
    key: str | None = None
    error: str | None = None
    line: Literal["answer"] = "answer"

    @property
    def granted(self) -> bool:
        return self.status in (200, 201)


@dataclass(frozen=True, slots=True)
class Purse:
    """The money of one database in one snapshot of it: ``balance + aside - moved`` is what it began with."""

    at: float
    database: str
    first: int
    balance: int
    #: Set aside for transfers that are not decided.
    aside: int
    #: What committed transfers brought in, less what they took out.
    moved: int
    line: Literal["purse"] = "purse"


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was injected."""

    fault: str
    target: str
    began: float
    #: When all processes were ready again.
    ended: float
    told: str = ""
    #: The platform did with it what it must not, at once.
    wrong: str | None = None
    line: Literal["struck"] = "struck"


Intent = SagaIntent | TransferIntent | MessageIntent | EventIntent
Line = Annotated[
    SagaIntent | TransferIntent | MessageIntent | EventIntent | Answer | Purse | Struck, Field(discriminator="line")
]
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


@dataclass(slots=True)
class History:
    """All lines, by kind, each in the order in which they were recorded."""

    sagas: list[SagaIntent] = field(default_factory=list)
    transfers: list[TransferIntent] = field(default_factory=list)
    messages: list[MessageIntent] = field(default_factory=list)
    events: list[EventIntent] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    purses: list[Purse] = field(default_factory=list)
    strikes: list[Struck] = field(default_factory=list)

    def add(self, line: Line) -> None:
        match line:
            case SagaIntent():
                self.sagas.append(line)
            case TransferIntent():
                self.transfers.append(line)
            case MessageIntent():
                self.messages.append(line)
            case EventIntent():
                self.events.append(line)
            case Answer():
                self.answers.append(line)
            case Purse():
                self.purses.append(line)
            case Struck():
                self.strikes.append(line)

    def intents(self) -> list[Intent]:
        return [*self.sagas, *self.transfers, *self.messages, *self.events]

    def answers_of(self, label: str) -> list[Answer]:
        return [one for one in self.answers if one.label == label]


def encode(line: Line) -> bytes:
    return _LINE.dump_json(line)


def decode(lines: Iterable[bytes]) -> History:
    """Read what ``encode`` wrote. Raises pydantic's ValidationError."""
    history = History()
    for line in lines:
        history.add(_LINE.validate_json(line))
    return history
