"""Old rows go, and none that may still be needed: on a real PostgreSQL, with a slot that the test moves on itself."""

import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from connectors.pruning import PLATFORM, Databases
from deploy.stack import Stack
from participant.retention import Connection, RetentionSettings, ServiceTables, Walk, alone
from saga_processors.retention import TransactionTables, ended
from tests.integration.fix_coordinator import new_database

SETTINGS = RetentionSettings(pause_seconds=0)


@pytest.fixture(scope="module")
def url(stack: Stack) -> Iterator[str]:
    with new_database() as url:
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection
        connection.execute(
            "TRUNCATE fluxora.outbox, fluxora.inbox, fluxora.barrier, public.transactions, public.journal, "
            "public.partitions, public.pruned_transactions, public.idempotency_keys"
        )


@pytest.fixture
def slot(connection: Connection) -> Iterator[str]:
    name = f"prune_{uuid.uuid4().hex[:12]}"
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    yield name
    connection.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
    )


def confirm(connection: Connection, slot: str) -> None:
    """As Debezium does when Kafka has everything; others' records that are not flushed yet are in front of this one."""
    connection.execute("SELECT pg_logical_emit_message(true, 'x', '')")
    connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,))


def publish(connection: Connection, days: float) -> uuid.UUID:
    id = uuid.uuid4()
    connection.execute(
        "INSERT INTO fluxora.outbox (id, aggregatetype, aggregateid, type, payload, topic, source, content_type, "
        "created_at) VALUES (%s, 't', 'k', 't', '', 'topic', 's', 'c', now() - %s * interval '1 day')",
        (id, days),
    )
    return id


def transaction(
    connection: Connection,
    state: str,
    days: float,
    *,
    parked: bool = False,
    version: int = 3,
    offsets: tuple[int, ...] = (0,),
) -> uuid.UUID:
    """A transaction that was changed last so long ago, with journal rows at these offsets of partition 0."""
    id = uuid.uuid4()
    connection.execute(
        "INSERT INTO transactions (id, kind, name, state, services, version, definition, parked, created_at, "
        "updated_at) VALUES (%s, 'saga', 'n', %s, '{}', %s, '{}', %s, now() - interval '5 years', "
        "now() - %s * interval '1 day')",
        (id, state, version, parked, days),
    )
    for offset in offsets:
        connection.execute(
            'INSERT INTO journal (partition, "offset", transaction_id, input_type, outcome, at) '
            "VALUES (0, %s + coalesce((SELECT max(\"offset\") + 1 FROM journal), 0), %s, 't', 'APPLIED', now())",
            (offset, id),
        )
    return id


def steps(connection: Connection, id: uuid.UUID, days: float) -> None:
    """What a service remembers of a transaction."""
    connection.execute(
        "INSERT INTO fluxora.inbox (command_id, handled_at) "
        "SELECT %s || ':s:' || n, now() - %s * interval '1 day' FROM generate_series(1, 2) n",
        (str(id), days),
    )
    connection.execute(
        "INSERT INTO fluxora.barrier (transaction_id, step, operation, outcome, created_at) "
        "VALUES (%s, 's', 'ACTION', 'DONE', now() - %s * interval '1 day')",
        (id, days),
    )


def ids(connection: Connection, table: str, column: str = "id") -> set[Any]:
    return {row[0] for row in connection.execute(f"SELECT DISTINCT {column} FROM {table}")}  # type: ignore[arg-type]


# ── The outbox ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_old_rows_of_the_outbox_go_when_the_slot_has_confirmed_them(connection: Connection, slot: str) -> None:
    old, young = publish(connection, days=8), publish(connection, days=6)
    tables = ServiceTables(SETTINGS, slot)
    for _ in range(2):
        assert tables.prune(connection, None) == {}
        assert ids(connection, "fluxora.outbox") == {old, young}, "nobody has confirmed anything"
    assert any("has confirmed" in reason for reason in tables.kept)
    # Its created_at is old too (its transaction began long ago), but it was committed after the rows were noted.
    late = publish(connection, days=9)
    confirm(connection, slot)
    assert tables.prune(connection, None) == {"outbox": 1}
    assert ids(connection, "fluxora.outbox") == {young, late}
    confirm(connection, slot)
    assert tables.prune(connection, None) == {"outbox": 1}
    assert ids(connection, "fluxora.outbox") == {young}


def test_without_its_slot_an_outbox_keeps_everything(connection: Connection, slot: str) -> None:
    old = publish(connection, days=400)
    tables = ServiceTables(SETTINGS, "prune_not_there")
    tables.prune(connection, None)
    assert tables.prune(connection, None) == {}
    assert ids(connection, "fluxora.outbox") == {old}
    assert tables.kept[0] == "outbox: the slot prune_not_there is missing"


