"""A transaction that cannot be folded waits, alone: the others of its partition go on, and nothing of it is lost."""

import uuid
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from saga_processors import processor as module
from saga_processors.machine import Decision
from saga_processors.partition import Halted, Record
from saga_processors.processor import Processor
from tests.integration.test_processor import (
    JOURNAL,
    Inputs,
    Sent,
    database,
    new_id,
    over_kafka,
    replied,
    rows,
    run,
    saga_started,
)
from tests.platform import Platform

__all__ = ["database"]

#: What a hand, or another version, may have left in a row.
BROKEN = [
    pytest.param("progress = '{}'", id="fields are missing"),
    pytest.param('progress = \'{"steps": [{"state": "NEW"}]}\'', id="of a later version"),
    pytest.param("progress = '[]'", id="of another shape"),
    pytest.param("progress = '\"\\ud800\"'", id="half a surrogate pair"),
    pytest.param("definition = '{}'", id="no definition"),
    pytest.param("state = 'NOWHERE'", id="an unknown state"),
    pytest.param("kind = 'transaction'", id="of the other kind"),
]


def change(database: str, sql: str, *parameters: Any) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql, parameters)  # type: ignore[arg-type]


def stored(database: str, id: str) -> Any:
    [row] = rows(database, f"SELECT kind, state, definition::text, progress::text FROM transactions WHERE id = '{id}'")
    return row


@pytest.mark.parametrize("broken", BROKEN)
def test_a_stored_transaction_that_cannot_be_read_is_parked_and_the_others_go_on(
    platform: Platform, database: str, broken: str
) -> None:
    bad, good = new_id(), new_id()
    begun = [saga_started(platform, 0, bad), saga_started(platform, 1, good)]
    run(platform, database, lambda processor, sent: processor.handle(begun))
    change(database, "UPDATE partitions SET published_through = next_offset")
    change(database, f"UPDATE transactions SET {broken} WHERE id = %s", bad)
    before = stored(database, bad)
    inputs = [replied(platform, 2, bad), replied(platform, 3, good), replied(platform, 4, bad)]
    run(platform, database, lambda processor, sent: processor.handle(inputs))
    assert rows(database, JOURNAL)[2:] == [(2, "PARKED", None), (3, "APPLIED", "COMPLETED"), (4, "PARKED", None)]
    [(reason,), _] = rows(database, "SELECT reason FROM journal WHERE outcome = 'PARKED' ORDER BY \"offset\"")
    assert "cannot be read: " in reason
    assert rows(database, f"SELECT parked, needs_attention, next_deadline FROM transactions WHERE id = '{bad}'") == [
        (True, True, None)
    ]
    assert stored(database, bad) == before, "what is there is left as it is, for whoever mends it"
    # It stays parked after a restart, and is not read any more.
    run(platform, database, lambda processor, sent: processor.handle([replied(platform, 5, bad)]))
    assert rows(database, JOURNAL)[-1] == (5, "PARKED", None)


def test_a_two_phase_commit_that_cannot_be_read_is_parked(platform: Platform, database: str) -> None:
    inputs = Inputs(platform)
    first = inputs.started(over_kafka("alpha"))
    run(platform, database, lambda processor, sent: processor.handle([first]))
    change(database, "UPDATE partitions SET published_through = next_offset")
    change(database, 'UPDATE transactions SET progress = \'{"participants": [{"unheard": "of"}]}\'')
    prepare = inputs.request("PREPARE")
    sent = run(platform, database, lambda processor, sent: processor.handle([prepare]))
    assert rows(database, JOURNAL) == [(0, "APPLIED", "STARTED"), (1, "PARKED", None)]
    assert rows(database, "SELECT state, parked FROM transactions") == [("STARTED", True)]
    assert all(record.topic == "fluxora.transactions.events" for record in sent.records)


def unpublished(platform: Platform, database: str, bad: str, good: str) -> None:
    """Both have a decision that is in the journal and has not left."""

    async def decide_and_die(processor: Processor, sent: Sent) -> None:
        await processor.handle([saga_started(platform, 0, bad), saga_started(platform, 1, good)])
        sent.fails = True
        with pytest.raises(ConnectionError):
            await processor.handle(
                [replied(platform, 2, id, outcome="REFUSED", reason="no") for id in (bad,)]
                + [replied(platform, 3, good)]
            )

    run(platform, database, decide_and_die)


