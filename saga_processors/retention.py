"""Pruning of the coordinator's own tables: transactions that have ended, their journal, idempotency keys.

A transaction goes ``transactions_days`` (30) after its end, whole: its row and all its journal rows in one database
transaction, in which a row of ``pruned_transactions`` takes their place. Never one that has not ended, that is parked,
or of which an effect may not have left (``published_through``).

The row that is left says how it ended, for ``remembered_days`` (400):

- A second copy of its first input, from ``fluxora replay`` or a restored broker, is IGNORED; it would run it again.
  Likewise ``POST`` with its id is refused.
- Services learn from it that the transaction is over, and prune theirs (``participant.retention``).
- ``fluxora rebuild`` knows that it is not missing. The log keeps inputs by its own retention (30 days and a segment),
  so it may still hold transactions that are pruned here, and no longer the first inputs of some that are still here:
  ``--verify`` compares those of which the log holds everything and that are not pruned, and counts the others.

So the log's retention and ours need not agree, but ``remembered_days`` must be longer than the log's.

Journal rows of no transaction (poison, inputs for unknown ids) are few, and stay.
"""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from participant.retention import Connection, RetentionSettings, Walk, now_of, take
from saga_processors.saga import TERMINAL as SAGA_ENDS
from saga_processors.transaction import TERMINAL as TRANSACTION_ENDS

_ENDS = sorted(str(state) for state in SAGA_ENDS | TRANSACTION_ENDS)

_OLD = """
    t.ctid >= %(first)s::tid AND t.ctid < %(last)s::tid
    AND t.state = ANY(%(ends)s) AND t.updated_at < %(before)s AND t.version > 0 AND NOT t.parked
    AND NOT EXISTS (
        SELECT FROM public.journal j JOIN public.partitions p USING (partition)
        WHERE j.transaction_id = t.id AND j."offset" >= p.published_through)
    AND NOT EXISTS (
        SELECT FROM public.withheld w JOIN public.journal j USING (partition, "offset")
        WHERE j.transaction_id = t.id)
"""
_COUNT = """
    SELECT (SELECT count(*) FROM old),
           (SELECT count(*) FROM public.journal j JOIN old ON j.transaction_id = old.id)
"""
_PRUNE = f"""
    WITH old AS (
        DELETE FROM public.transactions t WHERE {_OLD} RETURNING t.id, t.kind, t.state, t.updated_at
    ), remembered AS (
        INSERT INTO public.pruned_transactions (id, kind, state, ended_at)
        SELECT id, kind, state, updated_at FROM old
        ON CONFLICT (id) DO UPDATE SET state = excluded.state, ended_at = excluded.ended_at
    ), journal AS (
        DELETE FROM public.journal j USING old WHERE j.transaction_id = old.id RETURNING 1
    )
    SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM journal)
"""
_DRY = f"WITH old AS (SELECT t.id FROM public.transactions t WHERE {_OLD}) {_COUNT}"
_ENDED = """
    SELECT id FROM public.pruned_transactions WHERE id = ANY(%(ids)s) AND ended_at < %(before)s
    UNION
    SELECT id FROM public.transactions
    WHERE id = ANY(%(ids)s) AND updated_at < %(before)s AND state = ANY(%(ends)s) AND version > 0 AND NOT parked
"""
_KEYS = """
    FROM public.idempotency_keys WHERE key IN (
        SELECT key FROM public.idempotency_keys WHERE created_at < %s
        ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)
"""
_KEYS_AT_ONCE = 1_000
#: No transaction is pruned so soon (the settings' lower limit is more).
_YOUNG_MS = 60 * 60 * 1000


def ended(connection: Connection, ids: Sequence[UUID], before: datetime) -> set[UUID]:
    """Those of the transactions that ended before this time, pruned since or not; never one that is not known."""
    values = {"ids": list(ids), "before": before, "ends": _ENDS}
    return {row[0] for row in connection.execute(_ENDED, values)}


def may_be_pruned(id: UUID, at: int) -> bool:
    """Whether a transaction that begins at ``at`` (ms) may be one that was pruned: a young UUIDv7 cannot be."""
    return id.version != 7 or at - (id.int >> 80) > _YOUNG_MS


class TransactionTables:
    """Prunes the coordinator's tables, round by round; how is in ``participant.retention``."""

    def __init__(self, settings: RetentionSettings) -> None:
        self._settings = settings
        self._transactions = Walk("public.transactions", settings)
        self._remembered = Walk("public.pruned_transactions", settings)

    def prune(self, connection: Connection, *, whole: bool = False, dry: bool = False) -> Counter[str]:
        """One round, of some pages or of the ``whole`` tables; ``dry``: delete nothing. Returns rows by table."""
        settings, now = self._settings, now_of(connection)
        done: Counter[str] = Counter()
        if settings.transactions_days:
            before = now - timedelta(days=settings.transactions_days)
            for first, last in self._transactions.windows(connection, whole):
                values = {"first": first, "last": last, "ends": _ENDS, "before": before}
                row = connection.execute(_DRY if dry else _PRUNE, values).fetchone()
                assert row is not None
                done["transactions"] += row[0]
                done["journal"] += row[1]
        if settings.keys_days:
            done["idempotency_keys"] += self._prune_keys(connection, now - timedelta(days=settings.keys_days), dry)
        if settings.remembered_days:
            before = now - timedelta(days=settings.remembered_days)
            for window in self._remembered.windows(connection, whole):
                done["pruned_transactions"] += take(
                    connection, "public.pruned_transactions", "ended_at < %s", (before,), window, dry
                )
        return +done

    def _prune_keys(self, connection: Connection, before: datetime, dry: bool) -> int:
        if dry:
            row = connection.execute(
                "SELECT count(*) FROM public.idempotency_keys WHERE created_at < %s", (before,)
            ).fetchone()
            assert row is not None
            return int(row[0])
        done = 0
        while True:
            deleted = connection.execute(f"DELETE {_KEYS}", (before, _KEYS_AT_ONCE)).rowcount
            done += deleted
            if deleted < _KEYS_AT_ONCE:
                return done
            time.sleep(self._settings.pause_seconds)
