"""What the command line reads from its environment."""

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from connectors.debezium import POLL_INTERVAL_MS


class CliSettings(BaseSettings):
    """Addresses of the stack. ``make up`` writes them to ``.run/endpoints.env``."""

    model_config = SettingsConfigDict(env_prefix="FLUXORA_", populate_by_name=True, extra="ignore")

    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="The coordinator's database.",
    )
    kafka_bootstrap_servers: str | None = Field(
        default=None,
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="host:port of brokers, separated by commas.",
    )
    connect_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("CONNECT_URL", "connect_url"),
        description="Kafka Connect's REST address.",
    )
    schema_registry_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description="Base of the Confluent-compatible API.",
    )
    coordinator_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("COORDINATOR_URL", "coordinator_url"),
        description="The coordinator's REST address.",
    )
    replication_factor: int = Field(
        default=-1, ge=-1, le=10, description="Replicas of the topics we create; -1: the broker's default."
    )
    debezium_poll_ms: int = Field(
        default=POLL_INTERVAL_MS, ge=1, le=1000, description="Debezium's poll.interval.ms: latency against idle CPU."
    )
    wait_s: float = Field(default=60, ge=0, le=3600, description="How long dependencies may take to answer.")
