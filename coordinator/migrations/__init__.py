"""Creates and upgrades the coordinator's database: the schema ``fluxora`` of every service, then its own.

The two trees are apart: ``fluxora.alembic_version`` belongs to ``participant.migrations``,
``public.alembic_version`` to this one.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import participant.migrations
from participant.settings import sqlalchemy_url

#: Key of the advisory lock that keeps two upgrades of one database apart.
_LOCK = int.from_bytes(b"coord")


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the coordinator's database up to ``revision``. Idempotent; concurrent calls wait for each other.

    Each of the two trees is one transaction, so a crash leaves whole revisions.
    """
    participant.migrations.upgrade(database_url)
    engine = create_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