# ── Inbox and barrier ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_services_memory_of_a_transaction_goes_only_after_its_certain_end(connection: Connection, slot: str) -> None:
    over = transaction(connection, "COMPLETED", days=91)
    pruned = uuid.uuid4()
    connection.execute(
        "INSERT INTO pruned_transactions VALUES (%s, 'saga', 'FAILED', now() - interval '91 days')", (pruned,)
    )
    kept = {
        # Its compensation may come tomorrow, and must find what the action did.
        "still runs": transaction(connection, "COMPENSATING", days=300),
        "ended of late": transaction(connection, "FAILED", days=89),
        "parked": transaction(connection, "COMPLETED", days=300, parked=True),
        "the coordinator does not know it": uuid.uuid4(),
    }
    for id in (over, pruned, *kept.values()):
        steps(connection, id, days=300)
    tables = ServiceTables(SETTINGS, slot)
    asked = partial(ended, connection)
    expected = {"inbox": 4, "barrier": 2}
    assert tables.prune(connection, asked, whole=True, dry=True) == expected
    assert len(ids(connection, "fluxora.barrier", "transaction_id")) == 6, "it was a dry run"
    assert tables.prune(connection, asked, whole=True) == expected
    assert ids(connection, "fluxora.barrier", "transaction_id") == set(kept.values())
    assert ids(connection, "fluxora.inbox", "left(command_id, 36)::uuid") == set(kept.values())


def test_young_rows_of_an_ended_transaction_stay(connection: Connection, slot: str) -> None:
    # A copy that came late: of an end that is not what the clock says, nothing is deleted.
    id = transaction(connection, "COMPLETED", days=91)
    steps(connection, id, days=1)
    assert ServiceTables(SETTINGS, slot).prune(connection, partial(ended, connection), whole=True) == {}


def test_rows_of_commands_stay_when_nobody_knows_what_has_ended(connection: Connection, slot: str) -> None:
    steps(connection, transaction(connection, "COMPLETED", days=300), days=300)
    tables = ServiceTables(SETTINGS, slot)
    assert tables.prune(connection, None, whole=True) == {}
    assert "does not say which transactions ended" in tables.kept[0]


def test_consumed_events_are_forgotten_by_age_and_nothing_else_is(connection: Connection, slot: str) -> None:
    connection.execute(
        "INSERT INTO fluxora.inbox (command_id, handled_at) SELECT kind || age, now() - age * interval '1 day' "
        "FROM unnest(ARRAY['event|g|s|', 'record|g|t|0|', 'sha256|g|', 'something else|']) kind, "
        "unnest(ARRAY[89, 91]) age"
    )
    assert ServiceTables(SETTINGS, slot).prune(connection, None, whole=True) == {"inbox": 3}
    assert len(ids(connection, "fluxora.inbox", "command_id")) == 5
    never = SETTINGS.model_copy(update={"events_days": 0})
    connection.execute("UPDATE fluxora.inbox SET handled_at = now() - interval '9 years'")
    assert ServiceTables(never, slot).prune(connection, None, whole=True) == {}


# ── The coordinator's tables ───────────────────────────────────────────────────────────────────────────────────


def test_an_ended_transaction_goes_whole_and_is_remembered(connection: Connection) -> None:
    old = transaction(connection, "COMPLETED", days=31, offsets=(0, 1, 2))
    aborted = transaction(connection, "ABORTED", days=31)
    kept = {
        transaction(connection, "COMPLETED", days=29),
        transaction(connection, "COMPENSATING", days=300),
        transaction(connection, "STARTED", days=300, version=0),
        transaction(connection, "FAILED", days=300, parked=True),
    }
    [end] = connection.execute('SELECT max("offset") + 1 FROM journal').fetchone() or [None]
    # Its last effect may not have left: it is read from the journal, with the transaction's row.
    unpublished = transaction(connection, "COMPLETED", days=300)
    connection.execute("INSERT INTO partitions VALUES (0, 'topic', %s, %s)", (end + 1, end))
    tables = TransactionTables(SETTINGS)
    expected = {"transactions": 2, "journal": 4}
    assert tables.prune(connection, whole=True, dry=True) == expected
    assert tables.prune(connection, whole=True) == expected
    assert ids(connection, "transactions") == kept | {unpublished}
    assert ids(connection, "journal", "transaction_id") == kept | {unpublished}
    rows = connection.execute("SELECT id, kind, state FROM pruned_transactions").fetchall()
    assert sorted(rows) == sorted([(old, "saga", "COMPLETED"), (aborted, "saga", "ABORTED")])
    assert tables.prune(connection, whole=True) == {}
    connection.execute("UPDATE pruned_transactions SET ended_at = now() - interval '401 days' WHERE id = %s", (old,))
    assert tables.prune(connection, whole=True) == {"pruned_transactions": 1}
    assert ids(connection, "pruned_transactions") == {aborted}


