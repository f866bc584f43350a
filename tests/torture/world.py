"""What the platform and the services hold when all is over, as plain facts. Pure.

Nothing here comes from the history: a client that lies, or a harness that forgets, would be found as a difference.
"""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of ``transactions``."""

    id: str
    kind: Literal["saga", "transaction"]
    label: str
    state: str
    parked: bool = False
    needs_attention: bool = False
    #: What GET answers; none: it does not.
    shown: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Fold:
    """An input in the journal, and what it led to."""

    transaction_id: str
    offset: int
    verdict: str
    state: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One effect of a step, in the database of the service that ran it."""

    saga: str
    step: str
    operation: Literal["ACTION", "COMPENSATION"]
    at: float
    service: str


@dataclass(frozen=True, slots=True)
class Move:
    """Money that a committed transfer has moved in one vault."""

    label: str
    vault: str
    amount: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A row of the Outbox Service's ``messages``."""

    id: str
    label: str
    destination: str
    status: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A message as its destination got it, copies included; ``place`` rises in the order of receipt."""

    destination: str
    id: str
    place: int


@dataclass(frozen=True, slots=True)
class Consumed:
    """An effect of an event at its consumer; ``place`` rises in the order of the effects."""

    label: str
    stream: str
    number: int
    place: int


@dataclass(frozen=True, slots=True)
class OutboxRow:
    database: str
    id: str
    topic: str
    type: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that nobody can understand, and the topic in which it must be found again."""

    marker: str
    dead_letters: str


@dataclass(slots=True)
class World:
    stored: list[Stored] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    #: Promises that two-phase participants still hold, each told in words that name its transaction.
    promises: list[str] = field(default_factory=list)
    #: Operations that participants were sent, by transaction: PREPARE, COMMIT, ABORT. From the command topics.
    sent: dict[str, set[str]] = field(default_factory=dict)
    messages: list[Kept] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    #: Labels of events, and of sagas, whose rows committed in the publishing service's database.
    published: set[str] = field(default_factory=set)
    consumed: list[Consumed] = field(default_factory=list)
    rows: list[OutboxRow] = field(default_factory=list)
    #: The ids in each topic (``ce_id``).
    topics: dict[str, set[str]] = field(default_factory=dict)
    #: Topics into which only outboxes write: an id there that is in no outbox was never committed.
    outbox_only: set[str] = field(default_factory=set)
    poisons: list[Poison] = field(default_factory=list)
    #: Markers found, by dead letter topic.
    dead: dict[str, set[str]] = field(default_factory=dict)


_WORLD: TypeAdapter[World] = TypeAdapter(World)


def encode(world: World) -> bytes:
    return _WORLD.dump_json(world)


def decode(text: bytes) -> World:
    return _WORLD.validate_json(text)
