"""``fluxora rebuild``: the states and the journal once more, from nothing but the log (DESIGN section 1).

The states are the fold of the inputs, so they can be thrown away. The inputs are folded by the processor's own code
(guard, decoding, machine, SQL), into tables of the same form in a schema of their own beside the live ones; nothing
is published. Then both are compared, transaction by transaction and input by input.

What was pruned from the live tables, and what the log's retention has removed, is not compared, but counted
(``saga_processors.retention``).

What a crash does: everything happens beside the live tables until :meth:`Rebuild.replace`, which is one transaction.
The next run drops what was left and begins anew.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from psycopg import sql

from participant.settings import CONNECT
from saga_processors.log import APP_ID, INPUT_TOPIC, InputLog, Publisher
from saga_processors.partition import Halted
from saga_processors.processor import Processor
from saga_processors.records import KafkaRecord
from saga_processors.settings import ProcessorSettings
from saga_processors.store import Store
from schemas import Codec, FluxoraError

#: Where the rebuilt tables are.
SCHEMA = "fluxora_rebuild"
_TABLES = ("transactions", "journal", "partitions", "withheld", "pruned_transactions")
#: What follows from the inputs alone. Not ``version`` (counts the changes of a batch's later inputs only),
#: ``next_deadline`` (may be early), ``created_at`` (REST's clock where REST wrote the row).
_TRANSACTION_COLUMNS = ("kind", "name", "state", "services", "partition", "definition", "progress", "parked")
_JOURNAL_COLUMNS = ("transaction_id", "input_type", "input", "outcome", "reason", "state", "effects", "at")

#: Of live rows: what the fold of the log can be compared with.
_WHOLE = f"NOT EXISTS (SELECT FROM {SCHEMA}.partial p WHERE p.id = t.id)"
_IN_THE_LOG = (
    f"NOT EXISTS (SELECT FROM {SCHEMA}.partial p WHERE p.id = t.transaction_id) "
    f'AND NOT EXISTS (SELECT FROM {SCHEMA}.firsts f WHERE f.partition = t.partition AND t."offset" < f.first)'
)

#: Inputs done, inputs in all.
Progress = Callable[[int, int], None]


class CannotRebuild(FluxoraError):
    """The log does not hold everything, or the platform is running where it must not; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the live tables are not what the log says."""

    #: A transaction's id, or ``partition/offset`` of a journal row.
    what: str
    #: ``only in the log``, ``only in the database``, or the columns that differ.
    how: str


@dataclass(frozen=True, slots=True)
class Comparison:
    transactions: int
    inputs: int
    differences: tuple[Difference, ...]
    #: Differences beyond those that are named.
    more: int = 0
    #: Transactions that the log still holds and that are pruned from the live tables.
    pruned: int = 0
    #: Live transactions of which the log no longer holds the first inputs: they cannot be folded, nor compared.
    begun_before_the_log: int = 0


class _Silent(Publisher):
    """In the publisher's place: what was decided has left long ago."""

    def __init__(self) -> None:
        pass

    async def publish(self, records: Sequence[KafkaRecord]) -> None:
        pass


