"""Services on Kafka: what ``participant.batch`` and ``participant.resources`` do, with a database in memory.

The rules are the product's own: ``barrier.decide``, ``two_phase.perform``, ``Sweep``. The SQL around them is modelled:

- one local transaction a batch: inbox rows, barrier rows, the handlers' effects, what is held, and the replies as
  outbox rows are there together or not at all (``participant.batch``, lines 1 to 6); offsets are committed after it;
- what another worker has committed meanwhile makes the batch start again (unique keys and row locks do it there).

``Resources`` keeps the table of ``participant.two_phase``; ``test_simulation`` holds it against that table.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from participant import barrier, command, two_phase
from participant.command import Command, Operation, Outcome, Reply
from participant.two_phase import (
    YES,
    State,
    TransactionEnded,
    TwoPhaseOperation,
    Undecided,
    UnknownTransaction,
    Vote,
    no,
)
from tests.simulation.kafka import Consumer, Encoded, Group, Topic
from tests.simulation.schedule import ASLEEP, Life, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

_GONE = object()
_BATCH = 8


class LocalDatabase:
    """A service's own database: tables, and the outbox in the order of commits."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, Any], Any] = {}
        self.outbox: list[tuple[str, Encoded]] = []
        self.commits = 0
        #: Told of every commit that wrote to the outbox.
        self.wake_connector: Callable[[], None] = lambda: None

    def table(self, name: str) -> dict[Any, Any]:
        return {key: value for (table, key), value in self.rows.items() if table == name}


class LocalTransaction:
    """What is written is seen by itself at once, and by others after ``commit``."""

    def __init__(self, database: LocalDatabase) -> None:
        self._database = database
        self._seen = database.commits
        self._writes: dict[tuple[str, Any], Any] = {}
        self._outbox: list[tuple[str, Encoded]] = []
        self._told: list[Callable[[], None]] = []

    def get(self, table: str, key: Any) -> Any:
        found = self._writes.get((table, key), self._database.rows.get((table, key)))
        return None if found is _GONE else found

    def put(self, table: str, key: Any, value: Any) -> None:
        self._writes[table, key] = value

    def delete(self, table: str, key: Any) -> None:
        self._writes[table, key] = _GONE

    def publish(self, key: str, type: str, record: dict[str, Any]) -> None:
        """An outbox row."""
        self._outbox.append((key, Encoded(type, record)))

    def tell(self, happened: Callable[[], None]) -> None:
        """What is true from the commit on."""
        self._told.append(happened)

    def commit(self) -> bool:
        """False, and nothing is written, if somebody else has committed since it began."""
        database = self._database
        if database.commits != self._seen:
            return False
        database.commits += 1
        for key, value in self._writes.items():
            if value is _GONE:
                database.rows.pop(key, None)
            else:
                database.rows[key] = value
        for happened in self._told:
            happened()
        if self._outbox:
            database.outbox += self._outbox
            database.wake_connector()
        return True


@dataclass(frozen=True)
class Promise:
    """A row of ``fluxora.prepared``."""

    state: State
    resources: tuple[str, ...] = ()
    reason: str | None = None


