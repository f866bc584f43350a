"""Old rows go, in every database that has a connector (``participant.retention`` says which, and why then).

A thread of the watcher: it knows the databases anyway, it is one process, and no service's own process is slowed down.
The coordinator's tables (``saga_processors.retention``) are pruned too, if ``DATABASE_URL`` says where they are;
without it, rows of commands stay as well, because nobody says which transactions have ended.

The connector's user must be allowed to delete from the schema ``fluxora``, as the owner of the tables is.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import psycopg
import structlog
from prometheus_client import Counter as Metric
from prometheus_client import Gauge

from participant.local_transaction import first_line
from participant.retention import Connection, Ended, RetentionSettings, ServiceTables, alone
from participant.settings import CONNECT
from saga_processors.retention import TransactionTables, ended

log = structlog.get_logger(__name__)

PRUNED = Metric("fluxora_pruned_rows_total", "Old rows deleted", ["database", "table"])
KEPT = Gauge("fluxora_prune_held_up", "1 while old rows of the database must be kept; the log says why", ["database"])
ROUND = Gauge("fluxora_prune_last_round_timestamp_seconds", "When the last round of pruning ended", ["database"])
#: Of the coordinator's own tables, beside those that every service has.
PLATFORM = "(platform)"
_APPLICATION = "fluxora-prune"


class Databases:
    """Prunes several databases, round by round. One thread's."""

    def __init__(self, settings: RetentionSettings, coordinator_url: str | None) -> None:
        self._settings = settings
        self._coordinator_url = coordinator_url
        self._transactions = TransactionTables(settings)
        #: By connector.
        self._tables: dict[str, ServiceTables] = {}

    def round(
        self,
        databases: Mapping[str, str],
        *,
        whole: bool = False,
        dry: bool = False,
        confirm_s: float = 0.0,
        platform: bool = True,
        stopping: Callable[[], bool] = lambda: False,
    ) -> "Round":
        """Prune each database once; what cannot be reached, or is being pruned by another process, is told in the
        answer.

        Args:
            databases: conninfo by connector, whose name is also its slot's.
            whole: go through the whole tables, not only a part of them.
            dry: only count.
            confirm_s: how long to wait for the slots to confirm outbox rows, and for another process to finish,
                seconds; without it the next round sees to it.
            platform: the coordinator's own tables too.
        """
        told = Round()
        if self._coordinator_url is None:
            self._services(databases, None, told, whole, dry, confirm_s, stopping)
            return told
        try:
            with psycopg.connect(
                self._coordinator_url, autocommit=True, application_name=_APPLICATION, **CONNECT
            ) as coordinator:
                # Services first: what is pruned here is remembered, but why depend on it.
                self._services(databases, partial(ended, coordinator), told, whole, dry, confirm_s, stopping)
            if not platform or stopping():
                return told
            with alone(self._coordinator_url, _APPLICATION, PLATFORM, confirm_s) as connection:
                if connection is None:
                    told.kept[PLATFORM] = ["another process prunes it"]
                else:
                    told.rows[PLATFORM] = self._transactions.prune(connection, whole=whole, dry=dry)
        except psycopg.Error as error:
            told.kept[PLATFORM] = [first_line(error)]
        return told

    def _services(
        self,
        databases: Mapping[str, str],
        over: Ended | None,
        told: "Round",
        whole: bool,
        dry: bool,
        confirm_s: float,
        stopping: Callable[[], bool],
    ) -> None:
        for name, conninfo in databases.items():
            if stopping():
                return
            tables = self._tables.setdefault(name, ServiceTables(self._settings, name))
            try:
                with alone(conninfo, _APPLICATION, name, confirm_s) as connection:
                    if connection is None:
                        told.kept[name] = ["another process prunes it"]
                        continue
                    told.rows[name] = tables.prune(connection, over, whole=whole, dry=dry)
                    told.kept[name] = list(tables.kept)
                    if confirm_s and not dry:
                        told.rows[name]["outbox"] += self._confirmed(connection, tables, confirm_s)
                        told.kept[name] = list(tables.kept)
            except psycopg.Error as error:
                told.kept[name] = [first_line(error)]

    def _confirmed(self, connection: Connection, tables: ServiceTables, seconds: float) -> int:
        until = time.monotonic() + seconds
        while (deleted := tables.delete_confirmed(connection)) is None and time.monotonic() < until:
            time.sleep(0.5)
        return deleted or 0


class Round:
    """What one round came to, by connector; PLATFORM stands for the coordinator's own tables."""

    def __init__(self) -> None:
        #: Rows by table.
        self.rows: dict[str, Counter[str]] = {}
        #: Why something that is old enough was kept, in words.
        self.kept: dict[str, list[str]] = {}


class Pruning:
    """Prunes from a thread of its own, until ``stop``."""

    def __init__(
        self, settings: RetentionSettings, coordinator_url: str | None, databases: Callable[[], Mapping[str, str]]
    ) -> None:
        """``databases``: conninfo by connector, as it is known now."""
        self._settings = settings
        self._databases = databases
        self._pruner = Databases(settings, coordinator_url)
        self._stopping = threading.Event()
        self._told: dict[str, list[str]] = {}
        self._thread = threading.Thread(target=self._run, name="pruning", daemon=True)

    def start(self) -> None:
        if self._settings.enabled:
            self._thread.start()

    def stop(self) -> None:
        """Return when the statement in hand is done, or soon; a statement that is cut off is rolled back."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.interval_seconds):
            try:
                self._note(self._pruner.round(self._databases(), stopping=self._stopping.is_set))
            except Exception:
                log.exception("pruning_failed")

    def _note(self, told: Round) -> None:
        for name, rows in told.rows.items():
            ROUND.labels(name).set_to_current_time()
            for table, count in rows.items():
                PRUNED.labels(name, table).inc(count)
            if rows:
                log.info("pruned", database=name, **rows)
        for name, reasons in told.kept.items():
            KEPT.labels(name).set(bool(reasons))
            # An outbox waits for its slot all the time; the rest is worth a line when it is new.
            news = [reason for reason in reasons if "has confirmed" not in reason]
            if news != self._told.get(name, []):
                log.warning("pruning_held_up", database=name, reasons=news) if news else None
            self._told[name] = news
