"""Creates and upgrades the schema ``messages`` in the coordinator's database.

The tree is apart from the others: its version table is ``messages.alembic_version``. The schema ``fluxora``, whose
outbox carries messages to Kafka, must be there (``participant.migrations``).
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from participant.settings import sqlalchemy_url

SCHEMA = "messages"
#: Key of the advisory lock that keeps two upgrades of one database apart.
_LOCK = int.from_bytes(b"message")


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema up to ``revision``, in one transaction. Idempotent; concurrent calls wait for each other."""
    engine = create_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
