"""Keeps the connectors running, and tells how far behind they are.

Connect stops a task that fails and leaves it stopped. The watcher looks every few seconds: it restarts what has
failed, puts back a connector that has vanished, and reads the state of every slot. It holds nothing that matters:
kill it at any moment, and the next one starts from what Connect and PostgreSQL say.

It never makes or moves a slot. A slot that was lost means rows that Kafka may not have; the connector then fails
again after each restart (offset.mismatch.strategy), and the metrics and ``/ready`` say so until a person decides.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event

import structlog
from prometheus_client import Counter, Gauge
from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.exc import SQLAlchemyError

from connectors.connect import Connect, Connector, ConnectRefused, ConnectUnavailable
from connectors.debezium import PREFIX, database_url, slot_name
from connectors.slots import SlotState, engine_for, slot_state
from participant.local_transaction import first_line

log = structlog.get_logger(__name__)

RUNNING = Gauge("fluxora_connector_running", "1 while the connector and its task run", ["connector"])
RESTARTS = Counter("fluxora_connector_restarts_total", "Restarts of a failed connector", ["connector"])
RESTORED = Counter("fluxora_connector_restored_total", "Vanished connectors put back", ["connector"])
CONNECT_UP = Gauge("fluxora_connect_up", "1 while Kafka Connect answers")
LAG = Gauge("fluxora_slot_lag_bytes", "Write-ahead log that Debezium has not confirmed", ["slot"])
RETAINED = Gauge("fluxora_slot_retained_bytes", "Write-ahead log kept for the slot", ["slot"])
SAFE = Gauge("fluxora_slot_safe_bytes", "May still be written before the slot is lost", ["slot"])
ACTIVE = Gauge("fluxora_slot_active", "1 while a connector reads the slot", ["slot"])
LOST = Gauge("fluxora_slot_lost", "1 when the slot is missing or its log is gone: rows may be lost", ["slot"])


class WatcherSettings(BaseSettings):
    """Settings of ``python -m connectors``."""

    model_config = SettingsConfigDict(env_prefix="FLUXORA_", populate_by_name=True, extra="ignore")

    connect_url: str = Field(
        validation_alias=AliasChoices("CONNECT_URL", "connect_url"), description="Kafka Connect's REST address."
    )
    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="The coordinator's database, whose tables are pruned too; it says which transactions have ended.",
    )
    watch_interval_s: float = Field(default=2.0, ge=0.1, le=300, description="Time between two looks.")
    restart_wait_min_s: float = Field(
        default=1.0, ge=0.1, le=600, description="Wait before the second restart of a connector; doubles."
    )
    restart_wait_max_s: float = Field(default=60.0, ge=1, le=3600, description="Longest wait between restarts.")
    slot_lag_warn_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="A slot further behind is logged as a warning."
    )
    health_port: int = Field(default=0, ge=0, le=65535, description="/health, /ready, /metrics; 0 means not at all.")
    health_host: str = Field(default="127.0.0.1", description="Address of that port; 0.0.0.0 in a container.")


class Backoff:
    """When a connector that keeps failing may be restarted: at once, then after waits that double to a cap."""

    def __init__(self, minimum_s: float, maximum_s: float) -> None:
        self._minimum_s = minimum_s
        self._maximum_s = maximum_s
        #: by name: number of restarts, time of the last one
        self._restarts: dict[str, tuple[int, float]] = {}

    def due(self, name: str, now: float) -> bool:
        """Tell whether it may be restarted now; if so, that counts as a restart."""
        count, last = self._restarts.get(name, (0, 0.0))
        if count and now - last < min(self._maximum_s, self._minimum_s * 2 ** min(count - 1, 30)):
            return False
        self._restarts[name] = (count + 1, now)
        return True

    def well(self, name: str, now: float) -> None:
        """It runs. Forgotten is its past only after it has run for the longest wait: a task fails seconds later."""
        if name in self._restarts and now - self._restarts[name][1] > self._maximum_s:
            del self._restarts[name]


class Watcher:
    """Looks at the connectors of one Connect."""

    def __init__(
        self, connect: Connect, settings: WatcherSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._settings = settings
        self._clock = clock
        self._backoff = Backoff(settings.restart_wait_min_s, settings.restart_wait_max_s)
        self._restoring = Backoff(settings.restart_wait_min_s, settings.restart_wait_max_s)
        #: The configurations last seen, so that a connector that vanishes can be put back.
        self._seen: dict[str, dict[str, str]] = {}
        self._looked = clock()
        self._troubles: dict[str, str] = {"watcher": "it has not looked yet"}
        self._stopping = Event()

    def run(self) -> None:
        """Look until ``stop``."""
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(self._settings.watch_interval_s)

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> None:
        """Look once. Never raises for Connect or PostgreSQL being down: that is what it is there to report."""
        troubles: dict[str, str] = {}
        try:
            found = self._connect.connectors(PREFIX)
        except (ConnectUnavailable, ConnectRefused) as error:
            CONNECT_UP.set(0)
            troubles["connect"] = str(error)
            if "connect" not in self._troubles:
                log.warning("connect_unavailable", error=str(error))
            found = {}
        else:
            CONNECT_UP.set(1)
            for name in self._seen.keys() - found.keys():
                RUNNING.labels(name).set(0)
                troubles[name] = "the connector has vanished"
                self._restore(name)
            for connector in found.values():
                self._look_at(connector, troubles)
        for name, config in self._seen.items():
            self._look_at_slot(name, config, troubles)
        for name in self._troubles.keys() - troubles.keys():
            log.info("trouble_over", about=name)
        self._troubles = troubles
        self._looked = self._clock()

    def databases(self) -> dict[str, str]:
        """Where the databases are, by connector. May be called from another thread."""
        found = {}
        for name, config in list(self._seen.items()):
            with suppress(ValueError):
                found[slot_name(name, config)] = database_url(config)
        return found

    def live(self) -> list[str]:
        still = self._clock() - self._looked
        limit = 60 + 10 * self._settings.watch_interval_s
        return [f"the last look was {still:.0f} s ago"] if still > limit else []

    def ready(self) -> list[str]:
        return [f"{name}: {trouble}" for name, trouble in sorted(self._troubles.items())]

    def _look_at(self, connector: Connector, troubles: dict[str, str]) -> None:
        name = connector.name
        self._seen[name] = connector.config
        RUNNING.labels(name).set(1 if connector.running else 0)
        if connector.running:
            self._backoff.well(name, self._clock())
            return
        if not connector.failures:
            # Being assigned, or paused or stopped by a person: not ours to start.
            troubles[name] = f"{connector.state}, tasks {connector.tasks or 'not there yet'}"
            return
        troubles[name] = connector.failures[0].summary
        if not self._backoff.due(name, self._clock()):
            return
        log.error("connector_restarted", connector=name, error=troubles[name])
        RESTARTS.labels(name).inc()
        try:
            self._connect.restart_failed(name)
        except (ConnectUnavailable, ConnectRefused) as error:
            log.warning("connector_restart_failed", connector=name, error=str(error))

    def _restore(self, name: str) -> None:
        if not self._restoring.due(name, self._clock()):
            return
        log.error("connector_restored", connector=name)
        try:
            self._connect.put(name, {key: value for key, value in self._seen[name].items() if key != "name"})
        except (ConnectUnavailable, ConnectRefused) as error:
            log.warning("connector_restore_failed", connector=name, error=str(error))
        else:
            RESTORED.labels(name).inc()

    def _look_at_slot(self, name: str, config: dict[str, str], troubles: dict[str, str]) -> None:
        slot = slot_name(name, config)
        try:
            with engine_for(database_url(config)).connect() as connection:
                state = slot_state(connection, slot)
        except (SQLAlchemyError, ValueError) as error:
            troubles[f"{name} database"] = first_line(error)
            return
        LOST.labels(slot).set(1 if state is None or state.lost else 0)
        if state is None:
            troubles[f"{name} slot"] = f"the replication slot {slot} is missing: outbox rows may be missing from Kafka"
            self._tell(f"{name} slot", troubles)
            return
        _report(state)
        if state.lost:
            troubles[f"{name} slot"] = f"the log that slot {slot} needed is gone: outbox rows are missing from Kafka"
            self._tell(f"{name} slot", troubles)
        elif state.lag_bytes > self._settings.slot_lag_warn_bytes:
            troubles[f"{name} slot"] = f"the slot {slot} is {state.lag_bytes} bytes behind"
            self._tell(f"{name} slot", troubles)

    def _tell(self, about: str, troubles: dict[str, str]) -> None:
        if about not in self._troubles:
            log.error("slot_trouble", about=about, trouble=troubles[about])


def _report(state: SlotState) -> None:
    LAG.labels(state.name).set(state.lag_bytes)
    RETAINED.labels(state.name).set(state.retained_bytes)
    ACTIVE.labels(state.name).set(1 if state.active else 0)
    if state.safe_wal_bytes is not None:
        SAFE.labels(state.name).set(state.safe_wal_bytes)
