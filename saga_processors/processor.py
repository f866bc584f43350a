"""From inputs to decisions to effects: one batch at a time (DESIGN section 1; ARCHITECTURE.md, "The loop").

Faust delivers, this module verifies. What a crash does at each line of :meth:`Processor._fold` is written there.
"""

import asyncio
import re
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter, Histogram

from participant.crashpoint import crash_at
from saga_processors import codec as codecs
from saga_processors.definition import InvalidDefinition
from saga_processors.log import INPUT_TOPIC, InputLog, Publisher
from saga_processors.machine import DeadlinePassed, UnparkRequested, Verdict
from saga_processors.machines import Effect, Input, Machine, advance
from saga_processors.partition import Halted, PartitionPosition, Record
from saga_processors.partitioning import partition_of
from saga_processors.reason import describe
from saga_processors.records import KafkaRecord, from_ms, to_ms
from saga_processors.retention import may_be_pruned
from saga_processors.saga import SagaStarted
from saga_processors.store import BatchWrite, Entry, JournalRow, Moves, Store, Unpublished
from saga_processors.transaction import ParticipantAddRequested, Transaction, TransactionStarted
from saga_processors.transaction_definition import Policy
from schemas import Codec, RegistryUnavailable, UndecodableRecord

log = structlog.get_logger()

DLQ_TOPIC = f"{INPUT_TOPIC}.dlq"
#: Records between two queued inputs that are rather read over than sought past.
_GAP = 500
#: How far the clock's time may be ahead of the log's, ms.
_CLOCK_SKEW_MS = 24 * 3600 * 1000
_REQUEST = "fluxora.RequestMade"
#: RFC 9562, in lower case: one text for one id.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

FOLDED = Counter("fluxora_inputs_total", "Inputs folded", ["type", "outcome"])
SKIPPED = Counter("fluxora_inputs_redelivered_total", "Inputs that were folded already, skipped")
FILLED = Counter("fluxora_inputs_filled_total", "Inputs that Faust did not deliver, fetched by offset")
REPUBLISHED = Counter("fluxora_effects_republished_total", "Effects published again after a crash")
ATTENTION = Counter("fluxora_needs_attention_total", "Transactions that began to need attention", ["kind"])
BATCH = Histogram("fluxora_fold_inputs", "Inputs in a batch", buckets=(1, 2, 5, 10, 50, 100, 500, 1000))
BATCH_SECONDS = Histogram("fluxora_fold_seconds", "Time of a batch by part", ["part"])


@dataclass(frozen=True, slots=True)
class Decoded:
    """A record of the log, understood or not."""

    record: Record
    #: As far as it is known.
    transaction_id: str | None
    type: str
    #: The Avro record.
    body: dict[str, Any] | None
    input: Input | None
    #: Why it is poison.
    problem: str | None = None


@dataclass(slots=True)
class _Queue:
    """What waits for a parked transaction."""

    inputs: list[Decoded] = field(default_factory=list)
    #: Why not all of it can be read.
    gone: str | None = None