class Rebuild:
    """One rebuilding, beside the live tables. Use as a context manager; the schema is dropped at the end."""

    def __init__(self, settings: ProcessorSettings, *, keep: bool = False) -> None:
        """``keep``: leave the rebuilt tables in schema ``fluxora_rebuild``."""
        self._settings = settings
        self._keep = keep
        self._admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
        #: Where the partitions of the log begin from which retention has removed something.
        self._firsts: dict[int, int] = {}
        self._pruned = 0

    def __enter__(self) -> Self:
        self._connection = psycopg.connect(self._settings.database_url, autocommit=True, **CONNECT)
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._keep:
                self._connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        finally:
            self._connection.close()

    def _prepare(self) -> None:
        with self._connection.transaction():
            # Two rebuilds at once would drop each other's tables.
            [taken] = self._row("SELECT pg_try_advisory_lock(hashtext(%s))", SCHEMA)
            if not taken:
                raise CannotRebuild("another rebuild is under way in this database")
            self._connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
            self._connection.execute(f"CREATE SCHEMA {SCHEMA}")
            for table in _TABLES:
                self._connection.execute(f"CREATE TABLE {SCHEMA}.{table} (LIKE public.{table} INCLUDING ALL)")

    # ── Folding ────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> dict[int, int]:
        """Digest the live tables as they are at one moment.

        Returns how far each partition was folded then: where :meth:`fold` has to go. A partition without a row (the
        database is new, its predecessor lost) is to be folded to its end.
        """
        bounds = self.log_bounds()
        ends = {partition: last for partition, (_, last) in bounds.items()}
        self._firsts = {partition: first for partition, (first, _) in bounds.items() if first > 0}
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._note_what_is_not_compared()
            for table, key, columns, where in (
                ("transactions", "id::text", _TRANSACTION_COLUMNS, f"WHERE (version > 0 OR parked) AND {_WHOLE}"),
                ("journal", "partition || '/' || \"offset\"", _JOURNAL_COLUMNS, f"WHERE {_IN_THE_LOG}"),
            ):
                self._connection.execute(
                    f"CREATE TABLE {SCHEMA}.live_{table} AS "
                    f"SELECT {key} AS key, {_digests(columns)} FROM public.{table} t {where}"
                )
            rows = self._connection.execute("SELECT partition, next_offset FROM public.partitions").fetchall()
        return ends | dict(rows)

    def _note_what_is_not_compared(self) -> None:
        """``firsts``: where the log begins; ``partial``: transactions that it, or the database, holds in part only."""
        self._connection.execute(f"CREATE TABLE {SCHEMA}.firsts (partition smallint, first bigint)")
        for partition, first in self._firsts.items():
            self._connection.execute(f"INSERT INTO {SCHEMA}.firsts VALUES (%s, %s)", (partition, first))
        self._connection.execute(
            f"CREATE TABLE {SCHEMA}.partial AS SELECT DISTINCT transaction_id AS id, false AS pruned "
            f'FROM public.journal j JOIN {SCHEMA}.firsts f USING (partition) WHERE j."offset" < f.first '
            "AND transaction_id IS NOT NULL AND NOT EXISTS "
            "(SELECT FROM public.pruned_transactions p WHERE p.id = j.transaction_id) "
            "UNION ALL SELECT id, true FROM public.pruned_transactions"
        )
        self._connection.execute(f"CREATE INDEX ON {SCHEMA}.partial (id)")

    def log_bounds(self) -> dict[int, tuple[int, int]]:
        """The first offset that each partition of the input topic still holds, and the next one it will have."""
        topic = self._admin.list_topics(INPUT_TOPIC, timeout=10).topics[INPUT_TOPIC]
        if topic.error is not None or not topic.partitions:
            raise CannotRebuild(f"the topic {INPUT_TOPIC} is not there: {topic.error}. Run `fluxora init`.")
        bounds = []
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):  # type: ignore[no-untyped-call]
            asked = {TopicPartition(INPUT_TOPIC, p): spec for p in topic.partitions}
            found = self._admin.list_offsets(asked, request_timeout=10)
            offsets = {partition.partition: future.result().offset for partition, future in found.items()}
            if unknown := sorted(p for p, offset in offsets.items() if offset < 0):
                raise CannotRebuild(f"the brokers do not know how far {INPUT_TOPIC} {unknown} reaches now; try again.")
            bounds.append(offsets)
        return {p: (bounds[0][p], bounds[1][p]) for p in topic.partitions}

    def fold(self, ends: dict[int, int], progress: Progress, *, whole: bool = True) -> None:
        """Fold every partition up to ``ends``.

        ``whole``: only if the log holds everything, as :meth:`replace` needs; otherwise from where it begins.

        Raises:
            CannotRebuild: retention has removed inputs from the log, so what they led to cannot be known.
        """
        bounds = self.log_bounds()
        for partition, end in sorted(ends.items()):
            first, last = bounds.get(partition, (0, 0))
            if whole and end and first > 0:
                raise CannotRebuild(
                    f"{INPUT_TOPIC}[{partition}] begins at offset {first}: its retention has removed the inputs before "
                    "it, so the transactions that they began cannot be folded again. Nothing was changed. "
                    "(--verify compares the later ones.)"
                )
            if last < end:
                raise CannotRebuild(
                    f"{INPUT_TOPIC}[{partition}] ends at {last}, but the database has folded up to {end}: it is "
                    "another topic, or the brokers have lost its end. Nothing was changed."
                )
        asyncio.run(self._fold(ends, progress))
        self._connection.execute(
            f"DELETE FROM {SCHEMA}.journal WHERE transaction_id IN (SELECT id FROM {SCHEMA}.partial)"
        )
        found = self._connection.execute(
            f"DELETE FROM {SCHEMA}.transactions t USING {SCHEMA}.partial p WHERE p.id = t.id RETURNING p.pruned"
        ).fetchall()
        self._pruned = sum(row[0] for row in found)

    async def _fold(self, ends: dict[int, int], progress: Progress) -> None:
        settings = self._settings
        input_log = InputLog(settings.kafka_bootstrap_servers)
        codec = Codec(settings.schema_registry_url)
        store = await Store.connect(
            settings.database_url, "fluxora-rebuild", idle_limit=settings.transaction_idle_limit, schema=SCHEMA
        )
        processor = Processor(
            store=store,
            codec=codec,
            input_log=input_log,
            publisher=_Silent(),
            topic_id=await input_log.topic_id(),
            partitions=await input_log.partition_count(),
            batch_size=settings.batch_size,
            cache_size=settings.cache_size,
            max_steps=settings.max_steps,
            policy=settings.policy,
        )
        done, total = 0, sum(ends.values())
        try:
            for partition, end in sorted(ends.items()):
                if first := min(self._firsts.get(partition, 0), end):
                    self._connection.execute(
                        f"INSERT INTO {SCHEMA}.partitions (partition, topic_id, next_offset, published_through) "
                        "VALUES (%s, %s, %s, %s)",
                        (partition, await input_log.topic_id(), first, first),
                    )
                # A row for a partition without inputs too: `replace` takes them all over.
                start = (await store.position(partition, await input_log.topic_id())).next_offset
                while start < end:
                    upto = min(end, start + settings.batch_size)
                    await processor.handle(await input_log.read(partition, start, upto))
                    done += upto - start
                    start = upto
                    progress(done, total)
            await processor.settle()
        except Halted as error:
            raise CannotRebuild(f"{error} Nothing was changed.") from error
        finally:
            await store.close()
            codec.close()
            input_log.close()

    # ── Comparing ──────────────────────────────────────────────────────────────────────────────────────────

    def compare(self, limit: int) -> Comparison:
        """Compare the snapshot with what was folded; at most ``limit`` differences are named."""
        differences: list[Difference] = []
        [begun_before] = self._row(f"SELECT count(*) FROM {SCHEMA}.partial WHERE NOT pruned")
        for table, key, columns in (
            ("transactions", "id::text", _TRANSACTION_COLUMNS),
            ("journal", "partition || '/' || \"offset\"", _JOURNAL_COLUMNS),
        ):
            differ = " OR ".join(f'l."{c}" IS DISTINCT FROM r."{c}"' for c in columns)
            named = ", ".join(f'CASE WHEN l."{c}" IS DISTINCT FROM r."{c}" THEN \'{c}\' END' for c in columns)
            rows = self._connection.execute(
                f"SELECT coalesce(l.key, r.key), l.key IS NULL, r.key IS NULL, array_remove(ARRAY[{named}], NULL) "
                f"FROM {SCHEMA}.live_{table} l "
                f"FULL JOIN (SELECT {key} AS key, {_digests(columns)} FROM {SCHEMA}.{table}) r ON r.key = l.key "
                f"WHERE l.key IS NULL OR r.key IS NULL OR {differ} ORDER BY 1"
            ).fetchall()
            for which, not_live, not_folded, names in rows:
                how = (
                    "only in the log"
                    if not_live
                    else "only in the database"
                    if not_folded
                    else f"differs in {', '.join(names)}"
                )
                differences.append(Difference(which if table == "transactions" else f"input {which}", how))
        [transactions] = self._row(f"SELECT count(*) FROM {SCHEMA}.transactions")
        [inputs] = self._row(f"SELECT count(*) FROM {SCHEMA}.journal")
        return Comparison(
            transactions,
            inputs,
            tuple(differences[:limit]),
            more=max(0, len(differences) - limit),
            pruned=self._pruned,
            begun_before_the_log=begun_before,
        )

    # ── Replacing ──────────────────────────────────────────────────────────────────────────────────────────

    def check_nobody_folds(self) -> None:
        """Raise CannotRebuild while processors run: they hold states in memory and would write them back."""
        group = self._admin.describe_consumer_groups([APP_ID], request_timeout=10)[APP_ID].result()
        if group.members:
            raise CannotRebuild(
                f"{len(group.members)} saga processors are running ({', '.join(m.client_id for m in group.members)}); "
                "they would go on from the states they hold in memory. Stop them, then run this again. "
                "Nothing was changed."
            )

    def replace(self, ends: dict[int, int]) -> None:
        """Put the rebuilt states and journal in the place of the live ones; one transaction.

        Rows that REST has written and no input has reached yet stay. Effects that had not left still leave:
        ``published_through`` is kept where it is known. Where the partition rows were lost, effects count as
        published; whoever waits for one that was not is served by the transaction's own timers.

        Raises:
            CannotRebuild: processors run, or have folded more meanwhile; nothing was changed.
        """
        self.check_nobody_folds()
        columns = sql.SQL(", ").join(map(sql.Identifier, self._columns("transactions")))
        updates = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c))
            for c in self._columns("transactions")
            if c not in ("id", "created_at")
        )
        with self._connection.transaction():
            self._connection.execute("LOCK TABLE public.partitions IN EXCLUSIVE MODE")
            live: dict[int, int] = dict(
                self._connection.execute("SELECT partition, next_offset FROM public.partitions").fetchall()
            )
            moved = {p: offset for p, offset in live.items() if offset != ends.get(p, 0)}
            if moved:
                raise CannotRebuild(f"partitions {sorted(moved)} have moved meanwhile; run it again")
            # What was queued behind a parked transaction and is folded now has never left.
            self._connection.execute(
                'INSERT INTO public.withheld (partition, "offset", reason) '
                "SELECT partition, \"offset\", 'it was folded by a rebuild' FROM public.journal l "
                f'JOIN {SCHEMA}.journal r USING (partition, "offset") '
                "WHERE l.outcome = 'PARKED' AND r.effects IS NOT NULL ON CONFLICT DO NOTHING"
            )
            self._connection.execute("DELETE FROM public.journal")
            self._connection.execute(f"INSERT INTO public.journal SELECT * FROM {SCHEMA}.journal")
            self._connection.execute(
                f"DELETE FROM public.transactions t WHERE (version > 0 OR parked) "
                f"AND NOT EXISTS (SELECT 1 FROM {SCHEMA}.transactions r WHERE r.id = t.id)"
            )
            self._connection.execute(
                sql.SQL(
                    "INSERT INTO public.transactions ({columns}) SELECT {columns} FROM {schema}.transactions "
                    "ON CONFLICT (id) DO UPDATE SET {updates}"
                ).format(columns=columns, schema=sql.Identifier(SCHEMA), updates=updates)
            )
            self._connection.execute(
                "INSERT INTO public.partitions (partition, topic_id, next_offset, published_through) "
                f"SELECT partition, topic_id, next_offset, next_offset FROM {SCHEMA}.partitions "
                "ON CONFLICT (partition) DO NOTHING"
            )

    def _columns(self, table: str) -> list[str]:
        rows = self._connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (f"public.{table}",),
        ).fetchall()
        return [row[0] for row in rows]

    def _row(self, statement: str, *parameters: Any) -> tuple[Any, ...]:
        row = self._connection.execute(statement, parameters or None).fetchone()
        assert row is not None
        found: tuple[Any, ...] = row
        return found


def _digests(columns: Sequence[str]) -> str:
    return ", ".join(f'md5("{column}"::text) AS "{column}"' for column in columns)
