"""What the coordinator reads from its environment: every limit, wait and size, with its bounds."""

from typing import Self

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from participant.outbox import PAYLOAD_LIMIT


class Settings(BaseSettings):
    """Settings of one coordinator process.

    In the environment: ``FLUXORA_COORDINATOR_<NAME>``, but for the addresses ``DATABASE_URL``,
    ``KAFKA_BOOTSTRAP_SERVERS`` and ``SCHEMA_REGISTRY_URL``.
    """

    model_config = SettingsConfigDict(env_prefix="FLUXORA_COORDINATOR_", populate_by_name=True, extra="ignore")

    database_url: str = Field(
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="The coordinator's database, postgresql://user@host:port/name.",
    )
    kafka_bootstrap_servers: str = Field(
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="host:port of brokers, separated by commas; asked only which services there are.",
    )
    schema_registry_url: str = Field(
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description="Base of the Confluent-compatible API.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=8000, ge=0, le=65535, description="0 = any free port; the log says which.")

    max_steps: int = Field(default=100, ge=1, le=1000, description="Most steps of a saga.")
    max_body_bytes: int = Field(default=1 << 20, ge=1 << 10, le=64 << 20, description="Largest request body.")
    max_payload_bytes: int = Field(
        default=256 << 10, ge=1, le=16 << 20, description="Largest payload of one step, as compact JSON."
    )
    max_record_bytes: int = Field(
        default=PAYLOAD_LIMIT,
        ge=1 << 10,
        le=PAYLOAD_LIMIT,
        description="Largest saga as a Kafka record; a larger one "
        "would stop the connector, so the limit cannot be raised.",
    )
    body_timeout_seconds: float = Field(default=30.0, gt=0, le=600, description="A slow body is given up after it.")
    max_in_flight: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Requests at once, waiters included; more are answered 503.",
    )

    pool_size: int = Field(default=16, ge=1, le=500, description="Connections to PostgreSQL, plus one that listens.")
    pool_wait_seconds: float = Field(default=2.0, gt=0, le=60, description="Longest wait for one of them, then 503.")
    pool_queue: int = Field(default=2_000, ge=1, le=100_000, description="Requests that may wait for one; then 503.")
    statement_timeout_seconds: float = Field(default=5.0, gt=0, le=300, description="Of one statement, then 503.")
    connect_timeout_seconds: int = Field(default=3, ge=2, le=60, description="Of one connection attempt.")

    wait_limit_seconds: float = Field(default=60.0, ge=0, le=3600, description="A longer ?wait= is cut to this.")
    max_waiters: int = Field(default=10_000, ge=1, le=1_000_000, description="?wait= at once; more are answered 503.")
    listen_check_seconds: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="How often the listening connection is tested when it is silent.",
    )

    page_size: int = Field(default=50, ge=1, le=10_000, description="Sagas on a page when ?limit= is not given.")
    max_page_size: int = Field(default=500, ge=1, le=10_000, description="Largest ?limit=.")

    services_ttl_seconds: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description="How often the list of Kafka services is refreshed in the background.",
    )
    services_interval_seconds: float = Field(
        default=0.5,
        ge=0.01,
        le=60,
        description="Least time between two listings, however many unknown names come.",
    )
    kafka_timeout_seconds: float = Field(default=3.0, gt=0, le=60, description="Of one listing.")

    registry_timeout_seconds: float = Field(
        default=5.0, gt=0, le=60, description="Longest wait for the schema registry, which is asked once; then 503."
    )

    shutdown_seconds: int = Field(
        default=10, ge=1, le=300, description="After SIGTERM, how long running requests may take to end."
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment; raises pydantic's ValidationError, which names what is missing."""
        return cls()  # the required fields come from the environment