class Processor:
    """Folds the inputs of the partitions that this process owns.

    Any exception from it must end the process: it never goes past an input that is not folded.
    """

    def __init__(
        self,
        *,
        store: Store,
        codec: Codec,
        input_log: InputLog,
        publisher: Publisher,
        topic_id: str,
        partitions: int,
        batch_size: int,
        cache_size: int,
        max_steps: int,
        policy: Policy,
    ) -> None:
        self._store = store
        self._codec = codec
        self._log = input_log
        self._publisher = publisher
        self._topic_id = topic_id
        #: Of the input topic.
        self._partitions = partitions
        self._batch_size = batch_size
        self._cache_size = cache_size
        self._max_steps = max_steps
        self._policy = policy
        self._positions: dict[int, PartitionPosition] = {}
        #: Newest use last. True as long as the compare-and-set succeeds: nobody else folds these transactions.
        self._cache: dict[str, Entry] = {}
        #: What the partition rows say of ``published_through``; written with the next batch, or when idle.
        self._stored_published: dict[int, int] = {}
        #: When each partition last moved, or was seen to have nothing waiting; monotonic, seconds.
        self._moved_at: dict[int, float] = {}
        self._lock = asyncio.Lock()
        #: The latest batch's effects on their way.
        self._leaving: asyncio.Task[None] | None = None

    # ── Ownership ──────────────────────────────────────────────────────────────────────────────────────────

    async def adopt(self, partitions: Iterable[int]) -> None:
        """Take over partitions: what a predecessor decided and may not have published leaves first."""
        async with self._lock:
            for partition in partitions:
                await self._position(partition)

    async def drop(self, partitions: Iterable[int]) -> None:
        """Forget partitions that another process owns from now on, and all states, which may be of them."""
        async with self._lock:
            for partition in partitions:
                self._positions.pop(partition, None)
                self._stored_published.pop(partition, None)
            self._cache.clear()

    async def _position(self, partition: int) -> PartitionPosition:
        position = self._positions.get(partition)
        if position is None:
            position = await self._store.position(partition, self._topic_id)
            await self._republish(position)
            self._positions[partition] = position
            self._stored_published[partition] = position.published_through
            self._moved_at[partition] = time.monotonic()
        return position

    async def _republish(self, position: PartitionPosition) -> None:
        """Publish again from the journal what may not have left, if anything. A crash in here: it is done again.

        What cannot be made any more is withheld, with all that the same transaction decided after it, and the
        transaction is parked; the others of the partition go on.
        """
        rows = await self._store.unpublished(position)
        if not rows and position.published_through == position.next_offset:
            return
        await self._settle()
        records: list[KafkaRecord] = []
        kept: dict[str, list[tuple[Unpublished, str]]] = {}
        for row in rows:
            id = row.transaction_id or ""
            # Poison needs no machine: it leaves below.
            decides = any("dead_letter" not in stored for stored in row.effects)
            if decides and id in kept:
                kept[id].append((row, "an earlier one of this transaction is withheld"))
            elif decides and row.unreadable is not None:
                kept[id] = [(row, row.unreadable)]
            elif decides:
                try:
                    records += self._effects(row)
                except RegistryUnavailable:
                    raise
                except Exception as error:
                    log.error("withheld", transaction=id, offset=row.offset, error=traceback.format_exc())
                    kept[id] = [(row, describe(error))]
            for stored in row.effects:
                if "dead_letter" in stored:
                    [record] = await self._log.read(position.partition, row.offset, row.offset + 1)
                    records.append(_dead_letter(record, stored["dead_letter"]))
        await self._publisher.publish(records)
        REPUBLISHED.inc(len(records))
        log.info("republished", partition=position.partition, effects=len(records), since=position.published_through)
        if kept or any(row.offset < position.published_through for row in rows):
            await self._store.withhold(position, [one for of_one in kept.values() for one in of_one])
            for id in kept:
                self._cache.pop(id, None)
        position.published_through = position.next_offset
        await self._store.set_published([position])

    def _effects(self, row: Unpublished) -> list[KafkaRecord]:
        assert row.machine is not None and row.transaction_id is not None
        at, records = to_ms(row.at), []
        for stored in row.effects:
            if "dead_letter" not in stored:
                effect = codecs.effect_from_json(row.machine, stored)
                records.append(codecs.effect_to_record(self._codec, row.transaction_id, row.machine, effect, at))
        return records

    # ── Delivery ───────────────────────────────────────────────────────────────────────────────────────────

    async def handle(self, records: Sequence[Record]) -> None:
        """Fold ``records``, after any that are missing before them.

        When it returns, their decisions stand, and the effects of all batches but the last have left; those of the
        last are on their way (:meth:`settle`). What was folded before is skipped. The records of a partition come in
        order of offset.
        """
        async with self._lock:
            new: list[Record] = []
            reached: dict[int, int] = {}
            for record in records:
                partition = record.partition
                if partition not in reached:
                    reached[partition] = (await self._position(partition)).next_offset
                if record.offset < reached[partition]:
                    SKIPPED.inc()
                    continue
                if record.offset > reached[partition]:
                    # Faust has skipped records; those that stand before this one come first.
                    await self._fold_all(new)
                    new = []
                    await self._fill(partition, record.offset)
                new.append(record)
                reached[partition] = record.offset + 1
            await self._fold_all(new)

    async def settle(self) -> None:
        """Return when the effects of everything that was folded have left."""
        async with self._lock:
            await self._settle()

    async def catch_up(self, owned: Iterable[int], *, stuck_after: float) -> None:
        """Fold what stands in the log of a partition that has not moved for ``stuck_after`` seconds.

        Without it an input that Faust has skipped would wait until another one follows in its partition. While
        Faust is merely busy with other partitions this would read their inputs twice, hence the wait.
        """
        async with self._lock:
            await self._settle()
            if not self._positions:
                return
            now = time.monotonic()
            positions = {partition: self._positions[partition] for partition in owned if partition in self._positions}
            ends = await self._log.ends(list(positions))
            for partition, position in positions.items():
                if partition in ends and ends[partition] < position.next_offset:
                    raise Halted(
                        f"{INPUT_TOPIC}[{partition}] ends at {ends[partition]}, but inputs up to "
                        f"{position.next_offset} were folded: the topic was deleted and made again, or the brokers "
                        "have lost its end. New inputs would be taken for redeliveries."
                    )
                if partition not in ends or position.next_offset >= ends[partition]:
                    self._moved_at[partition] = now
                elif now - self._moved_at[partition] >= stuck_after:
                    log.warning("not delivered", partition=partition, offset=position.next_offset, end=ends[partition])
                    await self._fill(partition, ends[partition])
            unsaved = [
                position
                for partition, position in self._positions.items()
                if self._stored_published[partition] < position.published_through
            ]
            if unsaved:
                await self._store.set_published(unsaved)
                self._stored_published.update({p.partition: p.published_through for p in unsaved})

    async def _fill(self, partition: int, end: int) -> None:
        position = await self._position(partition)
        while position.next_offset < end:
            upto = min(end, position.next_offset + self._batch_size)
            records = await self._log.read(partition, position.next_offset, upto)
            FILLED.inc(len(records))
            await self._fold(records)

    async def _fold_all(self, records: list[Record]) -> None:
        for i in range(0, len(records), self._batch_size):
            await self._fold(records[i : i + self._batch_size])

    # ── The loop ───────────────────────────────────────────────────────────────────────────────────────────

    async def _fold(self, records: list[Record]) -> None:
        """Decide, persist, then act. ``records`` are the next ones of their partitions, without a gap.

        A crash before ``commit`` has returned: either nothing happened and the inputs come again, or the commit
        took place and it is as after it. After ``commit``, before the effects have left: the journal holds those at
        or above ``published_through``; whoever gets the partition publishes them first. After that, before the
        acknowledgement to Faust: the inputs come again, stand below ``next_offset`` and are skipped; at most two
        batches' effects leave twice, with the same ids.

        The effects leave while the next batch is folded, which waits for them before it sends its own: so effects
        leave in the order of the log, and no more than two batches are ever decided and not published.
        """
        if not records:
            return
        decoded = [self._decode(record) for record in records]
        unparks = [i for i, one in enumerate(decoded) if isinstance(one.input, UnparkRequested)]
        if any(unparks):
            # Each is the first of a batch: all that is queued is then in the journal.
            for start, end in pairwise([0, *filter(None, unparks), len(records)]):
                await self._fold(records[start:end])
            return
        queue = await self._queued(decoded[0]) if unparks else None
        moves = {r.partition: (self._positions[r.partition], r.offset + 1) for r in records}
        wanted = {d.transaction_id for d in decoded if d.transaction_id is not None}
        unknown = [id for id in wanted if id not in self._cache]
        BATCH.observe(len(records))
        published = {partition: position.published_through for partition, (position, _) in moves.items()}
        with BATCH_SECONDS.labels("begin").time():
            loaded = await self._store.begin(moves, unknown, None if queue is None else decoded[0].transaction_id)
            self._cache.update(loaded)
            # A request is decided once. The log may hold a second copy of it (Debezium delivers at least once), and
            # what was refused when the first one came, and the caller told so, must not be granted behind its back.
            requests = [
                d.body["request_id"]
                for d in [*(() if queue is None else queue.inputs), *decoded]
                if d.type == _REQUEST and d.body is not None
            ]
            answered = await self._store.answered(requests) if requests else set()
            old = [
                d.transaction_id
                for d in decoded
                if d.type in codecs.KINDS
                and d.transaction_id is not None
                and may_be_pruned(UUID(d.transaction_id), d.record.timestamp)
            ]
            over = await self._store.pruned(old) if old else {}
        with BATCH_SECONDS.labels("decide").time():
            write = BatchWrite(moves=moves, answered=answered, pruned=over)
            cannot = None if queue is None else self._refold(decoded[0], queue, write)
            effects = [kafka_record for d in decoded for kafka_record in self._decide(d, write)]
            if cannot is not None:
                # Whoever asked for it is told.
                write.journal[0].reason = cannot
        crash_at("processor.before_commit")
        with BATCH_SECONDS.labels("commit").time():
            await self._store.commit(write)
        crash_at("processor.after_commit")
        for (type, outcome), count in write.outcomes.items():
            FOLDED.labels(type, outcome).inc(count)
        self._stored_published.update(published)
        for position, next_offset in moves.values():
            self._moved_at[position.partition] = time.monotonic()
            position.next_offset = next_offset
        await self._settle()
        if write.unparked is None:
            self._leaving = asyncio.create_task(self._leave(moves, effects))
        else:
            # From the journal, as after a crash: what was folded late leaves before what came after it.
            for position, _ in moves.values():
                await self._republish(position)
        self._tidy_cache(write)
        for id, entry in loaded.items():
            if entry.partition not in moves:
                # A misrouted input named it. Its own partition may be another process's: what we know of it ages.
                self._cache.pop(id, None)

    async def _leave(self, moves: Moves, effects: Sequence[KafkaRecord]) -> None:
        with BATCH_SECONDS.labels("publish").time():
            await self._publisher.publish(effects)
        crash_at("processor.after_publish")
        for position, next_offset in moves.values():
            position.published_through = next_offset

    async def _settle(self) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            await leaving

    async def _queued(self, unpark: Decoded) -> _Queue:
        """The inputs that wait behind the one that parked the transaction, and that one, from the log.

        Nobody adds to them meanwhile: should another process own the partition by now, :meth:`Store.begin` says so.
        """
        id, partition = unpark.transaction_id, unpark.record.partition
        assert id is not None
        self._cache.pop(id, None)
        wanted = await self._store.queued(id, partition)
        found = _Queue()
        while wanted:
            several = [wanted[0]]
            for offset in wanted[1:]:
                if offset - several[-1] > _GAP or offset - several[0] >= self._batch_size:
                    break
                several.append(offset)
            wanted = wanted[len(several) :]
            try:
                records = await self._log.read(partition, several[0], several[-1] + 1)
            except Halted:
                found.gone = f"the log no longer holds input {partition}/{several[0]}, or one after it"
                break
            found.inputs += [self._decode(records[offset - several[0]]) for offset in several]
        return found

    def _refold(self, unpark: Decoded, queue: _Queue, write: BatchWrite) -> str | None:
        """Fold what was queued, as it would have been folded in its time; all of it, or nothing.

        Each at the log's time of its own, so that state and journal become what a fold of the log by a machine
        without the fault comes to (``fluxora rebuild``). It is as if the processors had been down for this transaction.

        Returns why it cannot be done: the transaction stays parked.
        """
        id = unpark.transaction_id
        assert id is not None
        entry = self._cache.pop(id, None)
        if entry is None or not entry.parked or entry.partition != unpark.record.partition:
            if entry is not None:
                self._cache[id] = entry
            return None
        cannot = entry.unreadable or queue.gone
        tried = BatchWrite(moves=write.moves, answered=set(write.answered))
        if cannot is None:
            if entry.machine is not None:
                self._cache[id] = replace(entry, parked=False)
            for one in queue.inputs:
                self._decide(one, tried)
                if tried.journal[-1].outcome == "PARKED":
                    at = f"{one.record.partition}/{one.record.offset}"
                    cannot = f"it is still not possible: input {at}: {tried.journal[-1].reason}"
                    break
        if cannot is not None:
            self._cache[id] = entry
            return cannot
        write.unparked, write.refolded = id, tried.journal
        write.created, write.changed, write.answered = tried.created, tried.changed, tried.answered
        write.outcomes.update(tried.outcomes)
        write.awaited.add(id)
        if id in self._cache and id not in write.created:
            # Parked it had no deadline.
            write.changed.setdefault(id, (self._cache[id], 0))
            write.rearmed.add(id)
        log.warning("unparked", transaction=id, inputs=len(queue.inputs), request=unpark.body)
        return None

    def _decode(self, record: Record) -> Decoded:
        """Understand a record. What cannot be understood is poison: it is dead-lettered, and the log goes on."""
        type, known_id = "?", None
        try:
            type, body = self._codec.decode(record.value)
            key = (record.key or b"").decode("utf-8", "replace")
            transaction_id = body.get("transaction_id")
            if not isinstance(transaction_id, str) or _UUID.fullmatch(transaction_id) is None:
                raise UndecodableRecord(f"transaction_id is not a UUID in lower case: {str(transaction_id)[:100]!r}")
            if key != transaction_id:
                raise UndecodableRecord(f"the key {key[:100]!r} is not the transaction_id {transaction_id}")
            known_id = transaction_id
            if type in codecs.KINDS and (home := partition_of(key.encode(), self._partitions)) != record.partition:
                # It would bind the transaction to a partition where none of its other inputs come.
                raise UndecodableRecord(f"misrouted: the key belongs to partition {home}; use partitioner murmur2")
            input = codecs.input_from_record(type, body, self._policy)
            match input:
                case SagaStarted():
                    input.definition.check(self._max_steps)
                case TransactionStarted():
                    input.definition.check()
                case ParticipantAddRequested():
                    input.participant.check()
                case DeadlinePassed() if input.due_at > record.timestamp + _CLOCK_SKEW_MS:
                    raise UndecodableRecord(f"due_at {input.due_at} lies in the log's future: no clock is that wrong")
        except (UndecodableRecord, InvalidDefinition, ValueError, KeyError, TypeError, RecursionError) as error:
            return Decoded(record, known_id, type, None, None, describe(error))
        return Decoded(record, transaction_id, type, body, input)

    def _decide(self, decoded: Decoded, write: BatchWrite) -> list[KafkaRecord]:
        """Fold one input; add to ``write`` what is to be stored, and return what is to leave."""
        record, id = decoded.record, decoded.transaction_id
        at = from_ms(record.timestamp)
        if id is None or decoded.problem is not None or decoded.input is None or decoded.body is None:
            return [self._poison(decoded, write, decoded.problem or "?")]
        entry = self._cache.pop(id, None)
        if entry is not None and entry.partition != record.partition:
            self._cache[id] = entry
            return [self._poison(decoded, write, f"transaction {id} is folded from partition {entry.partition}")]
        effects: tuple[Effect, ...] = ()
        state: str | None = None
        reason: str | None
        if entry is not None and entry.parked:
            outcome, reason = "PARKED", "an earlier input of this transaction is parked"
        elif entry is not None and entry.unreadable is not None:
            outcome, reason = "PARKED", entry.unreadable
            entry = self._park(decoded, write, entry)
        elif (request := (id, decoded.body.get("request_id", ""))) in write.answered:
            outcome, reason = Verdict.IGNORED, f"a second copy of request {request[1]}, which has its answer"
            state = None if entry is None or entry.machine is None else entry.machine.state
        elif entry is None and decoded.type in codecs.KINDS and (ended := write.pruned.get(id)) is not None:
            # A copy of the first input, out of a replay or a restored broker: it would run the whole of it again.
            outcome, reason = Verdict.IGNORED, f"the transaction has ended, {ended}, and is pruned"
        else:
            try:
                decision = advance(None if entry is None else entry.machine, decoded.input, record.timestamp)
            except Exception as error:
                # A bug in the machine. This transaction waits for it to be mended; the others go on.
                log.error("parked", transaction=id, offset=record.offset, error=traceback.format_exc())
                outcome, reason = "PARKED", describe(error)
                entry = self._park(decoded, write, entry)
            else:
                outcome, reason, effects = decision.verdict, decision.reason, decision.effects
                if decoded.type == _REQUEST:
                    write.answered.add(request)
                if decision.machine is not None:
                    state = decision.machine.state
                    _note(id, None if entry is None else entry.machine, decision.machine, write)
                    entry = self._changed(decoded, write, entry, decision.machine, decision.verdict is Verdict.APPLIED)
        if entry is not None:
            self._cache[id] = entry
        if decoded.type == _REQUEST:
            # Whatever the answer is, and also if there is no such transaction: somebody waits for it.
            write.awaited.add(id)
        write.journal.append(
            JournalRow(
                record.partition,
                record.offset,
                id,
                decoded.type,
                codecs.input_to_json(decoded.body),
                outcome,
                reason,
                state,
                [codecs.effect_to_json(effect) for effect in effects] or None,
                at,
            )
        )
        write.outcomes[decoded.type, outcome] += 1
        if not effects:
            return []
        assert entry is not None and entry.machine is not None
        return [codecs.effect_to_record(self._codec, id, entry.machine, e, record.timestamp) for e in effects]

    def _changed(
        self, decoded: Decoded, write: BatchWrite, entry: Entry | None, machine: Machine, applied: bool
    ) -> Entry:
        id = decoded.transaction_id
        assert id is not None and decoded.body is not None
        if entry is None:
            entry = Entry(
                decoded.record.partition,
                machine,
                definition=codecs.definition_to_json(decoded.body),
                kind=codecs.KINDS[decoded.type],
            )
            write.created[id] = entry
            return entry
        unchanged = machine is entry.machine
        entry.machine = machine
        if decoded.type == "fluxora.DeadlinePassed":
            write.rearmed.add(id)
        elif unchanged:
            # Not the same as not applied: a machine remembers whom it has refused, so that a copy is refused too.
            return entry
        if id not in write.created:
            folded = write.changed[id][1] if id in write.changed else 0
            write.changed[id] = (entry, folded + applied)
        return entry

    def _park(self, decoded: Decoded, write: BatchWrite, entry: Entry | None) -> Entry:
        id = decoded.transaction_id
        assert id is not None and decoded.body is not None
        if entry is not None:
            entry.parked = True
            entry.seen_at = from_ms(decoded.record.timestamp)
            if id not in write.created:
                write.changed[id] = (entry, write.changed[id][1] if id in write.changed else 0)
            return entry
        entry = Entry(
            decoded.record.partition,
            None,
            parked=True,
            definition=codecs.definition_to_json(decoded.body),
            kind=codecs.KINDS.get(decoded.type, "saga"),
            seen_at=from_ms(decoded.record.timestamp),
        )
        write.created[id] = entry
        return entry

    def _poison(self, decoded: Decoded, write: BatchWrite, problem: str) -> KafkaRecord:
        record = decoded.record
        log.error("dead-lettered", partition=record.partition, offset=record.offset, problem=problem)
        write.outcomes[decoded.type, "POISON"] += 1
        write.journal.append(
            JournalRow(
                record.partition,
                record.offset,
                decoded.transaction_id,
                decoded.type,
                None,
                "POISON",
                problem,
                None,
                [{"dead_letter": problem}],
                from_ms(record.timestamp),
            )
        )
        return _dead_letter(record, problem)

    def _tidy_cache(self, write: BatchWrite) -> None:
        for entry in write.created.values():
            entry.definition = None
        for id in [*write.created, *write.changed]:
            kept = self._cache.get(id)
            if kept is not None and kept.machine is not None and kept.machine.ended:
                del self._cache[id]
        while len(self._cache) > self._cache_size:
            del self._cache[next(iter(self._cache))]


