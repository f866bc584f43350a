"""What a participant reads from its environment."""

from typing import Any, Self

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url


def sqlalchemy_url(database_url: str) -> str:
    """Return ``postgresql://…`` as SQLAlchemy wants it, with the psycopg 3 driver."""
    url = make_url(database_url)
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


#: How psycopg connects: another end that has vanished without a word is noticed within half a minute, while nothing is
#: said (keepalives) and in the middle of a statement (tcp_user_timeout, ms).
CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Settings(BaseSettings):
    """Settings of one service process; a name in the environment is upper-case, ours start with ``FLUXORA_``."""

    model_config = SettingsConfigDict(env_prefix="FLUXORA_", populate_by_name=True, extra="ignore")

    database_url: str = Field(
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="The service's own database, postgresql://user@host:port/name.",
    )
    kafka_bootstrap_servers: str = Field(
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="host:port of brokers, separated by commas.",
    )
    schema_registry_url: str = Field(
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description="Base of the Confluent-compatible API.",
    )
    instance: str | None = Field(
        default=None,
        description="Stable name of this process among those of the service (Kafka's group.instance.id): "
        "a restart within the session timeout then moves no partition. Two processes must not share one.",
    )
    health_port: int = Field(
        default=0, ge=0, le=65535, description="/health, /ready and /metrics listen here; 0 means not at all."
    )
    health_host: str = Field(default="127.0.0.1", description="Address of that port; 0.0.0.0 in a container.")
    batch_limit: int = Field(default=500, ge=1, le=10_000, description="Most commands or events in one transaction.")
    session_timeout_ms: int = Field(
        default=6_000,
        ge=1_000,
        le=300_000,
        description="A killed worker's partitions move on after this time.",
    )
    transaction_idle_limit_s: float = Field(
        default=10.0,
        ge=0.5,
        le=3600.0,
        description="PostgreSQL ends a transaction whose worker is silent for so long (a frozen machine, a lost "
        "network), so that whoever took over its partitions need not wait for its locks. A handler must not pause "
        "between two statements for longer.",
    )
    retry_wait_max_s: float = Field(
        default=5.0, ge=0.1, le=60.0, description="Longest pause between tries while a dependency is down."
    )

    event_attempts: int = Field(
        default=5,
        ge=0,
        le=1_000_000,
        description="How often an event's handler may fail before the event goes to the dead letter topic; 0: it is "
        "tried for ever, and its partition waits.",
    )
    event_retry_wait_s: float = Field(
        default=0.5, ge=0.01, le=3600.0, description="Pause after an event's first failure; doubles with each further."
    )
    event_retry_wait_max_s: float = Field(
        default=30.0, ge=0.01, le=86_400.0, description="Longest pause between two tries of an event."
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment; raises pydantic's ValidationError, which names what is missing."""
        return cls()
