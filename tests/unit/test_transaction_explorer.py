"""Every world that a two-phase commit can get into, visited: the coordinator's machine times its participants.

A world is the coordinator's state, the participants' states, and the commands that ever left. Messages are never taken
away, so each may arrive at any time, any number of times, in any order, or never: loss, duplicates, reordering, a
broker that delivers late and a relay that calls twice are all the same here. So are crashes: what a participant or the
coordinator has decided is durable before anything leaves (one transaction each), hence a crash is a message that does
not leave yet, or leaves again. Timers fire whenever they are set, in any order, which is more than a clock could do.
Bounded is only the number of attempts, so that the search ends; the suffix without faults has no bound.
"""

from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum, auto
from typing import ClassVar, NamedTuple

import pytest

from saga_processors.machine import DeadlinePassed, Request
from saga_processors.transaction import (
    UNDECIDED,
    AskParticipant,
    Input,
    Operation,
    Outcome,
    ParticipantReplied,
    Transaction,
    TransactionStarted,
    TransactionState,
    VerbRequested,
    advance,
)
from saga_processors.transaction_definition import Policy
from tests.unit.transaction_samples import transaction_of

POLICY = Policy(attention_after=2, jitter=0.0)
FAR = 10**12


class Held(IntEnum):
    """What a participant's own database says of the transaction."""

    NOTHING = auto()
    #: Voted yes; the resource is held.
    PREPARED = auto()
    #: Voted no, and remembers it.
    REFUSED = auto()
    COMMITTED = auto()
    #: Let go of what it held.
    ABORTED = auto()
    #: Was told to abort before it was asked; remembers it, so that the late prepare is refused.
    ABORTED_UNASKED = auto()


class Coordinator:
    """A state of the machine without its times; there is one object for each, which knows what inputs lead to."""

    _all: ClassVar[dict[Transaction, "Coordinator"]] = {}

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.after: dict[Input | int | None, tuple[Coordinator, frozenset[AskParticipant]]] = {}
        self.decision: str | None = "abort"
        if transaction.state in UNDECIDED:
            self.decision = None
        elif transaction.state in (TransactionState.COMMITTING, TransactionState.COMMITTED):
            self.decision = "commit"

    @classmethod
    def of(cls, transaction: Transaction) -> "Coordinator":
        same = timeless(transaction)
        return cls._all.setdefault(same, cls(same))

    def put(self, event: Input | int | None) -> "tuple[Coordinator, frozenset[AskParticipant]]":
        """Fold an input; a number: participant's timer, and no other, fires; ``None``: the transaction's own."""
        if event not in self.after:
            transaction, input = self.transaction, event
            if event is None:
                transaction, input = replace(transaction, timeout_at=0), DeadlinePassed(0)
            elif isinstance(event, int):
                participants = list(transaction.participants)
                field = "timeout_at" if participants[event].timeout_at is not None else "retry_at"
                participants[event] = replace(participants[event], **{field: 0})  # type: ignore[arg-type]
                transaction, input = replace(transaction, participants=tuple(participants)), DeadlinePassed(0)
            decision = advance(transaction, input, 0)  # type: ignore[arg-type]
            assert decision.machine is not None
            left = frozenset(effect for effect in decision.effects if isinstance(effect, AskParticipant))
            self.after[event] = Coordinator.of(decision.machine), left
        return self.after[event]

    def __str__(self) -> str:
        each = [f"{p.state}{p.attempt}" for p in self.transaction.participants]
        return f"{self.transaction.state}({' '.join(each)})"


class World(NamedTuple):
    coordinator: Coordinator
    participants: tuple[Held, ...]
    commands: frozenset[AskParticipant]

    def __str__(self) -> str:
        return f"{self.coordinator}, {[held.name for held in self.participants]}"


class Torn(AssertionError):
    """A rule that must hold in every world does not."""


def receive(held: Held, operation: Operation, *, remembers: bool) -> tuple[Held, ...]:
    """What may become of a participant when a command reaches it; one that ``remembers`` is as ours are."""
    match operation, held:
        case Operation.PREPARE, Held.NOTHING:
            return Held.PREPARED, Held.REFUSED
        case Operation.PREPARE, Held.ABORTED_UNASKED if not remembers:
            return (Held.PREPARED,)
        case Operation.COMMIT, Held.PREPARED | Held.COMMITTED:
            return (Held.COMMITTED,)
        case Operation.ABORT, Held.NOTHING:
            return (Held.ABORTED_UNASKED,)
        case Operation.ABORT, Held.PREPARED:
            return (Held.ABORTED,)
        case (Operation.COMMIT, _) | (Operation.ABORT, Held.COMMITTED):
            raise Torn(f"{operation} reached a participant that is {held}")
    return (held,)