@pytest.mark.parametrize("broken", BROKEN)
def test_what_cannot_be_published_any_more_is_withheld_and_the_rest_of_the_partition_leaves(
    platform: Platform, database: str, broken: str
) -> None:
    bad, good = new_id(), new_id()
    unpublished(platform, database, bad, good)
    before = stored(database, bad)
    change(database, f"UPDATE transactions SET {broken} WHERE id = %s", bad)

    async def take_over(processor: Processor, sent: Sent) -> None:
        await processor.adopt([0])
        await processor.handle([replied(platform, 4, bad)])

    sent = run(platform, database, take_over)
    assert {id.split(":")[0] for id in sent.ids} == {good}
    assert rows(database, "SELECT next_offset, published_through FROM partitions") == [(5, 4)]
    assert rows(database, 'SELECT "offset" FROM withheld') == [(2,)]
    assert rows(database, JOURNAL)[-1] == (4, "PARKED", None)
    # Another restart: still withheld, nothing leaves twice.
    assert run(platform, database, lambda processor, sent: processor.adopt([0])).ids == []
    # Mended, and no longer parked: it leaves with the next one that takes the partition over, once.
    change(
        database,
        "UPDATE transactions SET kind = %s, state = %s, definition = %s, progress = %s, parked = false WHERE id = %s",
        *before,
        bad,
    )
    sent = run(platform, database, lambda processor, sent: processor.adopt([0]))
    assert f"{bad}:4" in sent.ids, "the saga's last event"
    assert {id.split(":")[0] for id in sent.ids} == {bad}
    assert rows(database, "SELECT * FROM withheld") == []
    assert run(platform, database, lambda processor, sent: processor.adopt([0])).ids == []


def test_a_zombie_withholds_nothing(platform: Platform, database: str) -> None:
    bad, good = new_id(), new_id()
    unpublished(platform, database, bad, good)
    change(database, "UPDATE transactions SET progress = '{}' WHERE id = %s", bad)

    async def taken_over_meanwhile(processor: Processor, sent: Sent) -> None:
        publish = sent.publish

        async def and_lose_it(records: Any) -> None:
            await publish(records)
            change(database, "UPDATE partitions SET next_offset = 5")

        sent.publish = and_lose_it  # type: ignore[method-assign]
        with pytest.raises(Halted):
            await processor.adopt([0])

    run(platform, database, taken_over_meanwhile)
    assert rows(database, "SELECT * FROM withheld") == []
    assert rows(database, "SELECT 1 FROM transactions WHERE parked") == []


# ── The way back ───────────────────────────────────────────────────────────────────────────────────────────────


