"""Finished sagas in the coordinator's tables, made by SQL from one that really ran: its row and its journal, copied.

The copies differ from what would be there in three ways. Their journal rows have negative offsets, because those of the
log are taken; so the live rows are at the right edge of its index, where they are in life. They were all written at
once, so they lie on the disk in order of time. And what participants keep of a saga is not there.
"""

import time
from typing import Any

import psycopg

from bench.ends import SAGA_ENDS, TWO_PHASE_ENDS
from bench.load import FromOutbox
from bench.stage import BenchmarkFailed, Stage

#: Sagas written in one transaction.
_CHUNK = 20_000
#: Of write-ahead log that a slot may be behind before the filling waits for it. PostgreSQL drops one at 4 GB.
_SLOT_BEHIND = 1_000_000_000
_CATCH_UP_S = 120

# UUIDv7s of their time: as with real ones, the newest are the greatest, and all of them older than what is measured.
_FILL = """
    WITH template AS (SELECT * FROM transactions WHERE id = %(template)s),
    copies AS (
        SELECT i, now() - %(days)s * interval '1 day' * (1 - i / %(sagas)s::float8) - interval '2 hours' AS at
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
    ),
    named AS (
        SELECT i, at, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
            || substr(md5(i::text), 1, 3) || '8' || substr(md5(i::text), 4, 15))::uuid AS id
        FROM copies
    ),
    sagas AS (
        INSERT INTO transactions (id, kind, name, state, services, partition, version, definition, progress,
            needs_attention, parked, next_deadline, created_at, updated_at)
        SELECT n.id, t.kind, t.name, t.state, t.services, n.i %% 12, t.version, t.definition, t.progress,
            false, false, NULL, n.at, n.at
        FROM named n, template t
    )
    INSERT INTO journal (partition, "offset", transaction_id, input_type, input, outcome, reason, state, effects, at)
    SELECT n.i %% 12, -(n.i * %(inputs)s + j.number), n.id, j.input_type, j.input, j.outcome, j.reason, j.state,
        j.effects, n.at
    FROM named n, (
        SELECT row_number() OVER (ORDER BY partition, "offset") AS number, * FROM journal
        WHERE transaction_id = %(template)s
    ) j
"""
_BEHIND = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0) FROM pg_replication_slots"


def fill(stage: Stage, sagas: int, *, limit_s: float) -> dict[str, Any]:
    """Have as many finished sagas in the tables; returns how many there are, and how large the tables.

    If there are more, all are removed first; nothing may be under way. Filling ends after ``limit_s`` seconds, with
    fewer: ``stored`` tells.
    """
    began = time.monotonic()
    with psycopg.connect(stage.endpoints["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        template = _template(stage, connection)
        inputs = _number(connection, "SELECT count(*) FROM journal WHERE transaction_id = %s", template)
        there = _number(connection, "SELECT count(*) FROM transactions")
        if there > sagas:
            _empty(connection, template)
            there = 1
        while there < sagas and time.monotonic() - began < limit_s:
            count = min(_CHUNK, sagas - there)
            connection.execute(
                _FILL,
                {
                    "template": template,
                    "inputs": inputs,
                    "first": there,
                    "last": there + count - 1,
                    "sagas": sagas,
                    "days": _DAYS,
                },
            )
            there += count
            _await_slots(connection, stage)
            if there % 200_000 < count:
                stage.say(f"{there} of {sagas} sagas stored after {time.monotonic() - began:.0f} s")
        connection.execute("VACUUM (ANALYZE) transactions, journal")
        connection.execute("CHECKPOINT")
        _await_slots(connection, stage)
        size = _number(connection, "SELECT pg_total_relation_size('transactions') + pg_total_relation_size('journal')")
        return {
            "wanted": sagas,
            "stored": _number(connection, "SELECT count(*) FROM transactions"),
            "journal_rows": _number(connection, "SELECT count(*) FROM journal"),
            "tables_mb": round(size / 1024**2),
            "fill_s": round(time.monotonic() - began, 1),
        }


#: Over which their ends are spread; the watcher prunes what is older than thirty (FLUXORA_PRUNE_TRANSACTIONS_DAYS).
_DAYS = 24


def _template(stage: Stage, connection: psycopg.Connection) -> str:
    """A saga of today that completed."""
    with FromOutbox(stage.endpoints, connections=1) as load:
        [id] = load.start(1, 0)
    stage.ends.wait([id], stage.limit_s)
    if _number(connection, "SELECT count(*) FROM transactions WHERE id = %s AND state = 'COMPLETED'", id) != 1:
        raise BenchmarkFailed(f"saga {id}, which was to be copied, did not complete")
    return id


def _empty(connection: psycopg.Connection, template: str) -> None:
    """All but the template. The processors keep no state of sagas that have ended, and read the journal only when they
    take a partition over, from where effects may not have left."""
    with connection.transaction():
        open_ones = _number(connection, "SELECT count(*) FROM transactions WHERE state <> ALL(%s)", _ENDS)
        if open_ones:
            raise BenchmarkFailed(f"{open_ones} transactions are under way: the tables cannot be emptied")
        connection.execute(
            "CREATE TEMP TABLE kept_saga ON COMMIT DROP AS SELECT * FROM transactions WHERE id = %s", (template,)
        )
        connection.execute(
            "CREATE TEMP TABLE kept_journal ON COMMIT DROP AS SELECT * FROM journal WHERE transaction_id = %s",
            (template,),
        )
        connection.execute("TRUNCATE transactions, journal")
        connection.execute("INSERT INTO transactions SELECT * FROM kept_saga")
        connection.execute("INSERT INTO journal SELECT * FROM kept_journal")


_ENDS = [*SAGA_ENDS, *TWO_PHASE_ENDS]


def _await_slots(connection: psycopg.Connection, stage: Stage) -> None:
    deadline = time.monotonic() + _CATCH_UP_S
    while _number(connection, _BEHIND) > _SLOT_BEHIND:
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"a replication slot is over {_SLOT_BEHIND} bytes behind for {_CATCH_UP_S} s")
        time.sleep(0.5)


def _number(connection: psycopg.Connection, sql: str, *parameters: object) -> int:
    [(number,)] = connection.execute(sql, parameters).fetchall()
    return int(number)