#: Answers that a participant in this state gives now, or gave before and that are still on their way.
ANSWERS: dict[tuple[Operation, Held], tuple[Outcome, ...]] = {
    (Operation.PREPARE, Held.PREPARED): (Outcome.DONE,),
    (Operation.PREPARE, Held.COMMITTED): (Outcome.DONE,),
    (Operation.PREPARE, Held.ABORTED): (Outcome.DONE, Outcome.REFUSED),
    (Operation.PREPARE, Held.ABORTED_UNASKED): (Outcome.REFUSED,),
    (Operation.PREPARE, Held.REFUSED): (Outcome.REFUSED,),
    (Operation.COMMIT, Held.COMMITTED): (Outcome.DONE,),
    (Operation.ABORT, Held.ABORTED): (Outcome.DONE,),
    (Operation.ABORT, Held.ABORTED_UNASKED): (Outcome.DONE,),
    (Operation.ABORT, Held.REFUSED): (Outcome.DONE,),
}


def timeless(transaction: Transaction) -> Transaction:
    """Worlds that differ only in when things happened are one: a timer is set, or it is not."""

    def timer(at: int | None) -> int | None:
        return None if at is None else FAR

    participants = tuple(
        replace(p, timeout_at=timer(p.timeout_at), retry_at=timer(p.retry_at), reason=None)
        for p in transaction.participants
    )
    return replace(
        transaction,
        participants=participants,
        updated_at=0,
        timeout_at=timer(transaction.timeout_at),
        reason=None,
        events=0,
    )


def fold(world: World, event: Input | int | None) -> World:
    coordinator, left = world.coordinator.put(event)
    commands = world.commands if left <= world.commands else world.commands | left
    return World(coordinator, world.participants, commands)


def arrive(world: World, command: AskParticipant, held: Held) -> World:
    i = command.participant
    participants = (*world.participants[:i], held, *world.participants[i + 1 :])
    return World(world.coordinator, participants, world.commands)


def reply(world: World, command: AskParticipant, outcome: Outcome) -> World:
    name = world.coordinator.transaction.participants[command.participant].definition.service_name
    return fold(world, ParticipantReplied(name, command.operation, command.attempt, outcome))


VERBS = [VerbRequested(request) for request in (Request.PREPARE, Request.COMMIT, Request.ABORT)]


def successors(world: World, *, attempts: int, remembers: bool) -> Iterator[World]:
    transaction = world.coordinator.transaction
    for verb in VERBS:
        yield fold(world, verb)
    if transaction.timeout_at is not None:
        yield fold(world, None)
    for i, p in enumerate(transaction.participants):
        if p.timeout_at is not None or (p.retry_at is not None and p.attempt < attempts):
            yield fold(world, i)
    for command in world.commands:
        held = world.participants[command.participant]
        for after in receive(held, command.operation, remembers=remembers):
            if after is not held:
                yield arrive(world, command, after)
        for outcome in (*ANSWERS.get((command.operation, held), ()), Outcome.UNKNOWN):
            yield reply(world, command, outcome)


def check(world: World) -> None:
    """What holds in every world."""
    transaction = world.coordinator.transaction
    held, state = set(world.participants), transaction.state
    if Held.COMMITTED in held and not held <= {Held.COMMITTED, Held.PREPARED}:
        raise Torn(f"one has committed and another one has not, and will not: {world}")
    if Held.COMMITTED in held and world.coordinator.decision != "commit":
        raise Torn(f"committed without a decision: {world}")
    if state is TransactionState.COMMITTED and held - {Held.COMMITTED}:
        raise Torn(f"COMMITTED, but not everywhere: {world}")
    if state is TransactionState.ABORTED and Held.PREPARED in held:
        raise Torn(f"ABORTED, but something is held: {world}")
    if (transaction.next_deadline is None) != transaction.ended:
        raise Torn(f"no way out while nobody says anything: {world}")


def suffix(world: World, *, yes: bool = True) -> World:
    """One step without a fault: what was sent arrives, is answered, and the answer arrives; else the clock runs."""
    transaction = world.coordinator.transaction
    for command in sorted(world.commands, key=lambda c: (c.participant, c.operation, c.attempt)):
        p = transaction.participants[command.participant]
        current = {
            TransactionState.PREPARING: Operation.PREPARE,
            TransactionState.COMMITTING: Operation.COMMIT,
            TransactionState.ABORTING: Operation.ABORT,
        }.get(transaction.state)
        if command.operation is not current or command.attempt != p.attempt or not p.may_hold or p.retry_at is not None:
            continue
        if transaction.state is TransactionState.PREPARING and p.state != "PREPARING":
            continue
        after = receive(world.participants[command.participant], command.operation, remembers=True)[0 if yes else -1]
        there = arrive(world, command, after)
        return reply(there, command, ANSWERS[command.operation, after][-1])
    for i, p in enumerate(transaction.participants):
        if p.retry_at is not None or p.timeout_at is not None:
            return fold(world, i)
    return fold(world, None)


