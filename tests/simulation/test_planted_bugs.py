"""The simulator finds what is planted: each of these platforms is wrong in one place, and does not survive for long."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from participant import barrier
from saga_processors import processor as processor_module
from saga_processors.machine import DeadlinePassed, Decision, Verdict
from saga_processors.machines import Effect, Input, Machine, advance
from saga_processors.partition import PartitionPosition, Record
from saga_processors.processor import Processor
from saga_processors.saga import Operation as StepOperation
from saga_processors.saga import SendCommand
from saga_processors.store import BatchWrite, Moves, Unpublished
from saga_processors.transaction import (
    AskParticipant,
    Operation,
    Outcome,
    ParticipantReplied,
    Transaction,
    TransactionState,
)
from tests.simulation.database import Session
from tests.simulation.running import find, quietly
from tests.simulation.services import Promise, Resources
from tests.simulation.world import Parts

#: Worlds within which each must be found.
WORLDS = 400


def found_rule(parts: Parts) -> str:
    with quietly():
        found = find(range(WORLDS), parts, shrink=False)
    assert found is not None, f"not found in {WORLDS} worlds"
    return repr(found.error)


# ── The processor ─────────────────────────────────────────────────────────────────────────────────────────────


class PublishesFirst(Processor):
    """Acts, then persists."""

    async def _fold(self, records: list[Record]) -> None:
        processor, store = self, self._store

        class Eager:
            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            async def commit(self, batch: BatchWrite) -> None:
                for row in batch.journal:
                    id = row.transaction_id or ""
                    entry = batch.created.get(id) or batch.changed.get(id, (None,))[0]
                    if row.effects and entry is not None and entry.machine is not None:
                        again = Unpublished(row.offset, id, row.effects, row.at, entry.machine)
                        await processor._publisher.publish(processor._effects(again))
                await store.commit(batch)

        self._store = Eager()  # type: ignore[assignment]
        try:
            await super()._fold(records)
        finally:
            self._store = store


class WaitsForNothing(Processor):
    """Does not look whether the effects of the batch before have left."""

    async def _settle(self) -> None:
        self._leaving = None


class NeverRepublishes(Processor):
    async def _republish(self, position: PartitionPosition) -> None:
        position.published_through = position.next_offset
        await self._store.set_published([position])


class TakesPublishedForGranted(Processor):
    """Moves published_through with the decision, not after its effects have left."""

    async def _fold(self, records: list[Record]) -> None:
        for record in records:
            self._positions[record.partition].published_through = record.offset + 1
        await super()._fold(records)


class FillsNoGap(Processor):
    """Takes what Faust delivers for all there is."""

    async def _fill(self, partition: int, end: int) -> None:
        self._positions[partition].next_offset = end
        self._store._database.partitions[partition].next_offset = end  # type: ignore[attr-defined]


class AcknowledgesFirst(Session):
    """The partition has moved, durably, before what was decided is stored."""

    async def begin(self, moves: Moves, ids: Sequence[str], unparking: str | None = None) -> Any:
        loaded = await super().begin(moves, ids, unparking)
        for partition, (_, next_offset) in moves.items():
            self._database.partitions[partition].next_offset = next_offset
        return loaded


class ComparesNothing(Session):
    """Two processors may believe that they own a partition."""

    def check(self, moves: Moves) -> None:
        pass


class ForgetsRequests(Session):
    """A second copy of a request is decided anew."""

    async def answered(self, request_ids: Sequence[str]) -> set[tuple[str, str]]:
        return set()


# ── The machines ──────────────────────────────────────────────────────────────────────────────────────────────

_Advance = Callable[[Machine | None, Input, int], Decision[Machine, Effect]]


def commits_before_it_has_decided(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    decision = advance(machine, event, at)
    after = decision.machine
    if not isinstance(after, Transaction) or after.state is not TransactionState.PREPARED or not decision.effects:
        return decision
    early = tuple(AskParticipant(i, Operation.COMMIT, 1) for i in range(len(after.participants)))
    return replace(decision, effects=(*decision.effects, *early))


def aborts_after_it_has_decided(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    """Its timeout is still there."""
    if (
        isinstance(machine, Transaction)
        and isinstance(event, DeadlinePassed)
        and machine.state is TransactionState.COMMITTING
        and at >= machine.vote_by
    ):
        undecided = replace(machine, state=TransactionState.PREPARED, timeout_at=machine.vote_by)
        return advance(undecided, DeadlinePassed(max(event.due_at, machine.vote_by)), at)
    return advance(machine, event, at)


def forgets_whom_to_abort(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    """Those that have not voted are taken for holding nothing."""
    decision = advance(machine, event, at)
    after = decision.machine
    if isinstance(machine, Transaction) and isinstance(after, Transaction) and after.state is TransactionState.ABORTING:
        before = machine.participants
        unheard = [i for i, p in enumerate(before) if p.state == "PREPARING" and p.may_hold]
        participants = tuple(
            replace(p, may_hold=False, timeout_at=None, retry_at=None) if i in unheard else p
            for i, p in enumerate(after.participants)
        )
        effects = tuple(e for e in decision.effects if not (isinstance(e, AskParticipant) and e.participant in unheard))
        if any(p.may_hold for p in participants):
            return replace(decision, machine=replace(after, participants=participants), effects=effects)
    return decision


def calls_nobody_when_in_doubt(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    """A participant that does not know what it has promised is asked again, and people are not told."""
    if isinstance(event, ParticipantReplied) and event.outcome is Outcome.NO_SUCH_TRANSACTION:
        event = replace(event, outcome=Outcome.UNKNOWN)
    return advance(machine, event, at)


def loses_compensations(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    """Decides to undo, and tells nobody."""
    decision = advance(machine, event, at)
    undoing = [e for e in decision.effects if isinstance(e, SendCommand) and e.operation is StepOperation.COMPENSATION]
    if not undoing:
        return decision
    return replace(decision, effects=tuple(e for e in decision.effects if e not in undoing))


def folds_the_first_input_again(machine: Machine | None, event: Input, at: int) -> Decision[Machine, Effect]:
    decision = advance(machine, event, at)
    if decision.verdict is Verdict.IGNORED and decision.reason == "the saga has begun already":
        return advance(None, event, at)
    return decision


# ── The participants ──────────────────────────────────────────────────────────────────────────────────────────


def without_a_barrier(step: barrier.Step, operation: Any) -> barrier.Decision:
    return barrier.Decision.RUN


def without_a_tombstone(step: barrier.Step, operation: Any) -> barrier.Decision:
    """A compensation that comes first leaves nothing, and the late action runs."""
    decision = barrier.decide(step, operation)
    return barrier.Decision.UNDONE if decision is barrier.Decision.CANCEL else decision


class ForgetsTheAbort(Resources):
    """An abort that comes first leaves nothing, and the late prepare holds what nobody lets go."""

    def _abort(self, t: Any, id: str) -> None:
        if t.get("prepared", id) is not None:
            super()._abort(t, id)


class LetsGoByItself(Resources):
    """Gives up what it has promised, as if a time of its own were over."""

    def _commit(self, t: Any, id: str) -> None:
        known: Promise | None = t.get("prepared", id)
        if known is not None and self._now() - (t.get("prepared_at", id) or 0) > 2_000:
            self._abort(t, id)
        super()._commit(t, id)


class HoldsNothing(Resources):
    """Votes yes and forgets it."""

    def _prepare(self, t: Any, id: str, wanted: Sequence[str]) -> Any:
        vote = super()._prepare(t, id, wanted)
        t.delete("prepared", id)
        return vote


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        (Parts(processor=PublishesFirst), "was not decided"),
        (Parts(processor=WaitsForNothing), "what was decided leaves|everything ends"),
        (Parts(processor=NeverRepublishes), "what was decided leaves|everything ends"),
        (Parts(processor=TakesPublishedForGranted), "what was decided leaves|everything ends"),
        (Parts(processor=FillsNoGap), "everything ends|KeyError|what was accepted|rebuild"),
        (Parts(session=AcknowledgesFirst), "everything ends|KeyError|what was accepted|rebuild"),
        (Parts(session=ComparesNothing), "folded twice"),
        (Parts(session=ForgetsRequests), "rebuild"),
        (Parts(decide=without_a_barrier), "an effect happens once|ran twice|undone once|never ran"),
        (Parts(decide=without_a_tombstone), "stands"),
        (Parts(resources=ForgetsTheAbort), "nothing is held"),
        (Parts(resources=LetsGoByItself), "a promise is broken|everything ends"),
        (Parts(resources=HoldsNothing), "everything ends"),
        (Parts(stores_offsets_first=True), "everything ends|what was accepted"),
    ],
    ids=lambda value: _name(value) if isinstance(value, Parts) else "",
)
def test_a_platform_that_is_wrong_in_one_place_is_found_out(parts: Parts, rule: str) -> None:
    assert re.search(rule, found_rule(parts))


def _name(parts: Parts) -> str:
    return next(str(getattr(v, "__name__", k)) for k, v in vars(parts).items() if v != getattr(Parts(), k))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (commits_before_it_has_decided, "a commit comes after a durable decision"),
        (aborts_after_it_has_decided, "a decision stands"),
        (forgets_whom_to_abort, "nothing is held"),
        (calls_nobody_when_in_doubt, "calls for attention"),
        (loses_compensations, "everything ends"),
        (folds_the_first_input_again, "leaves again is the same|an end is an end|there is one end"),
    ],
)
def test_a_machine_that_is_wrong_in_one_place_is_found_out(
    broken: _Advance, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_module, "advance", broken)
    assert re.search(rule, found_rule(Parts()))


def test_what_is_found_is_shrunk_to_the_faults_that_it_takes_and_replays_exactly() -> None:
    parts = Parts(processor=NeverRepublishes)
    with quietly():
        whole, found = find(range(WORLDS), parts, shrink=False), find(range(WORLDS), parts)
        again = find([found.seed], parts) if found else None
    assert whole is not None and found is not None and again is not None
    assert len(found.faults) <= len(whole.faults) / 3
    assert str(again) == str(found)
    assert f"FLUXORA_SIMULATION_SEED={found.seed}" in str(found)
