"""A transaction that cannot be folded waits, alone: the others of its partition go on, and nothing of it is lost."""

from typing import Any

import psycopg
import pytest

from saga_processors.partition import Halted
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