def start(names: str, *, auto_commit: bool) -> World:
    begun = advance(None, TransactionStarted(transaction_of(*names, auto_commit=auto_commit, policy=POLICY)), 0)
    assert begun.machine is not None
    return World(Coordinator.of(begun.machine), (Held.NOTHING,) * len(names), frozenset())


def explore(first: World, *, attempts: int = 2, remembers: bool = True) -> set[World]:
    """Every world that can be reached, breadth first; raises Torn at the first one that breaks a rule."""
    seen = {first}
    frontier = [first]
    while frontier:
        following = []
        for world in frontier:
            for after in successors(world, attempts=attempts, remembers=remembers):
                check_step(world, after)
                if after not in seen:
                    check(after)
                    seen.add(after)
                    following.append(after)
        frontier = following
    return seen


def check_step(world: World, after: World) -> None:
    """What holds of every step."""
    if world.coordinator.decision not in (None, after.coordinator.decision):
        raise Torn(f"the decision has changed: {world} -> {after}")


@pytest.mark.parametrize("auto_commit", [False, True])
@pytest.mark.parametrize(("names", "attempts"), [("a", 3), ("ab", 2), ("abc", 1)])
def test_no_world_is_torn_no_decision_changes_and_every_one_ends(names: str, attempts: int, auto_commit: bool) -> None:
    worlds = explore(start(names, auto_commit=auto_commit), attempts=attempts)
    passed_through = {TransactionState.PREPARED} if auto_commit else set()
    assert {world.coordinator.transaction.state for world in worlds} == set(TransactionState) - passed_through
    assert {held for world in worlds for held in world.participants} == set(Held)
    ends: set[World] = set()
    for world in worlds:
        path: list[World] = []
        while not world.coordinator.transaction.ended and world not in ends:
            assert len(path) < 100, f"a suffix without faults does not end: {path[0]}"
            path.append(world)
            world = suffix(world)
            check(world)
            check_step(path[-1], world)
        ends.update(path)


@pytest.mark.parametrize("names", ["", "a", "ab", "abc"])
def test_with_all_yes_and_no_fault_everybody_commits(names: str) -> None:
    world = fold(start(names, auto_commit=True), VerbRequested(Request.PREPARE))
    while not world.coordinator.transaction.ended:
        world = suffix(world)
    assert world.coordinator.transaction.state is TransactionState.COMMITTED
    assert set(world.participants) <= {Held.COMMITTED}


def test_with_one_no_and_no_fault_nobody_commits_and_nothing_is_held() -> None:
    world = fold(start("ab", auto_commit=True), VerbRequested(Request.PREPARE))
    world = suffix(world)
    while not world.coordinator.transaction.ended:
        world = suffix(world, yes=False)
    assert world.coordinator.transaction.state is TransactionState.ABORTED
    assert set(world.participants) == {Held.ABORTED, Held.REFUSED}


def test_the_search_finds_what_a_participant_without_memory_of_the_abort_leaves_behind() -> None:
    """It can fail: a late prepare after the abort holds something for ever."""
    with pytest.raises(Torn, match="something is held"):
        explore(start("ab", auto_commit=False), remembers=False)


@pytest.mark.parametrize("state", [TransactionState.PREPARED, TransactionState.ABORTING])
def test_the_search_finds_a_coordinator_whose_decision_is_not_durable(state: TransactionState) -> None:
    """It can fail: a crash after the first commit command left, and the decision is taken anew, or is another one."""

    def crash(world: World) -> World:
        forgotten = replace(world.coordinator.transaction, state=state)
        return World(Coordinator.of(forgotten), world.participants, world.commands)

    worlds = explore(start("ab", auto_commit=False), attempts=1)
    deciding = [world for world in worlds if world.coordinator.transaction.state is TransactionState.COMMITTING]
    for world in deciding:
        with pytest.raises(Torn, match="decision has changed"):
            check_step(world, crash(world))
    half_done = next(world for world in deciding if len(set(world.participants)) == 2)
    with pytest.raises(Torn, match=r"reached a participant|one has committed|without a decision"):
        explore(crash(half_done), attempts=1)