def _note(id: str, before: Machine | None, after: Machine, write: BatchWrite) -> None:
    """What others want to know of a change."""
    if after is before:
        return
    is_transaction = isinstance(after, Transaction)
    if after.ended or (is_transaction and (before is None or before.state != after.state)):
        write.awaited.add(id)
    if after.needs_attention and not (before is not None and before.needs_attention):
        ATTENTION.labels("transaction" if is_transaction else "saga").inc()


def _dead_letter(record: Record, problem: str) -> KafkaRecord:
    """The record as it was, with the headers that Kafka Connect gives its dead letters (KIP-298)."""
    kind, _, message = problem.partition(": ")
    headers = {
        "__connect.errors.topic": INPUT_TOPIC,
        "__connect.errors.partition": str(record.partition),
        "__connect.errors.offset": str(record.offset),
        "__connect.errors.connector.name": "fluxora",
        "__connect.errors.task.id": "0",
        "__connect.errors.stage": "VALUE_CONVERTER",
        "__connect.errors.class.name": "saga_processors.processor.Processor",
        "__connect.errors.exception.class.name": kind,
        "__connect.errors.exception.message": message,
        "__connect.errors.exception.stacktrace": "",
    }
    return KafkaRecord(DLQ_TOPIC, record.key or b"", record.value or b"", [(k, v.encode()) for k, v in headers.items()])
