"""Replication slots: where PostgreSQL remembers what Debezium has taken, and what that costs in disk."""

from dataclasses import dataclass

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from connectors.debezium import connector_name
from participant.settings import CONNECT, sqlalchemy_url
from schemas import FluxoraError

_STATE = text("""
    SELECT database, plugin, active, wal_status,
           pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS lag_bytes,
           pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained_bytes,
           safe_wal_size
    FROM pg_replication_slots WHERE slot_name = :name
""")


#: A failover slot (PostgreSQL 17 and later) is copied to the standbys that ask for it (sync_replication_slots), and so
#: outlives the primary. Where there is no standby it is like any other.
_CREATE = "SELECT pg_create_logical_replication_slot(:name, 'pgoutput')"
_CREATE_FAILOVER = "SELECT pg_create_logical_replication_slot(:name, 'pgoutput', failover => true)"
_FAILOVER_SINCE = 170_000


class SlotConflict(FluxoraError):
    """There is a slot of that name, but it cannot be this database's outbox slot. A person must look."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """What pg_replication_slots says, sizes in bytes."""

    name: str
    database: str
    plugin: str
    #: a connector reads from it now
    active: bool
    #: reserved, extended, unreserved or lost (its log is gone: rows are missing from Kafka)
    wal_status: str | None
    #: written since what Debezium has confirmed
    lag_bytes: int
    #: log that is kept for this slot
    retained_bytes: int
    #: what may still be written before the slot is lost; None without max_slot_wal_keep_size
    safe_wal_bytes: int | None

    @property
    def lost(self) -> bool:
        return self.wal_status == "lost"


def slot_state(connection: Connection, name: str) -> SlotState | None:
    """Return the state of a slot, None if it is not there."""
    row = connection.execute(_STATE, {"name": name}).one_or_none()
    if row is None:
        return None
    return SlotState(
        name=name,
        database=row.database,
        plugin=row.plugin,
        active=row.active,
        wal_status=row.wal_status,
        lag_bytes=row.lag_bytes or 0,
        retained_bytes=row.retained_bytes or 0,
        safe_wal_bytes=row.safe_wal_size,
    )


def ensure_slot(database_url: str) -> bool:
    """Create the database's outbox slot if it is missing; True if it was.

    From here on PostgreSQL keeps every outbox row until Debezium has confirmed it. The user needs REPLICATION.

    Raises:
        SlotConflict: a slot of the name belongs to another database or plugin, or its log is lost.
    """
    engine = engine_for(database_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        database = connection.execute(text("SELECT current_database()")).scalar_one()
        name = connector_name(database)
        # Two at once would collide on the name; the lock is released with the connection.
        connection.execute(text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": name})
        state = slot_state(connection, name)
        if state is None:
            version = connection.execute(text("SELECT current_setting('server_version_num')::int")).scalar_one()
            create = _CREATE_FAILOVER if version >= _FAILOVER_SINCE else _CREATE
            connection.execute(text(create), {"name": name})
            return True
    if state.database != database or state.plugin != "pgoutput":
        raise SlotConflict(
            f"the replication slot {name} belongs to database {state.database!r} with plugin {state.plugin!r}, "
            f"not to {database!r} with 'pgoutput': two databases of one server have names that differ only in "
            "characters a slot cannot have; rename one"
        )
    if state.lost:
        raise SlotConflict(
            f"PostgreSQL has removed log that the slot {name} still needed (max_slot_wal_keep_size): outbox rows "
            "are missing from Kafka. Compare the outbox with its topics before dropping the slot and its offsets"
        )
    return False


def engine_for(database_url: str) -> Engine:
    """An engine that keeps no connection: slots are looked at every few seconds, in several databases."""
    return create_engine(
        sqlalchemy_url(database_url),
        poolclass=NullPool,
        connect_args={**CONNECT, "application_name": "fluxora-connectors"},
    )