class Resources:
    """A participant of two-phase commits: ``participant.resources`` with the SQL taken away."""

    def __init__(
        self,
        service: str,
        database: LocalDatabase,
        *,
        exists: Callable[[str], bool] = lambda resource: True,
        promised: Callable[[str], None] = lambda of: None,
        applied: Callable[[str], None] = lambda of: None,
        released: Callable[[str], None] = lambda of: None,
        now: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            exists: whether a change of the resource could be made.
            promised, applied, released: told once it is committed.
        """
        self.service = service
        self._database = database
        self._exists = exists
        self._promised, self._applied, self._released = promised, applied, released
        self._now = now

    def prepare_payload(self, transaction_id: str, payload: Mapping[str, Any], *, connection: Any = None) -> Vote:
        return self._within(connection, lambda t: self._prepare(t, transaction_id, payload["resources"]))

    def commit(self, transaction_id: str, *, connection: Any = None) -> None:
        self._within(connection, lambda t: self._commit(t, transaction_id))

    def abort(self, transaction_id: str, *, connection: Any = None) -> None:
        self._within(connection, lambda t: self._abort(t, transaction_id))

    def undecided(self, older_than_s: float, limit: int) -> Sequence[Undecided]:
        since = self._database.table("prepared_at")
        ages = {id: (self._now() - since[id]) / 1000 for id, p in self._promises() if p.state is State.PREPARED}
        return [Undecided(id, age) for id, age in ages.items() if age >= older_than_s][:limit]

    def forget(self, older_than_s: float, limit: int = 10_000) -> int:
        return 0

    def _promises(self) -> Sequence[tuple[str, Promise]]:
        return list(self._database.table("prepared").items())

    def _within(self, connection: Any, do: Callable[[LocalTransaction], Any]) -> Any:
        own = connection or LocalTransaction(self._database)
        answer = do(own)
        if connection is None:
            assert own.commit(), "nothing comes between within one call"
        return answer

    def _prepare(self, t: LocalTransaction, id: str, wanted: Sequence[str]) -> Vote:
        known: Promise | None = t.get("prepared", id)
        if known is not None and known.state is State.ABORTED:
            return no(known.reason or "the transaction was aborted here before")
        mine = () if known is None else known.resources
        added = [resource for resource in wanted if resource not in mine]
        if known is not None and not added:
            return YES
        if known is not None and known.state is State.COMMITTED:
            return no("the transaction is committed here and takes nothing more")
        for resource in added:
            holder = t.get("held", resource)
            reason = f"{resource} is held by {holder}" if holder else None if self._exists(resource) else "no such row"
            if reason is not None:
                if known is None:
                    # Final: a second copy of this call cannot take hold of anything later.
                    t.put("prepared", id, Promise(State.ABORTED, (), reason))
                return no(reason)
        for resource in added:
            t.put("held", resource, id)
        t.put("prepared", id, Promise(State.PREPARED, (*mine, *added)))
        t.put("prepared_at", id, self._now())
        t.tell(lambda: self._promised(id))
        return YES

    def _commit(self, t: LocalTransaction, id: str) -> None:
        known: Promise | None = t.get("prepared", id)
        if known is None:
            raise UnknownTransaction(id)
        if known.state is State.ABORTED:
            raise TransactionEnded(id, known.state, "commit")
        if known.state is State.PREPARED:
            self._end(t, id, known, State.COMMITTED)
            t.tell(lambda: self._applied(id))

    def _abort(self, t: LocalTransaction, id: str) -> None:
        known: Promise | None = t.get("prepared", id)
        if known is None:
            t.put("prepared", id, Promise(State.ABORTED))
            return
        if known.state is State.COMMITTED:
            raise TransactionEnded(id, known.state, "abort")
        if known.state is State.PREPARED:
            self._end(t, id, known, State.ABORTED)
            t.tell(lambda: self._released(id))

    def _end(self, t: LocalTransaction, id: str, known: Promise, state: State) -> None:
        for resource in known.resources:
            t.delete("held", resource)
        t.put("prepared", id, Promise(state, known.resources))

    # A database that was restored from a backup has lost what was promised since.

    def lose(self, id: str) -> None:
        """What was promised for a transaction, if it is still open."""
        lost: Promise | None = self._database.rows.get(("prepared", id))
        if lost is None or lost.state is not State.PREPARED:
            return
        del self._database.rows["prepared", id]
        self._database.rows["lost", id] = lost
        for resource in lost.resources:
            self._database.rows.pop(("held", resource), None)
        self._database.commits += 1

    def restore(self) -> None:
        """And finds it again."""
        for id, promise in self._database.table("lost").items():
            del self._database.rows["lost", id]
            self._database.rows.setdefault(("prepared", id), promise)


def resources_of(world: "World", name: str, database: LocalDatabase) -> Resources:
    """Those of a service of this world, whichever way it is called; they tell the history what they do."""
    history = world.history
    return world.parts.resources(
        name,
        database,
        exists=lambda resource: not world.chance.fault("votes no", f"{name}: {resource}", 0.1),
        promised=lambda of: history.promised(of, name),
        applied=lambda of: history.applied(of, name),
        released=lambda of: history.released(of, name),
        now=lambda: world.schedule.now,
    )


@dataclass
class KafkaService:
    """A service with the library's worker; perhaps with two workers that both believe they own all partitions."""

    world: "World"
    name: str
    workers: int
    database: LocalDatabase = field(default_factory=LocalDatabase)

    def __post_init__(self) -> None:
        world, name = self.world, self.name
        self.resources = resources_of(world, name, self.database)
        topic = world.topic(f"{name}.commands")
        self.groups = [Group(topic) for _ in range(self.workers)]
        self.processes = [self._worker(group, number, topic) for number, group in enumerate(self.groups)]

    def _worker(self, group: Group, number: int, topic: Topic) -> Process:
        process = Process(self.world.schedule, f"{self.name}/{number}", lambda: self._live(group))
        topic.subscribe(lambda partition: process.wake())
        return process

    def _live(self, group: Group) -> Life:
        consumer = Consumer(group)
        while True:
            batch = consumer.poll(_BATCH)
            if not batch:
                yield ASLEEP
                continue
            yield "has polled"
            while True:
                transaction = LocalTransaction(self.database)
                for record in batch:
                    self._handle(transaction, record.value)
                yield "before commit"
                if transaction.commit():
                    break
            yield "after commit"
            consumer.commit(batch[-1])

    def _handle(self, t: LocalTransaction, encoded: Encoded) -> None:
        record = encoded.record
        if t.get("inbox", record["command_id"]):
            return
        t.put("inbox", record["command_id"], True)
        failed = self.world.chance.fault("fails", f"{self.name}: {record['command_id']}", 0.15)
        if encoded.name == two_phase.COMMAND:
            self._two_phase(t, two_phase.command_from(record), failed=failed)
        else:
            asked = command.command_from(record)
            reply = Reply(Outcome.FAILED, reason="it failed") if failed else self._step(t, asked)
            t.publish(record["transaction_id"], command.REPLY, command.reply_record(asked, reply))

    def _two_phase(self, t: LocalTransaction, asked: two_phase.ParticipantCommand, *, failed: bool) -> None:
        id = str(asked.transaction_id)
        place = f"{self.name}: {id}"
        if asked.operation is TwoPhaseOperation.COMMIT and self.world.chance.fault("promise lost", place, 0.04):
            self.resources.lose(id)
        if failed:
            answer = two_phase.Answer(two_phase.TwoPhaseOutcome.FAILED, "it failed")
        else:
            answer = two_phase.perform(self.resources, t, asked)  # type: ignore[arg-type]
        t.publish(id, two_phase.REPLY, two_phase.reply_record(asked, answer))

    def _step(self, t: LocalTransaction, asked: Command) -> Reply:
        """As ``participant.batch._Walk._one``."""
        id, key = str(asked.transaction_id), (str(asked.transaction_id), asked.step)
        step: barrier.Step = t.get("barrier", key) or barrier.UNSEEN
        match self.world.parts.decide(step, asked.operation):
            case barrier.Decision.RUN if asked.operation is Operation.ACTION:
                self.world.check_payload(id, asked.step, asked.payload)
                if self.world.chance.fault("refuses", f"{self.name}: {asked.step} of {id}", 0.2):
                    refused = Reply(Outcome.REFUSED, reason="the business says no")
                    if not asked.must_succeed:
                        t.put("barrier", key, barrier.Step(Outcome.REFUSED, None, refused.reason))
                    return refused
                result = {"n": self.world.number(), "of": asked.step}
                done = Reply(Outcome.DONE, command.Json(json.dumps(result)))
                t.put("barrier", key, barrier.Step(Outcome.DONE, done.result))
                t.tell(lambda: self.world.history.ran(id, asked.step, result))
                return done
            case barrier.Decision.RUN:
                t.put("barrier", key, barrier.Step(step.action, step.result, step.reason, compensated=True))
                t.tell(lambda: self.world.history.undone(id, asked.step))
            case barrier.Decision.REPLAY:
                assert step.action is not None
                return Reply(step.action, step.result, step.reason)
            case barrier.Decision.TOO_LATE:
                return Reply(Outcome.REFUSED, reason="compensated before it arrived")
            case barrier.Decision.CANCEL:
                t.put("barrier", key, barrier.Step(Outcome.CANCELLED, compensated=True))
            case barrier.Decision.NOTHING:
                t.put("barrier", key, barrier.Step(step.action, step.result, step.reason, compensated=True))
        return Reply(Outcome.DONE)