def test_idempotency_keys_are_forgotten(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO idempotency_keys (key, request_digest, transaction_id, created_at) "
        "SELECT n::text, '', gen_random_uuid(), now() - n * interval '1 hour' FROM generate_series(1, 2000) n"
    )
    assert TransactionTables(SETTINGS).prune(connection) == {"idempotency_keys": 2000 - 7 * 24 + 1}
    assert len(ids(connection, "idempotency_keys", "key")) == 7 * 24 - 1


# ── How ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_walk_comes_to_every_page_and_reads_no_more_than_it_may(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO fluxora.inbox (command_id, handled_at) "
        "SELECT 'event|g|s|' || n, now() - interval '1 year' FROM generate_series(1, 5000) n"
    )
    settings = SETTINGS.model_copy(update={"pages": 2, "round_pages": 5})
    walk, seen = Walk("fluxora.inbox", settings), []
    for _ in range(40):
        windows = list(walk.windows(connection, whole=False))
        assert 3 <= len(windows) <= 4, "five pages by twos, and perhaps the table's end between them"
        seen += windows
    for first, last in seen:
        plan = "\n".join(
            row[0]
            for row in connection.execute(
                "EXPLAIN SELECT FROM fluxora.inbox WHERE ctid >= %s::tid AND ctid < %s::tid", (first, last)
            )
        )
        assert "Tid Range Scan" in plan
    tables = ServiceTables(settings, "none")
    rounds = 0
    while ids(connection, "fluxora.inbox", "command_id"):
        tables.prune(connection, None)
        rounds += 1
        assert rounds < 100
    assert rounds > 3


def test_a_large_table_is_gone_through_in_a_cycle(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO fluxora.inbox (command_id) SELECT 'event|g|s|' || n FROM generate_series(1, 5000) n"
    )
    hasty = SETTINGS.model_copy(update={"pages": 1, "round_pages": 1, "interval_seconds": 36.0, "cycle_hours": 0.1})
    [pages] = connection.execute("SELECT pg_relation_size('fluxora.inbox') / 8192").fetchone() or [0]
    windows = list(Walk("fluxora.inbox", hasty).windows(connection, whole=False))
    assert pages / 10 <= len(windows) <= pages / 10 + 1


def test_one_process_at_a_time(connection: Connection, url: str) -> None:
    with alone(url, "one", "tables") as first, alone(url, "two", "tables") as second, alone(url, "3", "other") as third:
        assert first is not None
        assert second is None
        assert third is not None
    with alone(url, "four", "tables") as after:
        assert after is not None


def test_a_round_over_all_databases_tells_what_it_did_and_what_held_it_up(
    connection: Connection, slot: str, url: str
) -> None:
    id = transaction(connection, "COMPLETED", days=100)
    steps(connection, id, days=100)
    publish(connection, days=30)
    pruner = Databases(SETTINGS, url)
    unreachable = "postgresql://nobody@127.0.0.1:1/x"
    told = pruner.round({slot: url, "gone": unreachable}, whole=True, confirm_s=0.1)
    assert told.rows == {slot: {"inbox": 2, "barrier": 1, "outbox": 0}, PLATFORM: {"transactions": 1, "journal": 1}}
    assert "has confirmed" in told.kept[slot][0]
    assert told.kept["gone"]
    confirm(connection, slot)
    # The transaction is pruned by now, and still known to have ended.
    steps(connection, id, days=100)
    assert pruner.round({slot: url}).rows[slot] == {"inbox": 2, "barrier": 1, "outbox": 1}
    with alone(url, "another", PLATFORM) as another:
        assert another is not None
        assert pruner.round({}).kept == {PLATFORM: ["another process prunes it"]}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"transactions_days": 0.01}, "FLUXORA_PRUNE_TRANSACTIONS_DAYS is 0.01: it must be at least 0.1"),
        ({"remembered_days": 60}, "must be more than FLUXORA_PRUNE_COMMANDS_DAYS"),
        ({"outbox_days": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_could_lose_something_are_refused(given: dict[str, float], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RetentionSettings(**given)  # type: ignore[arg-type]
