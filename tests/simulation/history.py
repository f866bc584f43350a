"""What really happened, and the rules that it must keep. A broken one raises ``Violation``, at once or at the end.

The participants tell of their effects, the coordinator's database of what it has stored, the publisher of what leaves.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saga_processors.machines import Machine
from saga_processors.records import command_id
from saga_processors.saga import TERMINAL as SAGA_ENDS
from saga_processors.saga import Saga, SagaState
from saga_processors.store import JournalRow
from saga_processors.transaction import TERMINAL as TRANSACTION_ENDS
from saga_processors.transaction import UNDECIDED, Transaction, TransactionState
from tests.unit.saga_samples import check_state

_COMMIT = {TransactionState.COMMITTING, TransactionState.COMMITTED}
_ABORT = {TransactionState.ABORTING, TransactionState.ABORTED}
_ENDS = {state.value for state in (*SAGA_ENDS, *TRANSACTION_ENDS)}
_END_EVENTS = {"SagaCompleted", "SagaFailed", "TransactionCommitted", "TransactionAborted"}


class Violation(AssertionError):
    """A rule is broken."""


def demand(holds: object, rule: str, *about: object) -> None:
    if not holds:
        raise Violation(rule + "".join(f"; {one}" for one in about))


@dataclass
class Effect:
    """What one step, or one participant, has done in the real world."""

    #: ms of each time.
    ran_at: list[int] = field(default_factory=list)
    undone_at: list[int] = field(default_factory=list)
    #: What the action answered.
    result: Any = None


class History:
    def __init__(self) -> None:
        self.now = lambda: 0
        #: By transaction and step, or service.
        self.effects: dict[tuple[str, str], Effect] = defaultdict(Effect)
        #: What the services hold for a transaction, by service.
        self.holding: dict[str, set[str]] = defaultdict(set)
        #: As it is stored.
        self.machines: dict[str, Machine] = {}
        #: Ids of what may leave.
        self._decided: set[str] = set()
        #: What has left, as it left first.
        self._left: dict[str, Any] = {}
        self.dead_letters: set[tuple[int, int]] = set()
        self._poison: set[tuple[int, int]] = set()
        #: Types of lifecycle events that were decided, in order.
        self.events: dict[str, list[str]] = defaultdict(list)
        self._last_state: dict[str, str] = {}
        #: Operations that an operator skipped: nobody knows what they did.
        self.skipped: set[tuple[str, str, str]] = set()

    # The coordinator's database

    def folded(self, row: JournalRow, *, twice: bool) -> None:
        """A journal row was committed."""
        demand(not twice, "an input is folded once", f"{row.partition}/{row.offset} was folded twice")
        demand(row.outcome != "PARKED", "the machine never raises", row.reason)
        id = row.transaction_id
        if row.outcome == "POISON":
            self._poison.add((row.partition, row.offset))
        if id is None or row.state is None:
            return
        before = self._last_state.get(id)
        if before in _ENDS:
            demand(row.state == before, "an end is an end", f"{id}: {before}, then {row.state}")
        if before in _COMMIT:
            demand(row.state in _COMMIT, "a decision stands", f"{id}: {before}, then {row.state}")
        if before in _ABORT:
            demand(row.state in _ABORT, "a decision stands", f"{id}: {before}, then {row.state}")
        self._last_state[id] = row.state
        if row.input_type == "fluxora.RequestMade" and row.outcome == "APPLIED" and row.input is not None:
            self._note_skip(id, row.input, row.effects or [])
        if row.input_type == "fluxora.ParticipantReplied" and row.outcome == "APPLIED" and row.input is not None:
            lost = row.input["outcome"] == "NO_SUCH_TRANSACTION" and row.input["operation"] == "COMMIT"
            if lost:
                told = [*self.events[id], *(effect.get("publish") for effect in row.effects or ())]
                demand(
                    "TransactionNeedsAttention" in told, "a participant that has lost its promise calls for attention"
                )

    def _note_skip(self, id: str, request: Mapping[str, Any], effects: list[dict[str, Any]]) -> None:
        if request["request"] == "SKIP":
            undoing = any(effect.get("publish") == "StepCompensated" for effect in effects[:1])
            self.skipped.add((id, request["step"], "COMPENSATION" if undoing else "ACTION"))

    def decided(self, row: JournalRow, machine: Machine) -> None:
        """What a journal row says may leave from now on."""
        id = row.transaction_id
        assert id is not None
        for effect in row.effects or ():
            self._decided.add(effect_id(id, machine, effect))
            if "publish" in effect:
                self.events[id].append(effect["publish"])

    def stored(self, id: str, before: Machine | None, after: Machine | None) -> None:
        """A state was committed."""
        assert after is not None
        self.machines[id] = after
        demand((after.next_deadline is None) == after.ended, "whoever stays silent, a timer runs", id, after)
        if isinstance(after, Saga):
            check_state(after)
        else:
            demand((after.timeout_at is not None) == (after.state in UNDECIDED), "an undecided one has a time", id)
            if after.state is TransactionState.ABORTED:
                demand(not self.holding[id], "ABORTED: nothing is held", id, self.holding[id])

    # The publisher

    def leaves(self, id: str, value: Any) -> None:
        """An effect leaves the processor."""
        demand(id in self._decided, "decide, persist, then act: an effect left that was not decided", id)
        demand(self._left.setdefault(id, value) == value, "an effect that leaves again is the same", id)

    def dead_lettered(self, partition: int, offset: int) -> None:
        demand((partition, offset) in self._poison, "only poison is dead-lettered", partition, offset)
        self.dead_letters.add((partition, offset))

    @property
    def unpublished(self) -> bool:
        """Whether something was decided and has not left."""
        return len(self._left) < len(self._decided) or len(self.dead_letters) < len(self._poison)

    # The services

    def ran(self, id: str, name: str, result: Any) -> None:
        effect = self.effects[id, name]
        demand(not effect.ran_at, "an effect happens once", f"{name} of {id} ran twice")
        effect.ran_at.append(self.now())
        effect.result = result

    def undone(self, id: str, name: str) -> None:
        effect = self.effects[id, name]
        demand(effect.ran_at, "a compensation comes after its action's effect", f"{name} of {id} never ran")
        demand(not effect.undone_at, "an effect is undone once", f"{name} of {id}")
        effect.undone_at.append(self.now())

    def promised(self, id: str, service: str) -> None:
        """A participant has voted yes."""
        state = self.machines[id].state
        demand(state is not TransactionState.ABORTED, "ABORTED: nothing is held", f"{service} promises for {id}")
        self.holding[id].add(service)

    def released(self, id: str, service: str) -> None:
        """A participant lets go of its promise."""
        if service in self.holding[id]:
            state = self.machines[id].state
            demand(state in _ABORT, "a promise is broken by a decision only", f"{service}, {id}: {state}")
            self.holding[id].discard(service)

    def applied(self, id: str, service: str) -> None:
        """A participant has committed."""
        state = self.machines[id].state
        demand(state in _COMMIT, "a commit comes after a durable decision", f"{service} commits {id}, which is {state}")
        self.ran(id, service, None)
        self.holding[id].discard(service)

    # The end

    def judge(self, started: Mapping[str, object]) -> None:
        for id in started:
            machine = self.machines.get(id)
            demand(machine is not None, "what was accepted is folded", id)
            assert machine is not None
            demand(machine.ended, "everything ends", id, machine)
            ends = [type for type in self.events[id] if type in _END_EVENTS]
            demand(len(ends) == 1, "there is one end", id, ends)
            if isinstance(machine, Saga):
                self._judge_saga(id, machine)
            else:
                self._judge_transaction(id, machine)
        missing = self._decided - self._left.keys()
        demand(not missing, "what was decided leaves", sorted(missing)[:3])
        demand(self._poison == self.dead_letters, "poison is dead-lettered", self._poison ^ self.dead_letters)

    def _judge_transaction(self, id: str, transaction: Transaction) -> None:
        committed = transaction.state is TransactionState.COMMITTED
        for participant in transaction.participants:
            service = participant.definition.service_name
            ran = len(self.effects[id, service].ran_at)
            demand(ran == committed, "all commit or none", f"{service} of {id}, {transaction.state}: {ran} times")
        demand(not self.holding[id], "in the end nothing is held", id, self.holding[id])

    def _judge_saga(self, id: str, saga: Saga) -> None:
        definition = saga.definition
        for i, step in enumerate(definition.steps):
            effect = self.effects[id, step.name]
            undo_skipped = (id, step.name, "COMPENSATION") in self.skipped
            ran, undone = len(effect.ran_at), len(effect.undone_at)
            if saga.state is SagaState.COMPLETED:
                demand(not undone, "COMPLETED: nothing is undone", id, step.name)
                demand(ran or (id, step.name, "ACTION") in self.skipped, "COMPLETED: all of it ran", id, step.name)
            elif step.over_http and step.kind == "PIVOT" and saga.steps[i].in_doubt:
                # One attempt may run while the service refuses another, unless it honours the Idempotency-Key, which
                # the services here do not; a pivot cannot be undone (docs/sagas.md, test_explorer's pivot over HTTP).
                continue
            elif not undo_skipped and not (step.over_http and step.compensation_endpoint is None):
                demand(undone == ran, "FAILED: all that ran is undone", id, f"{step.name} stands", saga)
            self._judge_order(id, saga, i, effect, undo_skipped=undo_skipped)

    def _judge_order(self, id: str, saga: Saga, i: int, effect: Effect, *, undo_skipped: bool) -> None:
        definition = saga.definition
        for j in definition.depends_on[i]:
            name = definition.steps[j].name
            before = self.effects[id, name]
            if effect.ran_at and before.ran_at and (id, name, "ACTION") not in self.skipped:
                demand(before.ran_at[0] <= effect.ran_at[0], "a step runs after what it needs", id, name)
            if effect.undone_at and before.undone_at and not undo_skipped:
                demand(effect.undone_at[0] <= before.undone_at[0], "what came last is undone first", id, name)


def effect_id(id: str, machine: Machine, effect: Mapping[str, Any]) -> str:
    """The ``ce_id`` of an effect as the journal has it."""
    if "publish" in effect:
        return f"{id}:{effect['sequence']}"
    if isinstance(machine, Saga):
        name = machine.definition.steps[effect["step"]].name
        return command_id(id, name, effect["send"], effect["attempt"])
    name = machine.participants[effect["participant"]].definition.service_name
    return command_id(id, name, effect["ask"], effect["attempt"])
