"""Creates and upgrades the schema ``fluxora`` of a service's database.

The tree is the platform's own: its version table is ``fluxora.alembic_version``, so it never meets the
service's own Alembic tree.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from participant.settings import sqlalchemy_url
from participant.tables import SCHEMA

#: Key of the advisory lock that keeps two upgrades of one database apart: "fluxora" in ASCII.
_LOCK = int.from_bytes(b"fluxora")


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the schema of the database up to ``revision``. Idempotent; concurrent calls wait for each other.

    All of it happens in one transaction, so a crash leaves the database as it was.
    The user needs CREATE on the database (for the schema and the publication).
    """
    engine = create_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