class Shelf:
    """Stands where the log would be."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = {record.offset: record for record in records}

    async def read(self, partition: int, start: int, end: int) -> list[Record]:
        if any(offset not in self.records for offset in range(start, end)):
            raise Halted("retention")
        return [self.records[offset] for offset in range(start, end)]


class Story:
    """Inputs of one partition, folded by processors that may have a bug."""

    def __init__(self, platform: Platform, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform, self.database, self._monkeypatch = platform, database, monkeypatch
        self.log: list[Record] = []
        self._real = module.advance

    def bug(self, *times: int) -> None:
        """From now on the machine fails on the inputs of these times."""

        def breaks(machine: Any, event: Any, at: int) -> Decision:
            if at in times:
                raise ZeroDivisionError("a bug")
            return self._real(machine, event, at)

        self._monkeypatch.setattr(module, "advance", breaks)

    def begun(self, id: str) -> Record:
        return self._logged(saga_started(self.platform, len(self.log), id))

    def replied(self, id: str, **more: Any) -> Record:
        return self._logged(replied(self.platform, len(self.log), id, **more))

    def asked(self, id: str, request: str, request_id: str | None = None) -> Record:
        record = {
            "transaction_id": id,
            "request_id": request_id or str(uuid.uuid4()),
            "request": request,
            "who": "olga",
            "why": "mended",
        }
        value = self.platform.codec.encode("fluxora.RequestMade", record)
        return self._logged(Record(0, len(self.log), 1_000 + len(self.log), id.encode(), value))

    def _logged(self, record: Record) -> Record:
        self.log.append(record)
        return record

    def fold(self, *batches: Sequence[Record], database: str | None = None, fails: bool = False) -> Sent:
        async def play(processor: Processor, sent: Sent) -> None:
            processor._log = Shelf(self.log)  # type: ignore[assignment]
            await processor.adopt([0])
            for batch in batches:
                sent.fails = fails
                if fails:
                    with pytest.raises(ConnectionError):
                        await processor.handle(batch)
                else:
                    await processor.handle(batch)
                    await processor._store.set_published(processor._positions.values())

        return run(self.platform, database or self.database, play)

    def journal(self, database: str | None = None) -> list[Any]:
        return rows(
            database or self.database,
            'SELECT "offset", input_type, input::text, outcome, reason, state, effects::text, at '
            "FROM journal ORDER BY 1",
        )

    def transactions(self, database: str | None = None) -> list[Any]:
        return rows(
            database or self.database,
            "SELECT id::text, kind, name, state, services, definition::text, progress::text, parked, needs_attention, "
            "next_deadline IS NULL FROM transactions ORDER BY id",
        )


@pytest.fixture
def story(platform: Platform, database: str, monkeypatch: pytest.MonkeyPatch) -> Story:
    return Story(platform, database, monkeypatch)


another_database = database


def outcomes(story: Story) -> list[str]:
    return [row[3] for row in story.journal()]


def same_as_without_the_bug(story: Story, other: str) -> None:
    """What ``fluxora rebuild`` would find: the log folded from its start by a machine without the bug."""
    story.bug()
    story.fold(story.log, database=other)
    assert story.journal() == story.journal(other)
    assert story.transactions() == story.transactions(other)


def test_an_unparked_saga_is_what_it_would_have_been(story: Story, another_database: str) -> None:
    bad, good = new_id(), new_id()
    story.bug(1_001)
    first = [story.begun(bad), story.replied(bad), story.begun(good), story.replied(bad), story.replied(good)]
    story.fold(first)
    assert outcomes(story) == ["APPLIED", "PARKED", "APPLIED", "PARKED", "APPLIED"]
    story.bug()
    sent = story.fold([story.asked(bad, "UNPARK")])
    assert outcomes(story) == ["APPLIED", "APPLIED", "APPLIED", "IGNORED", "APPLIED", "APPLIED"]
    assert {id.split(":")[0] for id in sent.ids} == {bad}
    assert f"{bad}:4" in sent.ids or f"{bad}:3" in sent.ids, sent.ids
    assert rows(story.database, "SELECT * FROM withheld") == []
    [(told,)] = rows(story.database, 'SELECT input::text FROM journal WHERE "offset" = 5')
    assert "olga" in told
    assert "mended" in told
    assert story.fold().ids == [], "it has left once"
    same_as_without_the_bug(story, another_database)


def test_one_parked_on_its_first_input_begins(story: Story, another_database: str) -> None:
    bad = new_id()
    story.bug(1_000)
    story.fold([story.begun(bad), story.asked(bad, "CANCEL"), story.asked(bad, "UNPARK")])
    assert outcomes(story) == ["PARKED"] * 3
    story.bug()
    sent = story.fold([story.asked(bad, "UNPARK"), story.replied(bad)])
    assert outcomes(story)[:2] == ["APPLIED", "APPLIED"]
    assert [record.topic for record in sent.records].count("alpha.commands") >= 1
    same_as_without_the_bug(story, another_database)


def test_it_stays_parked_with_the_reason_while_the_cause_is_there(story: Story, another_database: str) -> None:
    bad = new_id()
    story.bug(1_002)
    story.fold([story.begun(bad), story.asked(bad, "NONSENSE"), story.replied(bad), story.replied(bad)])
    before = story.transactions()
    sent = story.fold([story.asked(bad, "UNPARK")])
    assert outcomes(story) == ["APPLIED", "POISON", "PARKED", "PARKED", "PARKED"]
    assert "input 0/2: ZeroDivisionError: a bug" in story.journal()[4][4]
    assert sent.ids == []
    assert story.transactions() == before
    # Two at once, in the middle of a batch: the first one does it.
    story.bug()
    story.fold([story.replied(bad), story.asked(bad, "UNPARK"), story.asked(bad, "UNPARK"), story.replied(bad)])
    assert "PARKED" not in outcomes(story)
    same_as_without_the_bug(story, another_database)


def test_a_second_copy_of_a_request_that_was_queued_is_decided_once(story: Story, another_database: str) -> None:
    bad, request = new_id(), str(uuid.uuid4())
    early = str(uuid.uuid4())
    story.bug(1_002)
    story.fold(
        [
            story.begun(bad),
            story.asked(bad, "RETRY", early),
            story.replied(bad, outcome="FAILED"),
            story.asked(bad, "RETRY", early),
            story.asked(bad, "RETRY", request),
            story.asked(bad, "RETRY", request),
        ]
    )
    story.bug()
    story.fold([story.asked(bad, "UNPARK")])
    assert outcomes(story)[3:] == ["IGNORED", "APPLIED", "IGNORED", "APPLIED"]
    same_as_without_the_bug(story, another_database)


@pytest.mark.parametrize("point", ["before the commit", "before it is published"])
def test_a_crash_while_it_is_unparked_loses_and_doubles_nothing(
    story: Story, another_database: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = new_id()
    story.bug(1_001)
    story.fold([story.begun(bad), story.replied(bad)])
    story.bug()
    unpark = story.asked(bad, "UNPARK")
    if point == "before the commit":

        def dies(name: str) -> None:
            if name == "processor.before_commit":
                raise ConnectionError(name)

        with monkeypatch.context() as patched:
            patched.setattr(module, "crash_at", dies)
            story.fold([unpark], fails=True)
        assert outcomes(story) == ["APPLIED", "PARKED"]
        sent = story.fold([unpark])
    else:
        story.fold([unpark], fails=True)
        assert rows(story.database, 'SELECT "offset" FROM withheld') == [(1,)]
        sent = story.fold([unpark])
    assert len(sent.ids) == len(set(sent.ids)) > 0
    assert rows(story.database, "SELECT * FROM withheld") == []
    assert story.fold().ids == []
    same_as_without_the_bug(story, another_database)


def test_unpark_of_one_that_cannot_be_read_says_so_and_goes_on_when_it_is_mended(
    story: Story, another_database: str
) -> None:
    bad = new_id()
    story.fold([story.begun(bad)])
    before = stored(story.database, bad)
    change(story.database, "UPDATE transactions SET progress = '{}' WHERE id = %s", bad)
    story.fold([story.replied(bad)], [story.asked(bad, "UNPARK")])
    assert "cannot be read" in story.journal()[2][4]
    change(story.database, "UPDATE transactions SET progress = %s WHERE id = %s", before[3], bad)
    story.fold([story.asked(bad, "UNPARK")])
    assert outcomes(story) == ["APPLIED"] * 4
    same_as_without_the_bug(story, another_database)


def test_what_was_withheld_leaves_before_what_is_folded_late(
    platform: Platform, story: Story, another_database: str
) -> None:
    bad = new_id()
    story.fold([story.begun(bad)], fails=True)
    before = stored(story.database, bad)
    change(story.database, "UPDATE transactions SET progress = '{}' WHERE id = %s", bad)
    assert story.fold([story.replied(bad)]).ids == []
    change(story.database, "UPDATE transactions SET progress = %s WHERE id = %s", before[3], bad)
    sent = story.fold([story.asked(bad, "UNPARK")])
    sequences = [int(id.split(":")[1]) for id in sent.ids if id.count(":") == 1]
    assert sequences == sorted(sequences)
    assert sequences[0] == 1
    assert f"{bad}:step-1:action:1" in sent.ids
    same_as_without_the_bug(story, another_database)


def test_inputs_that_retention_has_removed_keep_it_parked_and_end_no_processor(story: Story) -> None:
    bad = new_id()
    story.bug(1_001)
    story.fold([story.begun(bad), story.replied(bad)])
    story.bug()
    unpark = story.asked(bad, "UNPARK")
    whole, story.log = story.log, [unpark]
    story.fold([unpark])
    assert "the log no longer holds input 0/1" in story.journal()[2][4]
    story.log = whole
    story.fold([story.asked(bad, "UNPARK")])
    assert outcomes(story) == ["APPLIED"] * 4
